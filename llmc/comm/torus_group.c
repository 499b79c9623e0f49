/* torus_group.c: opening and closing the torus backend, the functions it offers, and what happens when a wire dies.
 * See torus.h and comm_torus.c. */
#define _GNU_SOURCE
#include "base/check.h"
#include "base/log.h"
#include "comm/torus.h"
#include <stdlib.h>
#include <string.h>

Port *torus_port(Torus *t, int peer) {
    for (int i = 0; i < t->ports; i++)
        if (t->port[i].peer == peer) return &t->port[i];
    CHECK(false); /* every peer of a colour is a neighbour */
    return NULL;
}

Port *colour_port(Torus *t, int colour, int half, int peer) {
    ColourPorts *k = &t->colour[colour][half];
    for (int i = 0; i < k->ports; i++)
        if (k->port[i].peer == peer) return &k->port[i];
    CHECK(false); /* the plan has the peer */
    return NULL;
}

bool torus_reserve(char **buffer, size_t *have, size_t bytes, Error *err) {
    if (bytes <= *have) return true;
    free(*buffer);
    *buffer = malloc(bytes);
    *have = *buffer ? bytes : 0;
    return *buffer || error_set(err, "torus: no memory for %zu bytes", bytes);
}

/* --- opening --- */

static bool want(TcpWant *wants, int *n, int peer, int channel) {
    for (int i = 0; i < *n; i++)
        if (wants[i].peer == peer && wants[i].channel == channel) return false;
    CHECK_OP(*n, <, TCP_CONNECTIONS_MAX);
    wants[(*n)++] = (TcpWant){peer, channel};
    return true;
}

static int colour_channel(int colour, int half) {
    return TCP_CHANNEL_COLOUR + colour * TORUS_HALVES + half;
}

/* All connections of the plan: to neighbours, and of every colour. */
bool torus_connect(Torus *t, double timeout_seconds, int *unreached, Error *err) {
    static const Port open_port = {.header_out = sizeof(CommHeader), .header_in = sizeof(CommHeader)};
    TcpWant wants[TCP_CONNECTIONS_MAX];
    int n = 0, near[TORUS_PEERS_MAX], rank = t->group->rank;
    t->ports = plan_neighbours(&t->plan, rank, near);
    if (!t->plan.flat)
        for (int r = rank ? 0 : 1; r < (rank ? 1 : t->group->size); r++)
            want(wants, &n, r, TCP_CHANNEL_ALARM);
    for (int i = 0; i < t->ports; i++) want(wants, &n, near[i], TCP_CHANNEL_CONTROL);
    for (int c = 0; c < t->plan.colours; c++) {
        ColourPorts *k = t->colour[c];
        k[0].ports = k[1].ports = 0;
        for (int p = 0; p < t->plan.colour[c].phases; p++) {
            PlanRing ring = plan_ring(&t->plan, c, p, rank);
            int peers[2] = {ring.next, ring.prev};
            for (int i = 0; i < 2 * TORUS_HALVES && ring.length > 1; i++) {
                int peer = peers[i % 2], half = i / 2;
                if (peer < 0 || !want(wants, &n, peer, colour_channel(c, half))) continue;
                k[half].port[k[half].ports] = open_port;
                k[half].port[k[half].ports++].peer = peer;
            }
        }
    }
    if (!tcp_connect(t->tcp, &t->plan, &t->topology, wants, n, timeout_seconds, unreached, err)) return false;
    t->alarms = 0;
    for (int r = 0; r < t->group->size; r++)
        if (tcp_fd(t->tcp, r, TCP_CHANNEL_ALARM) >= 0)
            t->alarm_fd[t->alarms++] = tcp_fd(t->tcp, r, TCP_CHANNEL_ALARM);
    for (int i = 0; i < t->ports; i++)
        t->port[i] = (Port){.peer = near[i], .fd = tcp_fd(t->tcp, near[i], TCP_CHANNEL_CONTROL)};
    for (int c = 0; c < t->plan.colours; c++)
        for (int half = 0; half < TORUS_HALVES; half++) {
            ColourPorts *k = &t->colour[c][half];
            for (int i = 0; i < k->ports; i++)
                k->port[i].fd = tcp_fd(t->tcp, k->port[i].peer, colour_channel(c, half));
        }
    return true;
}

bool torus_plan(Torus *t, Error *err) {
    if (!plan_open(&t->plan, &t->topology, t->group->size, err)) return false;
    const char *forced = getenv("TOROID_TORUS_ALGORITHM");
    if (!plan_choose(&t->plan, forced))
        return error_set(err, "TOROID_TORUS_ALGORITHM=%.40s: not one of auto, whole, split, rings", forced);
    t->exchanges = plan_exchange_possible(&t->plan);
    t->weight_before[0] = 0;
    for (int c = 0; c < t->plan.colours; c++)
        t->weight_before[c + 1] = t->weight_before[c] + t->plan.colour[c].weight;
    return true;
}

static void torus_close(CommGroup *group) {
    Torus *t = group->state;
    if (!t) return;
    tcp_close(t->tcp);
    plan_close(&t->plan);
    topology_close(&t->topology);
    free(t->staging);
    free(t->exchange);
    free(t->scratch);
    for (int i = 0; i < 2; i++) {
        free(t->saved[i].data);
        free(t->saved[i].offsets);
    }
    free(t->alarm_fd);
    free(t->polls);
    free(t->polled);
    free(t->start);
    free(t->at);
    free(t->parent);
    free(t);
    group->state = NULL;
}

static bool torus_usable(const CommGroup *group, Error *err) {
    const Topology *t = group->topology;
    return t->axes == 0 || t->places == control_size(group->control) ||
           error_set(err, "the topology has %d places for %d ranks (--comm hosts: one for each host)",
                     t->places, control_size(group->control));
}

static bool torus_open(CommGroup *group, Error *err) {
    Torus *t = calloc(1, sizeof *t);
    size_t n = (size_t)group->size;
    int unreached;
    group->state = t;
    if (!t) return error_set(err, "torus: no memory");
    t->group = group;
    t->alarm_fd = malloc(n * sizeof *t->alarm_fd);
    t->polls = malloc((TORUS_POLLS_MAX + n) * sizeof *t->polls);
    t->polled = malloc(TORUS_POLLS_MAX * sizeof(Port *));
    for (int i = 0; i < 2; i++) t->saved[i].offsets = malloc((n + 1) * sizeof *t->saved[i].offsets);
    t->staging = malloc(STREAM_STAGING_BYTES);
    t->start = malloc(TORUS_TRACKS_MAX * (n + 1) * sizeof *t->start);
    t->at = malloc(TORUS_TRACKS_MAX * n * sizeof *t->at);
    t->parent = malloc(n * sizeof *t->parent);
    bool done = t->staging && t->start && t->at && t->parent && t->alarm_fd && t->polls && t->polled &&
                        t->saved[0].offsets && t->saved[1].offsets
                    ? true
                    : error_set(err, "torus: no memory");
    done = done &&
           plan_topology_among(&t->topology, group->topology, group->place ? group->place : group->world,
                               group->size, err) &&
           torus_plan(t, err) && tcp_open(&t->tcp, group, err) &&
           torus_connect(t, group->timeout_seconds, &unreached, err);
    if (!done) torus_close(group);
    return done;
}

/* --- operations --- */

static bool torus_collective(CommGroup *group, const TorusCall *call, Error *err) {
    Torus *t = group->state;
    if (group->size == 1) return true;
    if (!torus_save(t, call, err) || !torus_prepare(t, call, err)) return false;
    TorusStatus status = torus_run(t, err);
    if (status == TORUS_BROKEN || status == TORUS_ALARM) return torus_repair(t, call, status, err);
    return status == TORUS_DONE;
}

static bool torus_all_reduce(CommGroup *group, void *data, size_t count, CommType type, CommOp op,
                             Error *err) {
    TorusCall call = {
        .operation = OPERATION_ALL_REDUCE, .data = data, .count = count, .type = type, .op = op};
    return torus_collective(group, &call, err);
}

static bool torus_reduce_scatter(CommGroup *group, void *data, const size_t *offsets, CommType type,
                                 CommOp op, Error *err) {
    TorusCall call = {.operation = OPERATION_REDUCE_SCATTER,
                      .data = data,
                      .count = offsets[group->size],
                      .offsets = offsets,
                      .type = type,
                      .op = op};
    return torus_collective(group, &call, err);
}

static bool torus_all_gather(CommGroup *group, void *data, const size_t *offsets, CommType type, Error *err) {
    TorusCall call = {.operation = OPERATION_ALL_GATHER,
                      .data = data,
                      .count = offsets[group->size],
                      .offsets = offsets,
                      .type = type};
    return torus_collective(group, &call, err);
}

static bool torus_broadcast(CommGroup *group, void *data, size_t bytes, int root, Error *err) {
    TorusCall call = {
        .operation = OPERATION_BROADCAST, .data = data, .count = bytes, .type = COMM_UINT8, .peer = root};
    return torus_collective(group, &call, err);
}

static bool torus_barrier(CommGroup *group, Error *err) {
    int32_t one = 1;
    TorusCall call = {.operation = OPERATION_BARRIER, .data = &one, .count = 1, .type = COMM_INT32};
    return torus_collective(group, &call, err);
}

static bool torus_pair(CommGroup *group, void *data, size_t bytes, int peer, bool sends, Error *err) {
    Torus *t = group->state;
    TcpWant direct = {peer, TCP_CHANNEL_DIRECT};
    int unreached;
    if (tcp_fd(t->tcp, peer, TCP_CHANNEL_DIRECT) < 0 &&
        !tcp_connect(t->tcp, &t->plan, &t->topology, &direct, 1, group->timeout_seconds, &unreached, err))
        return false;
    Port port = {.peer = peer, .fd = tcp_fd(t->tcp, peer, TCP_CHANNEL_DIRECT)};
    torus_prepare_pair(t, &port, data, bytes, sends);
    int ports = t->ports, alarms = t->alarms;
    t->ports = t->alarms = 0;
    TorusStatus status = torus_run(t, err);
    t->ports = ports;
    t->alarms = alarms;
    if (status == TORUS_BROKEN) return comm_group_fault(group, peer, "the connection broke", err);
    return status == TORUS_DONE;
}

static bool torus_send(CommGroup *group, const void *data, size_t bytes, int to, Error *err) {
    return torus_pair(group, (void *)(uintptr_t)data, bytes, to, true, err);
}

static bool torus_recv(CommGroup *group, void *data, size_t bytes, int from, Error *err) {
    return torus_pair(group, data, bytes, from, false, err);
}

static void torus_describe(const CommGroup *group, char *out, size_t size) {
    const Torus *t = group->state;
    char colours[200] = "";
    if (!t) return;
    plan_describe(&t->plan, colours, sizeof colours);
    size_t n = (size_t)snprintf(out, size, "%s", t->plan.flat ? "flat, halving over TCP" : colours);
    size_t bytes = t->plan.split_bytes_max;
    if (n < size && bytes == SIZE_MAX)
        snprintf(out + n, size - n, "; for all sizes whole around every axis");
    else if (n < size && bytes)
        snprintf(out + n, size - n, "; up to %zu B whole around every axis", bytes);
}

void torus_break_wire(CommGroup *group, int peer) {
    Torus *t = group->state;
    tcp_break(t->tcp, peer);
}

const CommBackend comm_backend_torus = {
    .name = "torus",
    .usable = torus_usable,
    .open = torus_open,
    .close = torus_close,
    .all_reduce = torus_all_reduce,
    .reduce_scatter = torus_reduce_scatter,
    .all_gather = torus_all_gather,
    .broadcast = torus_broadcast,
    .send = torus_send,
    .recv = torus_recv,
    .barrier = torus_barrier,
    .describe = torus_describe,
};
