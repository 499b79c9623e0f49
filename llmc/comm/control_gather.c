/* control_gather.c: exchanges of settings over the control connections: rank 0 collects the parts, and sends them all to
 * everyone. See control.h. */
#define _DEFAULT_SOURCE
#include "base/check.h"
#include "base/log.h"
#include "comm/control_internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- rank 0; lock held --- */

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
    snprintf(
        reason, sizeof reason,
        "rank%s %s (%s) did not take part in an exchange of settings within %.3g s (stuck, or in another "
        "part of the program?)",
        missing > 1 ? "s" : "", list, c->hosts[first], c->timeout);
    control_fail(c, reason);
}

/* All parts are there. */
static void finish_gather(Control *c) {
    size_t bytes = c->parts[0].bytes;
    for (int i = 1; i < c->place.size; i++)
        if (c->parts[i].bytes != bytes) {
            char what[128];
            snprintf(what, sizeof what,
                     "brings %zu bytes to an exchange of settings, rank 0 %zu (different versions?)",
                     c->parts[i].bytes, bytes);
            control_fail_rank(c, i, what);
            return;
        }
    c->result_bytes = bytes * (size_t)c->place.size;
    free(c->result);
    c->result = malloc(c->result_bytes + !c->result_bytes);
    CHECK(c->result);
    for (int i = 0; i < c->place.size; i++) {
        if (bytes) memcpy(c->result + (size_t)i * bytes, c->parts[i].data, bytes);
        free(c->parts[i].data);
        c->parts[i] = (ControlPart){0};
    }
    c->gather_number++;
    control_send_to_all(c, MESSAGE_GATHER_ALL, c->gather_number, c->result, c->result_bytes);
    pthread_cond_broadcast(&c->changed);
}

void control_put_part(Control *c, int rank, void *data, size_t bytes) {
    ControlPart *part = &c->parts[rank];
    int here = 0;
    if (part->here) {
        free(data);
        control_fail_rank(c, rank, "takes part in an exchange twice");
        return;
    }
    *part = (ControlPart){data, bytes, true};
    for (int i = 0; i < c->place.size; i++) here += c->parts[i].here;
    if (here == 1) c->gather_since = log_seconds();
    if (here == c->place.size) finish_gather(c);
}

void control_check_gather(Control *c, double now) {
    bool some = false;
    for (int i = 0; i < c->place.size && !some; i++) some = c->parts[i].here;
    if (some && now - c->gather_since > c->timeout) say_missing(c);
}

/* --- all ranks --- */

bool control_all_gather(Control *c, const void *mine, size_t bytes, void *all, Error *err) {
    CHECK_OP(bytes, <=, CONTROL_GATHER_BYTES_MAX);
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
        control_put_part(c, 0, copy, bytes);
    else if (!message_send(c->links[0].fd, MESSAGE_GATHER, number, mine, bytes, control_send_deadline(c)) &&
             !c->failed) /* the thread finds the closed connection too, and the reason */
        control_wait_changed(c, log_seconds() + 0.1);
    while (c->gather_number < number && !c->failed && log_seconds() < deadline)
        control_wait_changed(c, deadline);
    bool done = c->gather_number >= number;
    if (!done) control_fail_rank(c, 0, "did not answer in an exchange of settings");
    if (done && c->result_bytes != bytes * (size_t)c->place.size) {
        control_fail_rank(c, 0, "answered an exchange of settings with another size (different versions?)");
        done = false;
    }
    if (done && bytes) memcpy(all, c->result, c->result_bytes);
    pthread_mutex_unlock(&c->lock);
    return done || !control_failed(c, err);
}
