/* control.c: see control.h. One thread on every rank reads the control connections; everything that changes is behind
 * one lock, except `failed`, which is only ever set.
 *
 * Rank 0 is the hub: it hears everyone's heartbeat, decides that a rank is lost, and passes every reason on. The others
 * watch rank 0 alone. A message is written by whoever has something to say, so that it is on its way before that thread
 * goes on (and perhaps exits). */
#define _DEFAULT_SOURCE
#include "comm/control.h"
#include "base/check.h"
#include "base/log.h"
#include "comm/comm_mpi.h"
#include "comm/rendezvous.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { GATHER_BYTES_MAX = 1 << 20 };

/* Shares of the timeout: silence for longer than this is taken for death, so that what follows still fits. */
static const double SILENCE_SHARE = 0.7, DOUBT_SHARE = 0.2, SEND_SHARE = 0.1, HEARTBEAT_SHARE = 0.04;
/* After a failure the thread looks around this often, in seconds. */
static const double FAILED_INTERVAL = 0.02;
/* Rank 0 waits this many timeouts for the others' goodbyes. */
static const double GOODBYE_TIMEOUTS = 10;

/* A connection, and the message of it that has come so far. Only the thread reads; fd is changed under the lock. */
typedef struct {
    int fd; /* -1: none, or gone */
    bool left;
    double heard;
    uint32_t begun; /* rank 0: operations */
    Message head;
    unsigned char *body;
    size_t got; /* bytes of head and body */
} Link;

/* One rank's part of the exchange under way, on rank 0. */
typedef struct {
    void *data;
    size_t bytes;
    bool here;
} Part;

struct Control {
    ControlPlace place;
    double timeout;
    HostName *hosts;
    int *local_rank, host_count;
    int link_count; /* rank 0: size, by rank; others: 1, to rank 0 */
    Link *links;
    int wake; /* an eventfd: the thread shall look around */
    pthread_t thread;
    bool has_thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stopping, closing;
    atomic_bool failed;
    char reason[CONTROL_REASON_BYTES]; /* written once, before failed */
    uint32_t gather_number;            /* of exchanges finished */
    double gather_since;               /* rank 0: when the first part came */
    Part *parts;                       /* rank 0 (size) */
    unsigned char *result;             /* of the last exchange */
    size_t result_bytes;
    atomic_uint begun;
    atomic_int laggard;
    atomic_bool doubts;
    void (*end)(void *context);
    void *end_context;
    double grace, failed_at; /* failed_at: 0 until the thread has seen it */
    atomic_int answer;       /* Answer */
    atomic_bool held;
};

typedef enum { ANSWER_OPEN, ANSWER_GIVEN, ANSWER_ENDED } Answer;

/* --- failures --- */

static double send_deadline(const Control *c) {
    return log_seconds() + SEND_SHARE * c->timeout;
}

static void send_to_all(Control *c, uint32_t type, uint32_t number, const void *body, size_t bytes) {
    for (int i = 0; i < c->link_count; i++)
        if (c->links[i].fd >= 0) message_send(c->links[i].fd, type, number, body, bytes, send_deadline(c));
}

/* Lock held. The first reason wins, here and, through rank 0, nearly everywhere. */
static void fail(Control *c, const char *reason) {
    if (atomic_load_explicit(&c->failed, memory_order_relaxed)) return;
    snprintf(c->reason, sizeof c->reason, "%s", reason);
    for (char *p = c->reason; *p; p++)
        if (*p == '\n') *p = ' ';
    atomic_store_explicit(&c->failed, true, memory_order_release);
    send_to_all(c, MESSAGE_ABORT, 0, c->reason, strlen(c->reason) + 1);
    pthread_cond_broadcast(&c->changed);
}

static void fail_rank(Control *c, int rank, const char *what) {
    char reason[CONTROL_REASON_BYTES];
    snprintf(reason, sizeof reason, "rank %d (%s) %s", rank, c->hosts[rank], what);
    fail(c, reason);
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
    fail(c, reason);
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
    int open = ANSWER_OPEN;
    atomic_compare_exchange_strong(&c->answer, &open, ANSWER_GIVEN);
    while (atomic_load(&c->answer) == ANSWER_ENDED) pause();
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

/* --- exchanges; lock held --- */

static void say_missing(Control *c) {
    char list[160] = "", reason[CONTROL_REASON_BYTES];
    size_t n = 0;
    int missing = 0, first = -1;
    for (int i = 0; i < c->place.size; i++) {
        if (c->parts[i].here) continue;
        if (first < 0) first = i;
        if (missing++ < 8)
            n += (size_t)snprintf(list + n, sizeof list - n, "%s%d", missing > 1 ? ", " : "", i);
    }
    if (missing > 8) snprintf(list + n, sizeof list - n, " and %d more", missing - 8);
    snprintf(reason, sizeof reason,
             "rank%s %s (%s) did not take part in an exchange of settings within %.3g s (stuck, or in "
             "another part of "
             "the program?)",
             missing > 1 ? "s" : "", list, c->hosts[first], c->timeout);
    fail(c, reason);
}

/* Rank 0: all parts are there. */
static void finish_gather(Control *c) {
    size_t bytes = c->parts[0].bytes;
    for (int i = 1; i < c->place.size; i++)
        if (c->parts[i].bytes != bytes) {
            char what[128];
            snprintf(what, sizeof what,
                     "brings %zu bytes to an exchange of settings, rank 0 %zu (different versions?)",
                     c->parts[i].bytes, bytes);
            fail_rank(c, i, what);
            return;
        }
    c->result_bytes = bytes * (size_t)c->place.size;
    free(c->result);
    c->result = malloc(c->result_bytes + !c->result_bytes);
    CHECK(c->result);
    for (int i = 0; i < c->place.size; i++) {
        if (bytes) memcpy(c->result + (size_t)i * bytes, c->parts[i].data, bytes);
        free(c->parts[i].data);
        c->parts[i] = (Part){0};
    }
    c->gather_number++;
    send_to_all(c, MESSAGE_GATHER_ALL, c->gather_number, c->result, c->result_bytes);
    pthread_cond_broadcast(&c->changed);
}

/* Takes data over. */
static void put_part(Control *c, int rank, void *data, size_t bytes) {
    Part *part = &c->parts[rank];
    int here = 0;
    if (part->here) {
        free(data);
        fail_rank(c, rank, "takes part in an exchange twice");
        return;
    }
    *part = (Part){data, bytes, true};
    for (int i = 0; i < c->place.size; i++) here += c->parts[i].here;
    if (here == 1) c->gather_since = log_seconds();
    if (here == c->place.size) finish_gather(c);
}

static bool wait_changed(Control *c, double deadline) {
    double at = deadline < 0 ? 0 : deadline;
    struct timespec t = {.tv_sec = (time_t)at, .tv_nsec = (long)((at - (double)(time_t)at) * 1e9)};
    return pthread_cond_timedwait(&c->changed, &c->lock, &t) == 0;
}

bool control_all_gather(Control *c, const void *mine, size_t bytes, void *all, Error *err) {
    CHECK_OP(bytes, <=, GATHER_BYTES_MAX);
    if (c->place.size == 1) {
        if (bytes) memcpy(all, mine, bytes);
        return !control_failed(c, err);
    }
    void *copy = NULL;
    if (!c->place.rank) {
        copy = malloc(bytes + !bytes);
        if (!copy) return error_set(err, "no memory for %zu bytes", bytes);
        if (bytes) memcpy(copy, mine, bytes);
    }
    pthread_mutex_lock(&c->lock);
    uint32_t number = c->gather_number + 1;
    /* rank 0's thread watches the time and names who is missing; the margin is for its word to arrive */
    double deadline = log_seconds() + c->timeout * 1.2;
    if (!c->place.rank)
        put_part(c, 0, copy, bytes);
    else if (!message_send(c->links[0].fd, MESSAGE_GATHER, number, mine, bytes, send_deadline(c)) &&
             !c->failed)
        wait_changed(c, log_seconds() + 0.1); /* the thread finds the closed connection too, and the reason */
    while (c->gather_number < number && !c->failed && log_seconds() < deadline) wait_changed(c, deadline);
    bool done = c->gather_number >= number;
    if (!done) fail_rank(c, 0, "did not answer in an exchange of settings");
    if (done && c->result_bytes != bytes * (size_t)c->place.size) {
        fail_rank(c, 0, "answered an exchange of settings with another size (different versions?)");
        done = false;
    }
    if (done && bytes) memcpy(all, c->result, c->result_bytes);
    pthread_mutex_unlock(&c->lock);
    return done || !control_failed(c, err);
}

/* --- the thread --- */

static int link_rank(const Control *c, int index) {
    return c->place.rank ? 0 : index;
}

/* Lock held. A whole message has come over the link; its body may be taken (set to NULL). */
static void take_message(Control *c, int index) {
    Link *link = &c->links[index];
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
        if (bytes && !link->body[bytes - 1]) fail(c, (const char *)link->body);
        break;
    case MESSAGE_GATHER:
        if (c->place.rank) break;
        put_part(c, rank, link->body, bytes);
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
    default: fail_rank(c, rank, "sent a control message that is not understood (different versions?)"); break;
    }
}

/* Reads what has come over the link. False: it has closed. */
static bool read_link(Control *c, int index) {
    Link *link = &c->links[index];
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
            size_t most = (size_t)GATHER_BYTES_MAX * (c->place.rank ? (size_t)c->place.size : 1);
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
    Link *link = &c->links[index];
    close(link->fd);
    link->fd = -1;
    if (!link->left && !c->closing)
        fail_rank(c, link_rank(c, index), "died: its control connection closed without a goodbye");
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
    int open = ANSWER_OPEN;
    if (atomic_compare_exchange_strong(&c->answer, &open, ANSWER_ENDED)) c->end(c->end_context);
}

/* Lock held: heartbeats out, silences noticed. */
static void look_around(Control *c, double now, double paused) {
    double limit = SILENCE_SHARE * c->timeout;
    bool doubts = false;
    char what[128];
    for (int i = 0; i < c->link_count; i++) {
        Link *link = &c->links[i];
        if (link->fd < 0 || link->left) continue;
        /* this process itself was stopped for a while: what the others sent meanwhile is still to be read */
        if (paused > limit / 2) link->heard = now;
        doubts |= now - link->heard > DOUBT_SHARE * c->timeout;
        if (now - link->heard > limit) {
            snprintf(what, sizeof what, "has given no sign of life for %.1f s (stopped, or not reachable)",
                     now - link->heard);
            fail_rank(c, link_rank(c, i), what);
        }
    }
    atomic_store(&c->doubts, doubts);
    if (!c->place.rank) atomic_store(&c->laggard, find_laggard(c));
    uint32_t number = c->place.rank ? atomic_load(&c->begun) : (uint32_t)atomic_load(&c->laggard);
    if (!c->failed) send_to_all(c, MESSAGE_HEARTBEAT, number, NULL, 0);
    if (!c->place.rank && !c->failed) {
        bool some = false;
        for (int i = 0; i < c->place.size && !some; i++) some = c->parts[i].here;
        if (some && now - c->gather_since > c->timeout) say_missing(c);
    }
}

static void *control_thread(void *argument) {
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

static bool start_thread(Control *c, Error *err) {
    sigset_t all, before;
    sigfillset(&all); /* signals are for the program's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int e = pthread_create(&c->thread, NULL, control_thread, c);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    c->has_thread = !e;
    errno = e;
    return !e || error_set_errno(err, "a thread for the control connections");
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
    for (int i = 0; i < c->link_count; i++) c->links[i] = (Link){.fd = sockets[i], .heard = log_seconds()};
    count_hosts(c);
    if (c->link_count) {
        c->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (c->wake < 0) {
            error_set_errno(err, "an eventfd");
            goto out;
        }
        if (!start_thread(c, err)) goto out;
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
        if (!c->failed) send_to_all(c, MESSAGE_GOODBYE, 0, NULL, 0);
        double deadline = log_seconds() + GOODBYE_TIMEOUTS * c->timeout;
        while (!c->place.rank && !c->failed && !all_left(c) && log_seconds() < deadline)
            wait_changed(c, deadline);
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
