/* control_internal.h: what the files of the control plane share: control.c (failures, opening and closing),
 * control_gather.c (exchanges) and control_thread.c (what each rank's thread hears and says). See control.h.
 *
 * Rank 0 is the hub: it hears everyone's heartbeat, decides that a rank is lost, and passes every reason on. The others
 * watch rank 0 alone. One thread on every rank reads the control connections; everything that changes is behind one lock,
 * except `failed`, which is only ever set. A message is written by whoever has something to say, so that it is on its way
 * before that thread goes on (and perhaps exits). */
#ifndef LLMC_COMM_CONTROL_INTERNAL_H
#define LLMC_COMM_CONTROL_INTERNAL_H
#include "comm/control.h"
#include "comm/message.h"
#include "comm/rendezvous.h"
#include <pthread.h>
#include <stdatomic.h>

enum { CONTROL_GATHER_BYTES_MAX = 1 << 20 };

typedef enum { CONTROL_ANSWER_OPEN, CONTROL_ANSWER_GIVEN, CONTROL_ANSWER_ENDED } ControlAnswer;

/* A connection, and the message of it that has come so far. Only the thread reads; fd is changed under the lock. */
typedef struct {
    int fd; /* -1: none, or gone */
    bool left;
    double heard;
    uint32_t begun; /* rank 0: operations */
    Message head;
    unsigned char *body;
    size_t got; /* bytes of head and body */
} ControlLink;

/* One rank's part of the exchange under way, on rank 0. */
typedef struct {
    void *data;
    size_t bytes;
    bool here;
} ControlPart;

struct Control {
    ControlPlace place;
    double timeout;
    HostName *hosts;
    int *local_rank, host_count;
    int link_count; /* rank 0: size, by rank; others: 1, to rank 0 */
    ControlLink *links;
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
    ControlPart *parts;                /* rank 0 (size) */
    unsigned char *result;             /* of the last exchange */
    size_t result_bytes;
    atomic_uint begun;
    atomic_int laggard;
    atomic_bool doubts;
    void (*end)(void *context);
    void *end_context;
    double grace, failed_at; /* failed_at: 0 until the thread has seen it */
    atomic_int answer;       /* ControlAnswer */
    atomic_bool held;
};

/* --- control.c; lock held --- */

/* The first reason wins, here and, through rank 0, nearly everywhere. */
void control_fail(Control *c, const char *reason);
/* The same; the reason is "rank 3 (host) " and what is wrong with it. */
void control_fail_rank(Control *c, int rank, const char *what);
void control_send_to_all(Control *c, uint32_t type, uint32_t number, const void *body, size_t bytes);
/* For a message that is sent now. */
double control_send_deadline(const Control *c);
/* Until something has changed, or the deadline (log_seconds): then false. */
bool control_wait_changed(Control *c, double deadline);

/* --- control_gather.c: rank 0, lock held --- */

/* A rank's part of the exchange under way has come; takes data over. */
void control_put_part(Control *c, int rank, void *data, size_t bytes);
/* Fails if the exchange under way has waited for longer than the timeout. */
void control_check_gather(Control *c, double now);

/* --- control_thread.c --- */

bool control_start_thread(Control *c, Error *err);
#endif
