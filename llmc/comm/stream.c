/* stream.c: see stream.h. */
#define _GNU_SOURCE
#include "comm/stream.h"
#include "base/check.h"
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { VECTOR_MAX = 16 };

static size_t layout_before(const Layout *l, int position) { /* bytes */
    if (l->start) return l->start[position] * l->element;
    return l->count * (size_t)position / (size_t)l->positions * l->element;
}

/* Where byte `from` of the colour lies; *run: how many follow it there, up to byte `to`. */
static char *layout_find(const Layout *l, size_t from, size_t to, size_t *run) {
    if (!l->start) {
        *run = to - from;
        return l->data + l->base * l->element + from;
    }
    int low = 0, high = l->positions; /* start[low] <= from < start[high] */
    while (high - low > 1) {
        int middle = low + (high - low) / 2;
        if (l->start[middle] * l->element <= from)
            low = middle;
        else
            high = middle;
    }
    size_t end = l->start[low + 1] * l->element;
    *run = (end < to ? end : to) - from;
    return l->data + l->at[low] * l->element + (from - l->start[low] * l->element);
}

static void stream_block(const Stream *s, int first, int k, size_t *from, size_t *to) {
    int block = ((first + k * s->step) % s->length + s->length) % s->length;
    *from = layout_before(s->layout, s->low + block * s->width);
    *to = layout_before(s->layout, s->low + (block + 1) * s->width);
}

bool stream_complete(const Stream *s) {
    return s->received && s->sent;
}

static bool recv_allowed(const Stream *s) {
    if (s->recv_done == s->recv_blocks || (s->turn >= 0 && s->in->turn_in != s->turn)) return false;
    return !s->last_after || s->recv_done < s->recv_blocks - 1 ||
           s->last_after->recv_done == s->last_after->recv_blocks;
}

static bool send_allowed(const Stream *s) {
    return s->send_done < s->send_blocks && (s->turn < 0 || s->out->turn_out == s->turn);
}

/* Each way, the turn goes on when all blocks are done; also where there were none. */
static void pass_turns(Stream *s, bool *moved) {
    bool takes_turns = s->turn >= 0;
    if (!s->received && s->recv_done == s->recv_blocks &&
        (!s->in || !takes_turns || s->in->turn_in == s->turn)) {
        s->received = *moved = true;
        if (s->in && takes_turns) s->in->turn_in++;
    }
    if (!s->sent && s->send_done == s->send_blocks &&
        (!s->out || !takes_turns || s->out->turn_out == s->turn)) {
        s->sent = *moved = true;
        if (s->out && takes_turns) s->out->turn_out++;
    }
}

/* How much of the block to be sent next may be sent. */
static size_t send_ready(const Stream *s, size_t bytes) {
    int needs = s->send_done - s->lag;
    if (!s->gate || needs < 0 || s->gate->recv_done > needs) return bytes;
    return s->gate->recv_done == needs ? s->gate->recv_bytes : 0;
}

static bool would_wait(void) {
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR || errno == ENOBUFS;
}

/* --- ports --- */

bool port_complete(const Port *port) {
    return port->header_out == sizeof(CommHeader) && port->header_in == sizeof(CommHeader);
}

static StreamStatus port_send(Port *port, const CommHeader *header, bool *moved) {
    if (port->header_out == sizeof *header) return STREAM_FINE;
    ssize_t k = send(port->fd, (const char *)header + port->header_out, sizeof *header - port->header_out,
                     MSG_NOSIGNAL | MSG_DONTWAIT);
    if (k < 0) return would_wait() ? STREAM_FINE : STREAM_BROKEN;
    port->header_out += (size_t)k;
    *moved |= k > 0;
    return STREAM_FINE;
}

static StreamStatus port_recv(Port *port, const CommHeader *header, bool *moved) {
    if (port->header_in == sizeof *header) return STREAM_FINE;
    ssize_t k = recv(port->fd, (char *)&port->theirs + port->header_in, sizeof *header - port->header_in,
                     MSG_DONTWAIT);
    if (k <= 0) return k < 0 && would_wait() ? STREAM_FINE : STREAM_BROKEN;
    port->header_in += (size_t)k;
    *moved = true;
    bool differs = port->header_in == sizeof *header && memcmp(&port->theirs, header, sizeof *header) != 0;
    return differs ? STREAM_MISMATCH : STREAM_FINE;
}

void port_polled(Port *port, const struct pollfd *poll) {
    if (poll->revents & ~POLLOUT) port->empty = false; /* errors are found by both */
    if (poll->revents & ~POLLIN) port->full = false;
}

StreamStatus port_move(Port *port, const CommHeader *header, bool *moved) {
    StreamStatus status = port_send(port, header, moved);
    return status == STREAM_FINE ? port_recv(port, header, moved) : status;
}

static size_t vector_bytes(const struct msghdr *message) {
    size_t bytes = 0;
    for (size_t i = 0; i < message->msg_iovlen; i++) bytes += message->msg_iov[i].iov_len;
    return bytes;
}

/* --- sending --- */

static StreamStatus stream_send(Stream *s, const CommHeader *header, bool *moved) {
    while (send_allowed(s)) {
        size_t from, to;
        stream_block(s, s->first_send, s->send_done, &from, &to);
        size_t ready = send_ready(s, to - from), header_left = sizeof *header - s->out->header_out;
        bool greets = header_left && from == to; /* nothing but the header */
        if (s->send_bytes == to - from && ready == to - from && !greets) {
            if (s->gate && s->send_done >= s->lag && s->gate->recv_done <= s->send_done - s->lag)
                break; /* an empty block, which has not come yet */
            s->send_done++;
            s->send_bytes = 0;
            *moved = true;
            continue;
        }
        if ((s->send_bytes >= ready && !greets) || s->out->full) break;
        struct iovec vector[VECTOR_MAX];
        struct msghdr message = {.msg_iov = vector};
        if (header_left)
            vector[message.msg_iovlen++] =
                (struct iovec){(char *)(uintptr_t)header + s->out->header_out, header_left};
        for (size_t at = from + s->send_bytes; at < from + ready && message.msg_iovlen < VECTOR_MAX;) {
            size_t run;
            char *data = layout_find(s->layout, at, from + ready, &run);
            vector[message.msg_iovlen++] = (struct iovec){data, run};
            at += run;
        }
        ssize_t k = sendmsg(s->out->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        s->out->full = (size_t)(k > 0 ? k : 0) < vector_bytes(&message);
        if (k < 0) return would_wait() ? STREAM_FINE : STREAM_BROKEN;
        *moved = true;
        size_t head = (size_t)k < header_left ? (size_t)k : header_left;
        s->out->header_out += head;
        s->send_bytes += (size_t)k - head;
    }
    return STREAM_FINE;
}

/* --- receiving --- */

static StreamStatus recv_failed(ssize_t k) {
    return k < 0 && would_wait() ? STREAM_FINE : STREAM_BROKEN;
}

/* Adds up to `bytes` from the socket to the data at byte `at`. */
static ssize_t recv_reduce(Stream *s, char *staging, size_t at, size_t bytes) {
    size_t room = STREAM_STAGING_BYTES - s->carried, want = bytes - s->carried;
    memcpy(staging, s->carry, s->carried);
    ssize_t k = recv(s->in->fd, staging + s->carried, want < room ? want : room, MSG_DONTWAIT);
    s->in->empty = k < (ssize_t)(want < room ? want : room);
    if (k <= 0) return k;
    size_t have = s->carried + (size_t)k, whole = have - have % s->layout->element;
    for (size_t done = 0; done < whole;) {
        size_t run;
        char *data = layout_find(s->layout, at + done, at + whole, &run);
        comm_reduce(data, staging + done, run / s->layout->element, s->type, s->op);
        done += run;
    }
    s->carried = have - whole;
    memcpy(s->carry, staging + whole, s->carried);
    s->recv_bytes += whole;
    return k;
}

/* What is left of the header comes first. */
static ssize_t recv_copy(Stream *s, size_t at, size_t to) {
    struct iovec vector[VECTOR_MAX];
    struct msghdr message = {.msg_iov = vector};
    size_t header_left = sizeof(CommHeader) - s->in->header_in;
    if (header_left)
        vector[message.msg_iovlen++] = (struct iovec){(char *)&s->in->theirs + s->in->header_in, header_left};
    while (at < to && message.msg_iovlen < VECTOR_MAX) {
        size_t run;
        char *data = layout_find(s->layout, at, to, &run);
        vector[message.msg_iovlen++] = (struct iovec){data, run};
        at += run;
    }
    ssize_t k = recvmsg(s->in->fd, &message, MSG_DONTWAIT);
    size_t got = k > 0 ? (size_t)k : 0, head = got < header_left ? got : header_left;
    s->in->empty = got < vector_bytes(&message);
    s->in->header_in += head;
    s->recv_bytes += got - head;
    return k;
}

static StreamStatus stream_recv(Stream *s, const CommHeader *header, char *staging, bool *moved) {
    while (recv_allowed(s)) {
        size_t from, to, head = s->in->header_in;
        stream_block(s, s->first_recv, s->recv_done, &from, &to);
        if (s->recv_bytes < to - from || head < sizeof *header) {
            if (s->in->empty) break;
            CHECK(!s->reduce || head == sizeof *header); /* sums have connections of their own */
            ssize_t k = s->reduce ? recv_reduce(s, staging, from + s->recv_bytes, to - from - s->recv_bytes)
                                  : recv_copy(s, from + s->recv_bytes, to);
            if (k <= 0) return recv_failed(k);
            *moved = true;
            if (s->in->header_in < sizeof *header) break;
            if (head < sizeof *header && memcmp(&s->in->theirs, header, sizeof *header) != 0)
                return STREAM_MISMATCH;
        }
        if (s->recv_bytes == to - from) {
            s->recv_done++;
            s->recv_bytes = 0;
            *moved = true;
        }
        if (s->send_done < s->send_blocks) break; /* hands on what came before it takes more */
    }
    return STREAM_FINE;
}

StreamStatus stream_move(Stream *s, const CommHeader *header, char *staging, bool *moved, Port **port) {
    StreamStatus status = s->in ? stream_recv(s, header, staging, moved) : STREAM_FINE;
    if (status != STREAM_FINE) {
        *port = s->in;
        return status;
    }
    status = s->out ? stream_send(s, header, moved) : STREAM_FINE;
    if (status != STREAM_FINE) *port = s->out;
    pass_turns(s, moved);
    return status;
}

int stream_polls(const Stream *s, struct pollfd *polls, Port **ports) {
    int n = 0;
    if (recv_allowed(s)) {
        ports[n] = s->in;
        polls[n++] = (struct pollfd){.fd = s->in->fd, .events = POLLIN};
    }
    if (send_allowed(s)) {
        size_t from, to;
        stream_block(s, s->first_send, s->send_done, &from, &to);
        if (send_ready(s, to - from) > s->send_bytes ||
            (from == to && s->out->header_out < sizeof(CommHeader))) {
            ports[n] = s->out;
            polls[n++] = (struct pollfd){.fd = s->out->fd, .events = POLLOUT};
        }
    }
    return n;
}
