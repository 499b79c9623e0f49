/* control.c: see control.h and control_internal.h: failures, opening and closing. */
#define _DEFAULT_SOURCE
#include "base/check.h"
#include "base/log.h"
#include "comm/comm_mpi.h"
#include "comm/control_internal.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Of the timeout: for a message. */
static const double SEND_SHARE = 0.1;
/* Rank 0 waits this many timeouts for the others' goodbyes. */
static const double GOODBYE_TIMEOUTS = 10;

/* --- failures --- */

double control_send_deadline(const Control *c) {
    return log_seconds() + SEND_SHARE * c->timeout;
}

void control_send_to_all(Control *c, uint32_t type, uint32_t number, const void *body, size_t bytes) {
    for (int i = 0; i < c->link_count; i++)
        if (c->links[i].fd >= 0)
            message_send(c->links[i].fd, type, number, body, bytes, control_send_deadline(c));
}

void control_fail(Control *c, const char *reason) {
    if (atomic_load_explicit(&c->failed, memory_order_relaxed)) return;
    snprintf(c->reason, sizeof c->reason, "%s", reason);
    for (char *p = c->reason; *p; p++)
        if (*p == '\n') *p = ' ';
    atomic_store_explicit(&c->failed, true, memory_order_release);
    control_send_to_all(c, MESSAGE_ABORT, 0, c->reason, strlen(c->reason) + 1);
    pthread_cond_broadcast(&c->changed);
}

void control_fail_rank(Control *c, int rank, const char *what) {
    char reason[CONTROL_REASON_BYTES];
    snprintf(reason, sizeof reason, "rank %d (%s) %s", rank, c->hosts[rank], what);
    control_fail(c, reason);
}

bool control_failed(const Control *c, Error *err) {
    if (!atomic_load_explicit(&c->failed, memory_order_acquire)) return false;
    if (err) error_set(err, "%s", c->reason);
    return true;
}

bool control_doubts(const Control *c) {
    return atomic_load(&c->doubts);
}

void control_abort(Control *c, const char *reason) {
    pthread_mutex_lock(&c->lock);
    control_fail(c, reason);
    pthread_mutex_unlock(&c->lock);
}

void control_watch(Control *c, double grace_seconds, void (*end)(void *context), void *context) {
    pthread_mutex_lock(&c->lock);
    c->grace = grace_seconds;
    c->end = end;
    c->end_context = context;
    pthread_mutex_unlock(&c->lock);
}

void control_answer(Control *c) {
    int open = CONTROL_ANSWER_OPEN;
    atomic_compare_exchange_strong(&c->answer, &open, CONTROL_ANSWER_GIVEN);
    while (atomic_load(&c->answer) == CONTROL_ANSWER_ENDED) pause();
}

void control_hold(Control *c, bool on) {
    atomic_store(&c->held, on);
}

void control_note(Control *c, uint32_t begun) {
    atomic_store_explicit(&c->begun, begun, memory_order_relaxed);
}

int control_laggard(const Control *c) {
    return atomic_load(&c->laggard);
}

bool control_wait_changed(Control *c, double deadline) {
    double at = deadline < 0 ? 0 : deadline;
    struct timespec t = {.tv_sec = (time_t)at, .tv_nsec = (long)((at - (double)(time_t)at) * 1e9)};
    return pthread_cond_timedwait(&c->changed, &c->lock, &t) == 0;
}

/* --- open and close --- */

static void count_hosts(Control *c) {
    for (int i = 0; i < c->place.size; i++) {
        c->local_rank[i] = 0;
        for (int j = i - 1; j >= 0; j--)
            if (!strcmp(c->hosts[i], c->hosts[j])) {
                c->local_rank[i] = c->local_rank[j] + 1;
                break;
            }
        c->host_count += !c->local_rank[i];
    }
}

bool control_open(Control **control, double timeout_seconds, Error *err) {
    Control *c = calloc(1, sizeof *c);
    int *sockets = NULL;
    bool ok = false;
    CHECK(c);
    *control = NULL;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&c->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&c->lock, NULL);
    c->wake = -1;
    atomic_init(&c->laggard, -1);
    c->timeout = timeout_seconds > 0 ? timeout_seconds : 10;
    if (!control_place(&c->place, err)) goto out;
    size_t size = (size_t)c->place.size;
    c->link_count = size == 1 ? 0 : c->place.rank ? 1 : c->place.size;
    c->hosts = calloc(size, sizeof *c->hosts);
    c->local_rank = calloc(size, sizeof *c->local_rank);
    c->parts = calloc(size, sizeof *c->parts);
    c->links = calloc(size, sizeof *c->links);
    sockets = calloc(size, sizeof *sockets);
    CHECK(c->hosts && c->local_rank && c->parts && c->links && sockets);
    for (int i = 0; i < c->link_count; i++) c->links[i].fd = -1;
    if (!rendezvous_open(&c->place, c->timeout, sockets, c->hosts, err)) goto out;
    for (int i = 0; i < c->link_count; i++)
        c->links[i] = (ControlLink){.fd = sockets[i], .heard = log_seconds()};
    count_hosts(c);
    if (c->link_count) {
        c->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (c->wake < 0) {
            error_set_errno(err, "an eventfd");
            goto out;
        }
        if (!control_start_thread(c, err)) goto out;
    }
    ok = true;
out:
    free(sockets);
    if (!ok) {
        c->closing = true;
        c->failed = true;
        control_close(c);
        return false;
    }
    *control = c;
    return true;
}

/* What is still to be read would make close() reset the connections, and perhaps the last words with them: say that no
 * more will come, and read until the other side closes too. */
static void close_softly(Control *c, double seconds) {
    char scratch[256];
    double until = log_seconds() + seconds;
    for (int i = 0; i < c->link_count; i++)
        if (c->links[i].fd >= 0) shutdown(c->links[i].fd, SHUT_WR);
    for (int i = 0; i < c->link_count; i++) {
        struct pollfd p = {.fd = c->links[i].fd, .events = POLLIN};
        if (p.fd < 0) continue;
        while (log_seconds() < until)
            if (poll(&p, 1, 10) > 0 && recv(p.fd, scratch, sizeof scratch, MSG_DONTWAIT) <= 0) break;
        close(p.fd);
    }
}

static bool all_left(const Control *c) {
    for (int i = 0; i < c->link_count; i++)
        if (c->links[i].fd >= 0 && !c->links[i].left) return false;
    return true;
}

void control_close(Control *c) {
    if (!c) return;
    if (c->has_thread) {
        pthread_mutex_lock(&c->lock);
        if (!c->failed) control_send_to_all(c, MESSAGE_GOODBYE, 0, NULL, 0);
        double deadline = log_seconds() + GOODBYE_TIMEOUTS * c->timeout;
        while (!c->place.rank && !c->failed && !all_left(c) && log_seconds() < deadline)
            control_wait_changed(c, deadline);
        c->closing = c->stopping = true;
        pthread_mutex_unlock(&c->lock);
        if (write(c->wake, &(uint64_t){1}, sizeof(uint64_t)) < 0) CHECK(errno == EAGAIN);
        pthread_join(c->thread, NULL);
    }
    if (!c->failed) mpi_finish_at_exit();
    if (c->links) close_softly(c, c->failed ? 0.05 : 0.5);
    for (int i = 0; i < c->link_count; i++) {
        if (c->links) free(c->links[i].body);
        if (c->parts) free(c->parts[i].data);
    }
    if (c->wake >= 0) close(c->wake);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c->hosts);
    free(c->local_rank);
    free(c->parts);
    free(c->links);
    free(c->result);
    free(c);
}

int control_rank(const Control *c) {
    return c->place.rank;
}

int control_size(const Control *c) {
    return c->place.size;
}

int control_hosts(const Control *c) {
    return c->host_count;
}

const char *control_host(const Control *c, int rank) {
    CHECK(rank >= 0 && rank < c->place.size);
    return c->hosts[rank];
}

int control_local_rank(const Control *c, int rank) {
    CHECK(rank >= 0 && rank < c->place.size);
    return c->local_rank[rank];
}
