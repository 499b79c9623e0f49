/* torus_repair.c: a wire dies, the ranks stay: all agree, plan without it, and do again what is not complete.
 *
 * Every rank keeps a connection to rank 0 beside the wires' (TCP_CHANNEL_ALARM). Who finds a wire dead reports it there;
 * rank 0 stops all others, hears where each of them is, and tells all the dead wires and the oldest operation that some
 * rank has not completed. Since a collective needs all ranks, nobody is more than one operation ahead (but for roots of
 * broadcasts in a row: that is said); whoever is ahead takes part in the old one again, from its saved input, and throws
 * the result away. So sums are taken anew from unharmed inputs, and end the same on all ranks. */
#define _GNU_SOURCE
#include "base/check.h"
#include "base/log.h"
#include "comm/torus.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { DEAD_MAX = 8, ECHO_MILLISECONDS = 400 };

/* Of the timeout, which also holds how long it took to notice: for a message, and for connecting anew. */
static const double MESSAGE_SHARE = 0.6, CONNECT_SHARE = 0.2;

typedef enum { REPAIR_STOP = 1, REPAIR_REPORT, REPAIR_DECISION } RepairKind;

typedef struct {
    uint32_t kind, dead;
    uint64_t sequence; /* Torus.number of what is not complete: on the reporting rank, or on any */
    uint64_t newest;   /* decision: the newest operation that a rank has begun */
    uint32_t pair[DEAD_MAX][2];
} RepairMessage;

bool torus_save(Torus *t, const TorusCall *call, Error *err) {
    t->number++;
    if (t->plan.flat) return true; /* there are no other wires */
    TorusSaved *s = &t->saved[t->number % 2];
    size_t bytes = call->count * comm_type_bytes(call->type);
    s->number = 0;
    if (!torus_reserve(&s->data, &s->data_bytes, bytes, err)) return false;
    if (bytes) memcpy(s->data, call->data, bytes);
    if (call->offsets) memcpy(s->offsets, call->offsets, ((size_t)t->group->size + 1) * sizeof *s->offsets);
    s->call = *call;
    s->call.offsets = call->offsets ? s->offsets : NULL;
    s->header = t->group->header;
    s->number = t->number;
    return true;
}

/* --- messages --- */

/* With the rank at the other end of an alarm connection: they are in the order of ranks. */
static bool message_move(Torus *t, int alarm, RepairMessage *m, bool sends, Error *err) {
    int fd = t->alarm_fd[alarm], peer = t->group->rank ? 0 : alarm + 1;
    double begun = log_seconds();
    char what[96] = "no agreement about a dead wire";
    if (t->broken_peer >= 0)
        snprintf(what, sizeof what, "no agreement about the dead wire to rank %d (%s)",
                 t->group->world[t->broken_peer], comm_group_host(t->group, t->broken_peer));
    for (size_t done = 0; done < sizeof *m;) {
        ssize_t k = sends ? send(fd, (char *)m + done, sizeof *m - done, MSG_NOSIGNAL | MSG_DONTWAIT)
                          : recv(fd, (char *)m + done, sizeof *m - done, MSG_DONTWAIT);
        if (k > 0) {
            done += (size_t)k;
            continue;
        }
        if (k == 0 || (errno != EAGAIN && errno != EINTR))
            return comm_group_fault(t->group, peer,
                                    "the connection over which ranks agree about dead wires broke", err);
        struct pollfd ready = {.fd = fd, .events = sends ? POLLOUT : POLLIN};
        poll(&ready, 1, 10);
        if (comm_group_failed(t->group, err)) return false;
        if (log_seconds() - begun > MESSAGE_SHARE * t->group->timeout_seconds)
            return comm_group_fault(t->group, peer, what, err);
    }
    return true;
}

static void decision_add(RepairMessage *decision, const RepairMessage *report) {
    for (uint32_t i = 0; i < report->dead && i < DEAD_MAX; i++) {
        uint32_t a = report->pair[i][0], b = report->pair[i][1], low = a < b ? a : b, high = a < b ? b : a,
                 k = 0;
        while (k < decision->dead && (decision->pair[k][0] != low || decision->pair[k][1] != high)) k++;
        if (k == DEAD_MAX) continue;
        decision->pair[k][0] = low;
        decision->pair[k][1] = high;
        decision->dead += k == decision->dead;
    }
    decision->sequence = report->sequence < decision->sequence ? report->sequence : decision->sequence;
    decision->newest = report->sequence > decision->newest ? report->sequence : decision->newest;
}

static bool agree(Torus *t, RepairMessage *mine, RepairMessage *decision, Error *err) {
    RepairMessage stop = {.kind = REPAIR_STOP}, report;
    if (t->alarms < (t->group->rank ? 1 : t->group->size - 1))
        return comm_group_fault(t->group, t->broken_peer, "a wire died while ranks were leaving", err);
    if (t->group->rank) {
        if (!message_move(t, 0, mine, true, err)) return false;
        do {
            if (!message_move(t, 0, decision, false, err)) return false;
        } while (decision->kind == REPAIR_STOP);
        return true;
    }
    *decision = (RepairMessage){.kind = REPAIR_DECISION, .sequence = UINT64_MAX};
    decision_add(decision, mine);
    for (int i = 0; i < t->alarms; i++)
        if (!message_move(t, i, &stop, true, err)) return false;
    for (int i = 0; i < t->alarms; i++) {
        if (!message_move(t, i, &report, false, err)) return false;
        decision_add(decision, &report);
    }
    for (int i = 0; i < t->alarms; i++)
        if (!message_move(t, i, decision, true, err)) return false;
    return true;
}

/* --- the repair --- */

/* A connection also closes because its rank has died: then the control plane says so in a moment. */
static bool wait_for_echo(Torus *t, Error *err) {
    for (int i = 0; i < ECHO_MILLISECONDS / 10; i++) {
        if (comm_group_failed(t->group, err)) return false;
        poll(NULL, 0, 10);
    }
    return true;
}

/* A rank that is cut off, or -1. */
static int cut_off(const Torus *t) {
    for (int r = 0; r < t->group->size; r++) {
        bool wired = false;
        for (int a = 0; a < t->topology.axes; a++)
            for (int s = -1; s <= 1; s += 2) {
                const TopologyLink *link = topology_link(&t->topology, r, a, s);
                wired |= link && link->bytes_per_second > 0;
            }
        if (!wired) return r;
    }
    return -1;
}

/* BROKEN: a wire that the new plan needs is dead, too. */
static TorusStatus plan_anew(Torus *t, const RepairMessage *decision, Error *err) {
    char text[300];
    for (uint32_t i = 0; i < decision->dead; i++) {
        int a = (int)decision->pair[i][0], b = (int)decision->pair[i][1];
        if (!plan_topology_cut(&t->topology, a, b)) {
            comm_group_fault(t->group, b == t->group->rank ? a : b, "the connection broke", err);
            return TORUS_FAILED;
        }
        if (t->group->rank == 0)
            log_warn("the wire between rank %d (%s) and rank %d (%s) is dead at step %lld", a,
                     control_host(t->group->control, t->group->world[a]), b,
                     control_host(t->group->control, t->group->world[b]), (long long)t->group->step);
    }
    int unreached;
    plan_close(&t->plan);
    tcp_forget(t->tcp);
    if (!torus_plan(t, err)) {
        int lost = cut_off(t);
        comm_group_fault(t->group, lost < 0 ? (int)decision->pair[0][1] : lost,
                         lost < 0 ? err->text : "none of its wires is left", err);
        return TORUS_FAILED;
    }
    plan_describe(&t->plan, text, sizeof text);
    if (t->group->rank == 0) log_warn("planned anew without it: %s", text);
    if (torus_connect(t, CONNECT_SHARE * t->group->timeout_seconds, &unreached, err)) return TORUS_DONE;
    if (unreached < 0 || comm_group_failed(t->group, NULL)) return TORUS_FAILED;
    t->broken_peer = unreached;
    return TORUS_BROKEN;
}

/* Runs a saved operation again; into its own buffer, or into scratch if that is the caller's again. */
static TorusStatus run_again(Torus *t, const TorusSaved *s, bool current, Error *err) {
    TorusCall call = s->call;
    size_t bytes = call.count * comm_type_bytes(call.type);
    if (!current) {
        if (!torus_reserve(&t->scratch, &t->scratch_bytes, bytes, err)) return TORUS_FAILED;
        call.data = t->scratch;
    }
    if (bytes) memcpy(call.data, s->data, bytes);
    if (!torus_prepare(t, &call, err)) return TORUS_FAILED;
    t->header = s->header;
    return torus_run(t, err);
}

bool torus_repair(Torus *t, const TorusCall *call, TorusStatus status, Error *err) {
    uint64_t sequence = t->number;
    (void)call;
    while (status == TORUS_BROKEN || status == TORUS_ALARM) {
        RepairMessage mine = {.kind = REPAIR_REPORT, .sequence = sequence}, decision;
        if (status == TORUS_ALARM) t->broken_peer = -1;
        if (status == TORUS_BROKEN) {
            if (t->plan.flat) return comm_group_fault(t->group, t->broken_peer, "the connection broke", err);
            mine.dead = 1;
            mine.pair[0][0] = (uint32_t)t->group->rank;
            mine.pair[0][1] = (uint32_t)t->broken_peer;
            if (!wait_for_echo(t, err)) return false;
        }
        if (!agree(t, &mine, &decision, err)) return false;
        if (decision.newest - decision.sequence > 1)
            return comm_group_fault(
                t->group, t->broken_peer,
                "a wire died while ranks were several operations apart: it cannot be done again", err);
        status = plan_anew(t, &decision, err);
        if (status != TORUS_DONE) continue;
        for (uint64_t s = decision.sequence; s <= sequence; s++) {
            const TorusSaved *saved = &t->saved[s % 2];
            CHECK(saved->number == s);
            status = run_again(t, saved, s == sequence, err);
            if (status != TORUS_DONE) break;
        }
    }
    return status == TORUS_DONE;
}
