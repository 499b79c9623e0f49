/* torus_tracks.c: how every operation of the torus backend is laid on tracks and streams; comm_torus.c runs them.
 *
 * What always holds: the blocks that cross a connection and their order follow from the plan and the call alone, the same
 * on both of its ends; sums are added in an order that the plan fixes. */
#include "base/check.h"
#include "comm/torus.h"
#include <stdio.h>
#include <string.h>

enum {
    PARTS_MAX = 16,       /* of a colour: more save no time */
    PIECE_BYTES = 4 << 10 /* parts are not made smaller than this for every rank */
};

/* --- tracks: a colour --- */

/* Around a ring for `hops` steps: down, towards the owners of the blocks, or up, from them. */
static Stream ring_stream(Stream base, Port *in, Port *out, int index, int way, int hops, bool down) {
    base.in = in;
    base.out = out;
    base.lag = 1;
    base.step = -way;
    base.recv_blocks = base.send_blocks = hops;
    base.first_send = down ? index + hops * way : index;
    base.first_recv = base.first_send - way;
    return base;
}

/* All blocks the way of the ring, or each the shorter way. Of an even length one way is a step longer then: for every
 * other part the other one. */
static void ring_streams(Track *k, const PlanRing *ring, Stream base, Port *prev, Port *next, bool down) {
    int n = ring->length, i = ring->index, hops = (n - k->part % 2) / 2;
    Stream *a = &k->stream[0], *b = &k->stream[1];
    k->streams = ring->direction ? 1 : 2;
    *a = ring_stream(base, prev, next, i, ring->direction ? ring->direction : 1,
                     ring->direction ? n - 1 : hops, down);
    *b = ring_stream(base, next, prev, i, -1, n - 1 - hops, down);
    a->gate = a;
    b->gate = b;
    b->last_after = down ? a : NULL;
}

/* What is above flows up, what is below flows down. */
static void line_streams(Track *k, const PlanRing *ring, Stream base, Port *prev, Port *next, bool down) {
    int n = ring->length, i = ring->index, q = (i - ring->first + n) % n;
    Stream *a = &k->stream[0], *b = &k->stream[1];
    k->streams = 2;
    *a = *b = base;
    a->in = b->out = prev;
    a->out = b->in = next;
    a->step = -1;
    b->step = 1;
    a->lag = b->lag = down ? 0 : 1;
    a->gate = prev ? a : NULL;
    b->gate = next ? b : NULL;
    a->first_recv = down ? ring->first + n - 1 : i - 1;
    a->first_send = down ? ring->first + n - 1 : i;
    b->first_recv = down ? ring->first : i + 1;
    b->first_send = down ? ring->first : i;
    a->recv_blocks = !prev ? 0 : down ? n - q : q;
    a->send_blocks = !next ? 0 : down ? n - 1 - q : q + 1;
    b->recv_blocks = !next ? 0 : down ? q + 1 : n - 1 - q;
    b->send_blocks = !prev ? 0 : down ? q : n - q;
    b->last_after = down ? a : NULL;
}

/* The streams of one phase. Going down (reducing), member i ends with block i; going up, it begins with it. */
static void phase_streams(Torus *t, Track *k, const PlanRing *ring, int low, int width, bool down) {
    Stream base = {.layout = &k->layout,
                   .low = low,
                   .width = width,
                   .length = ring->length,
                   .reduce = down,
                   .type = t->type,
                   .op = t->op,
                   .turn = k->part};
    k->streams = 0;
    if (ring->length == 1) return;
    Port *next = ring->next >= 0 ? colour_port(t, k->colour, !down, ring->next) : NULL;
    Port *prev = ring->prev >= 0 ? colour_port(t, k->colour, !down, ring->prev) : NULL;
    (ring->line ? line_streams : ring_streams)(k, ring, base, prev, next, down);
}

static void colour_advance(Torus *t, Track *k) {
    int phases = t->plan.colour[k->colour].phases;
    if (k->stage == k->stages) {
        k->done = true;
        return;
    }
    bool down = k->stage < phases;
    int phase = down ? k->stage : 2 * phases - 1 - k->stage;
    PlanRing ring = plan_ring(&t->plan, k->colour, phase, t->group->rank);
    int held = t->group->size;
    for (int p = 0; p < phase; p++) held /= plan_ring(&t->plan, k->colour, p, t->group->rank).length;
    int low = plan_position(&t->plan, k->colour, t->group->rank) / held * held;
    snprintf(k->name, sizeof k->name, "colour %d, %s of phase %d", k->colour,
             down ? "reduce-scatter" : "all-gather", phase);
    phase_streams(t, k, &ring, low, held / ring.length, down);
    k->stage++;
}

/* --- tracks: around every axis --- */

/* The elements of all of a part's ring, one after another, in its share of t->exchange. */
static void exchange_finish_axis(const Track *k) {
    const Layout *l = &k->layout;
    size_t count = l->count / (size_t)l->positions, bytes = count * l->element;
    memcpy(k->own, l->data, bytes);
    for (int b = 1; b < l->positions; b++)
        comm_reduce(k->own, l->data + (size_t)b * bytes, count, k->stream[0].type, k->stream[0].op);
}

/* Part p begins with axis p, so the parts meet on an axis one after another: their turns there are their stages. */
static void exchange_advance(Torus *t, Track *k) {
    int live[PLAN_AXES_MAX], axes = 0;
    for (int a = 0; a < t->plan.axes; a++)
        if (t->plan.dim[a] > 1) live[axes++] = a;
    if (k->stage) exchange_finish_axis(k);
    if (k->stage == axes) {
        k->done = true;
        return;
    }
    int axis = live[(k->part + k->stage) % axes];
    PlanRing ring;
    CHECK(plan_exchange(&t->plan, axis, t->group->rank, &ring));
    int n = ring.length, i = ring.index, q = (i - ring.first + n) % n;
    size_t bytes = k->own_count * k->layout.element;
    k->layout.positions = n;
    k->layout.count = k->own_count * (size_t)n;
    memcpy(k->layout.data + (size_t)i * bytes, k->own, bytes);
    snprintf(k->name, sizeof k->name, "exchange on axis %d", axis);
    Stream base = {.layout = &k->layout,
                   .width = 1,
                   .length = n,
                   .lag = 1,
                   .type = t->type,
                   .op = t->op,
                   .turn = t->tracks == 1 ? 0 : k->stage};
    Stream *a = &k->stream[0], *b = &k->stream[1];
    *a = *b = base;
    a->in = b->out = ring.prev >= 0 ? torus_port(t, ring.prev) : NULL;
    a->out = b->in = ring.next >= 0 ? torus_port(t, ring.next) : NULL;
    a->gate = a->in ? a : NULL;
    b->gate = b->in ? b : NULL;
    a->step = -1;
    b->step = 1;
    a->first_send = b->first_send = i;
    a->first_recv = i - 1;
    b->first_recv = i + 1;
    a->recv_blocks = ring.line ? q : n / 2;
    a->send_blocks = !ring.line ? n / 2 : a->out ? q + 1 : 0;
    b->recv_blocks = ring.line ? n - 1 - q : (n - 1) / 2;
    b->send_blocks = !ring.line ? (n - 1) / 2 : b->out ? n - q : 0;
    k->streams = n == 2 && !ring.line ? 1 : 2; /* the same port */
    k->stage++;
}

/* --- tracks: from one to others, as it is --- */

static void once_advance(Torus *t, Track *k) {
    (void)t;
    k->done = true;
}

/* Received from `in` (may be NULL) and handed to each of outs. */
static void once_begin(Torus *t, Track *k, Port *in, Port *const *out, int outs) {
    *k = (Track){.advance = once_advance, .name = "broadcast"};
    k->layout = (Layout){.data = t->data, .element = 1, .positions = 1, .count = t->count};
    k->streams = outs ? outs : 1;
    for (int i = 0; i < k->streams; i++) {
        Stream *s = &k->stream[i];
        *s = (Stream){.layout = &k->layout, .width = 1, .length = 1, .step = 1, .turn = -1};
        s->in = i == 0 ? in : NULL;
        s->recv_blocks = s->in != NULL;
        s->out = outs ? out[i] : NULL;
        s->send_blocks = s->out != NULL;
        s->gate = in ? &k->stream[0] : NULL;
    }
}

/* --- beginning --- */

static void port_begin(Port *port) {
    port->turn_in = port->turn_out = 0;
    port->full = port->empty = false;
}

static void torus_begin(Torus *t, void *data, size_t count, CommType type, CommOp op) {
    t->data = data;
    t->count = count;
    t->type = type;
    t->op = op;
    t->header = t->group->header;
    t->group->algorithm = t->algorithm;
    t->tracks = 0;
    t->headers_with_data = false;
    for (int i = 0; i < t->ports; i++) {
        t->port[i].header_in = t->port[i].header_out = 0;
        port_begin(&t->port[i]);
    }
    for (int c = 0; c < t->plan.colours; c++)
        for (int half = 0; half < TORUS_HALVES; half++)
            for (int i = 0; i < t->colour[c][half].ports; i++) port_begin(&t->colour[c][half].port[i]);
}

static size_t share(size_t count, double upto) {
    size_t n = (size_t)((double)count * upto);
    return n < count ? n : count;
}

/* How the data is cut: into the colours of the plan, each into `parts`. Small ones are one: more would be more steps
 * only. */
typedef struct {
    int colours, parts;
} Cut;

static Cut torus_cut(const Torus *t, size_t bytes, bool shared_out) {
    if (shared_out && bytes <= t->plan.single_bytes_max) return (Cut){1, 1};
    int colours = t->plan.colours, most = TORUS_TRACKS_MAX / colours;
    size_t parts = bytes / ((size_t)colours * (size_t)t->group->size * PIECE_BYTES);
    if (most > PARTS_MAX) most = PARTS_MAX;
    if (t->plan.flat && t->plan.colour[0].phases == 1) most = 1; /* nothing overlaps */
    if (parts > 1) parts &= ~(size_t)1;                          /* see ring_streams */
    return (Cut){colours, parts < 1 ? 1 : parts > (size_t)most ? most : (int)parts};
}

/* Elements of a range that lie before a part of a colour. */
static size_t part_from(const Torus *t, Cut cut, int colour, int part, size_t count) {
    if (part == cut.parts) colour++, part = 0;
    if (colour == cut.colours) return count;
    double upto = t->weight_before[colour] + t->plan.colour[colour].weight * part / cut.parts;
    return colour + part ? share(count, upto) : 0;
}

/* A track for each part of each colour, over stages from .. to of 2 * phases; offsets: every rank's own range, or
 * NULL. */
static void colours_begin(Torus *t, const size_t *offsets, bool down, bool up) {
    size_t n = (size_t)t->group->size, element = comm_type_bytes(t->type);
    Cut cut = torus_cut(t, t->count * element, offsets);
    t->tracks = cut.colours * cut.parts;
    snprintf(t->algorithm, sizeof t->algorithm, t->plan.flat ? "halving" : "rings, %d colour%s", cut.colours,
             cut.colours > 1 ? "s" : "");
    for (int i = 0; i < t->tracks; i++) {
        Track *k = &t->track[i];
        int c = i % cut.colours, part = i / cut.colours, phases = t->plan.colour[c].phases;
        k->advance = colour_advance;
        k->colour = c;
        k->part = part;
        k->done = false;
        k->streams = 0;
        k->stage = down ? 0 : phases;
        k->stages = up ? 2 * phases : phases;
        k->layout = (Layout){.data = t->data, .element = element, .positions = t->group->size};
        if (!offsets) {
            k->layout.base = part_from(t, cut, c, part, t->count);
            k->layout.count = part_from(t, cut, c, part + 1, t->count) - k->layout.base;
            continue;
        }
        size_t *start = t->start + (size_t)i * (n + 1), *at = t->at + (size_t)i * n;
        start[0] = 0;
        for (int p = 0; p < t->group->size; p++) {
            int rank = plan_rank_at(&t->plan, c, p);
            size_t length = offsets[rank + 1] - offsets[rank];
            size_t from = part_from(t, cut, c, part, length), to = part_from(t, cut, c, part + 1, length);
            at[p] = offsets[rank] + from;
            start[p + 1] = start[p] + to - from;
        }
        k->layout.start = start;
        k->layout.at = at;
    }
}

/* As many tracks as there are axes, or one. */
static bool exchange_begin(Torus *t, bool split, Error *err) {
    size_t element = comm_type_bytes(t->type), widest = 1;
    int axes = 0;
    for (int a = 0; a < t->plan.axes; a++) {
        widest = (size_t)t->plan.dim[a] > widest ? (size_t)t->plan.dim[a] : widest;
        axes += t->plan.dim[a] > 1;
    }
    if (!torus_reserve(&t->exchange, &t->exchange_bytes, widest * t->count * element, err)) return false;
    snprintf(t->algorithm, sizeof t->algorithm, "%s", plan_algorithm_names[split ? PLAN_SPLIT : PLAN_WHOLE]);
    t->headers_with_data = true;
    t->tracks = split ? axes : 1;
    for (int p = 0; p < t->tracks; p++) {
        size_t parts = (size_t)t->tracks, from = t->count * (size_t)p / parts;
        t->track[p] = (Track){.advance = exchange_advance,
                              .part = p,
                              .own = (char *)t->data + from * element,
                              .own_count = t->count * (size_t)(p + 1) / parts - from,
                              .layout = {.data = t->exchange + widest * from * element, .element = element}};
    }
    return true;
}

bool torus_prepare(Torus *t, const TorusCall *call, Error *err) {
    torus_begin(t, call->data, call->count, call->type, call->op);
    Port *out[TORUS_PEERS_MAX];
    int outs = 0, rank = t->group->rank;
    PlanAlgorithm algorithm = plan_algorithm(&t->plan, call->count * comm_type_bytes(call->type));
    switch (call->operation) {
    case OPERATION_BARRIER: algorithm = PLAN_WHOLE; /* fall through */
    case OPERATION_ALL_REDUCE:
        if (algorithm != PLAN_RINGS && call->count && t->exchanges)
            return exchange_begin(t, algorithm == PLAN_SPLIT, err);
        colours_begin(t, NULL, true, true);
        return true;
    case OPERATION_REDUCE_SCATTER: colours_begin(t, call->offsets, true, false); return true;
    case OPERATION_ALL_GATHER: colours_begin(t, call->offsets, false, true); return true;
    case OPERATION_BROADCAST:
        if (!plan_tree(&t->plan, call->peer, t->parent))
            return error_set(err, "broadcast from rank %d: the wires that are left do not reach all ranks",
                             call->peer);
        for (int i = 0; i < t->ports; i++)
            if (t->parent[t->port[i].peer] == rank) out[outs++] = &t->port[i];
        snprintf(t->algorithm, sizeof t->algorithm, "tree");
        once_begin(t, &t->track[0], t->parent[rank] < 0 ? NULL : torus_port(t, t->parent[rank]), out, outs);
        t->tracks = 1;
        return true;
    case OPERATION_SEND:
    case OPERATION_RECV: break;
    }
    CHECK(false); /* only collectives come here */
    return false;
}

void torus_prepare_pair(Torus *t, Port *port, void *data, size_t bytes, bool sends) {
    torus_begin(t, data, bytes, COMM_UINT8, COMM_SUM);
    t->header.operation = OPERATION_SEND; /* the same on both sides */
    snprintf(t->algorithm, sizeof t->algorithm, "pair");
    once_begin(t, &t->track[0], sends ? NULL : port, &port, sends);
    snprintf(t->track[0].name, sizeof t->track[0].name, sends ? "send" : "receive");
    t->tracks = 1;
}
