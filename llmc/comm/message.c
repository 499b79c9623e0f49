/* message.c: see message.h. */
#define _DEFAULT_SOURCE
#include "comm/message.h"
#include "base/check.h"
#include "base/log.h"
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

bool message_wait_for(int fd, short events, double deadline) {
    for (;;) {
        double left = deadline - log_seconds();
        if (left <= 0) return false;
        struct pollfd p = {.fd = fd, .events = events};
        int n = poll(&p, 1, (int)(left * 1000) + 1);
        if (n > 0) return true;
        if (n < 0 && errno != EINTR) return false;
    }
}

static bool send_all(int fd, const void *data, size_t bytes, double deadline) {
    const char *p = data;
    while (bytes) {
        ssize_t n = send(fd, p, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0)
            p += n, bytes -= (size_t)n;
        else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (!message_wait_for(fd, POLLOUT, deadline)) return false;
        } else if (n < 0 && errno != EINTR)
            return false;
    }
    return true;
}

bool message_read(int fd, void *data, size_t bytes, double deadline) {
    char *p = data;
    while (bytes) {
        if (!message_wait_for(fd, POLLIN, deadline)) return false;
        ssize_t n = recv(fd, p, bytes, MSG_DONTWAIT);
        if (n > 0)
            p += n, bytes -= (size_t)n;
        else if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
            return false;
    }
    return true;
}

bool message_send(int fd, uint32_t type, uint32_t number, const void *body, size_t bytes, double deadline) {
    CHECK_OP(bytes, <=, MESSAGE_BYTES_MAX);
    Message m = {MESSAGE_MAGIC, type, (uint32_t)bytes, number};
    return send_all(fd, &m, sizeof m, deadline) && (!bytes || send_all(fd, body, bytes, deadline));
}
