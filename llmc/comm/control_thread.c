/* control_thread.c: the thread that every rank has beside its work: it reads the control connections, sends heartbeats,
 * notices who is silent or gone, and ends a process that does not notice itself. See control.h. */
#define _DEFAULT_SOURCE
#include "base/check.h"
#include "base/log.h"
#include "comm/control_internal.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Shares of the timeout: silence for longer than this is taken for death, so that what follows still fits. */
static const double SILENCE_SHARE = 0.7, DOUBT_SHARE = 0.2, HEARTBEAT_SHARE = 0.04;
/* After a failure the thread looks around this often, in seconds. */
static const double FAILED_INTERVAL = 0.02;

static int link_rank(const Control *c, int index) {
    return c->place.rank ? 0 : index;
}

/* Lock held. A whole message has come over the link; its body may be taken (set to NULL). */
static void take_message(Control *c, int index) {
    ControlLink *link = &c->links[index];
    int rank = link_rank(c, index);
    size_t bytes = link->head.bytes;
    switch (link->head.type) {
    case MESSAGE_HEARTBEAT:
        if (c->place.rank)
            atomic_store(&c->laggard, (int)link->head.number);
        else
            link->begun = link->head.number;
        break;
    case MESSAGE_GOODBYE:
        link->left = true;
        pthread_cond_broadcast(&c->changed);
        break;
    case MESSAGE_ABORT:
        if (bytes && !link->body[bytes - 1]) control_fail(c, (const char *)link->body);
        break;
    case MESSAGE_GATHER:
        if (c->place.rank) break;
        control_put_part(c, rank, link->body, bytes);
        link->body = NULL;
        break;
    case MESSAGE_GATHER_ALL:
        if (!c->place.rank) break;
        free(c->result);
        c->result = link->body;
        c->result_bytes = bytes;
        c->gather_number = link->head.number;
        link->body = NULL;
        pthread_cond_broadcast(&c->changed);
        break;
    default:
        control_fail_rank(c, rank, "sent a control message that is not understood (different versions?)");
        break;
    }
}

/* Reads what has come over the link. False: it has closed. */
static bool read_link(Control *c, int index) {
    ControlLink *link = &c->links[index];
    for (;;) {
        size_t bytes = link->got < sizeof link->head ? 0 : link->head.bytes;
        unsigned char *to = link->got < sizeof link->head ? (unsigned char *)&link->head + link->got
                                                          : link->body + (link->got - sizeof link->head);
        size_t want =
            (link->got < sizeof link->head ? sizeof link->head : sizeof link->head + bytes) - link->got;
        ssize_t n = recv(link->fd, to, want, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
        if (!n) return false;
        link->got += (size_t)n;
        link->heard = log_seconds();
        if (link->got == sizeof link->head) {
            size_t most = (size_t)CONTROL_GATHER_BYTES_MAX * (c->place.rank ? (size_t)c->place.size : 1);
            if (link->head.magic != MESSAGE_MAGIC || link->head.bytes > most) return false;
            if (link->head.bytes) {
                link->body = malloc(link->head.bytes);
                CHECK(link->body);
            }
        }
        if (link->got >= sizeof link->head && link->got == sizeof link->head + link->head.bytes) {
            pthread_mutex_lock(&c->lock);
            take_message(c, index);
            pthread_mutex_unlock(&c->lock);
            free(link->body);
            link->body = NULL;
            link->got = 0;
        }
    }
}

/* Lock held. */
static void close_link(Control *c, int index) {
    ControlLink *link = &c->links[index];
    close(link->fd);
    link->fd = -1;
    if (!link->left && !c->closing)
        control_fail_rank(c, link_rank(c, index), "died: its control connection closed without a goodbye");
    link->left = true;
    pthread_cond_broadcast(&c->changed);
}

/* Rank 0: who has begun fewest operations? Numbers that have wrapped around still compare. */
static int find_laggard(const Control *c) {
    int last = 0;
    uint32_t least = atomic_load(&c->begun);
    bool alone = true;
    for (int i = 1; i < c->place.size; i++) {
        int32_t more = (int32_t)(c->links[i].begun - least);
        if (more == 0) alone = false;
        if (more >= 0) continue;
        last = i;
        least = c->links[i].begun;
        alone = true;
    }
    return alone && c->place.size > 1 ? last : -1;
}

/* The thread that should have noticed the failure is busy elsewhere: ends the process without it. */
static void end_unanswered(Control *c, double now) {
    if (c->failed_at <= 0) c->failed_at = now;
    if (!c->end || now - c->failed_at < c->grace || atomic_load(&c->held)) return;
    int open = CONTROL_ANSWER_OPEN;
    if (atomic_compare_exchange_strong(&c->answer, &open, CONTROL_ANSWER_ENDED)) c->end(c->end_context);
}

/* Lock held: heartbeats out, silences noticed. */
static void look_around(Control *c, double now, double paused) {
    double limit = SILENCE_SHARE * c->timeout;
    bool doubts = false;
    char what[128];
    for (int i = 0; i < c->link_count; i++) {
        ControlLink *link = &c->links[i];
        if (link->fd < 0 || link->left) continue;
        /* this process itself was stopped for a while: what the others sent meanwhile is still to be read */
        if (paused > limit / 2) link->heard = now;
        doubts |= now - link->heard > DOUBT_SHARE * c->timeout;
        if (now - link->heard > limit) {
            snprintf(what, sizeof what, "has given no sign of life for %.1f s (stopped, or not reachable)",
                     now - link->heard);
            control_fail_rank(c, link_rank(c, i), what);
        }
    }
    atomic_store(&c->doubts, doubts);
    if (!c->place.rank) atomic_store(&c->laggard, find_laggard(c));
    uint32_t number = c->place.rank ? atomic_load(&c->begun) : (uint32_t)atomic_load(&c->laggard);
    if (!c->failed) control_send_to_all(c, MESSAGE_HEARTBEAT, number, NULL, 0);
    if (!c->place.rank && !c->failed) control_check_gather(c, now);
}

static void *run_thread(void *argument) {
    Control *c = argument;
    struct pollfd *polls = calloc((size_t)c->link_count + 1, sizeof *polls);
    CHECK(polls);
    double interval = HEARTBEAT_SHARE * c->timeout, last = log_seconds();
    if (interval > 0.5) interval = 0.5;
    if (interval < 0.02) interval = 0.02;
    double next = last;
    for (bool stopping = false; !stopping;) {
        for (int i = 0; i < c->link_count; i++)
            polls[i] = (struct pollfd){.fd = c->links[i].fd, .events = POLLIN};
        polls[c->link_count] = (struct pollfd){.fd = c->wake, .events = POLLIN};
        double left = next - log_seconds();
        poll(polls, (nfds_t)c->link_count + 1, left > 0 ? (int)(left * 1000) + 1 : 0);
        for (int i = 0; i < c->link_count; i++)
            if (polls[i].fd >= 0 && polls[i].revents && !read_link(c, i)) {
                pthread_mutex_lock(&c->lock);
                close_link(c, i);
                pthread_mutex_unlock(&c->lock);
            }
        double now = log_seconds();
        pthread_mutex_lock(&c->lock);
        if (now >= next) {
            look_around(c, now, now - last);
            next = now + interval;
        }
        stopping = c->stopping;
        pthread_mutex_unlock(&c->lock);
        if (c->failed) {
            end_unanswered(c, now);
            if (next > now + FAILED_INTERVAL) next = now + FAILED_INTERVAL;
        }
        last = now;
    }
    free(polls);
    return NULL;
}

bool control_start_thread(Control *c, Error *err) {
    sigset_t all, before;
    sigfillset(&all); /* signals are for the program's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int e = pthread_create(&c->thread, NULL, run_thread, c);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    c->has_thread = !e;
    errno = e;
    return !e || error_set_errno(err, "a thread for the control connections");
}
