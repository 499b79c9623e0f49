/* plan.c: rings, positions, trees and the proof that a plan is one. The weights are in plan_weights.c, the
 * choice among algorithms in plan_choose.c. */
#include "comm/plan.h"
#include "base/check.h"
#include "comm/plan_internal.h"
#include <stdlib.h>
#include <string.h>

/* A wire slower than this share of the median of its axis is better avoided. */
#define SLOW_SHARE 0.6
/* A flat network says nothing of itself. */
#define FLAT_BANDWIDTH 1.25e9
#define FLAT_LATENCY   20e-6

static int coordinate_of(const Plan *plan, int rank, int axis) {
    return plan->place_of[rank] / plan->stride[axis] % plan->dim[axis];
}

int plan_step(const Plan *plan, int rank, int axis, int direction) {
    int n = plan->dim[axis], c = coordinate_of(plan, rank, axis);
    int to = (c + direction + n) % n;
    return plan->rank_at[plan->place_of[rank] + (to - c) * plan->stride[axis]];
}

static int plan_beside(const Plan *plan, int rank, int axis, int coordinate) {
    int c = coordinate_of(plan, rank, axis);
    return plan->rank_at[plan->place_of[rank] + (coordinate - c) * plan->stride[axis]];
}

PlanRing plan_axis_ring(const Plan *plan, const double *table, int axis, int direction, int rank) {
    int n = plan->dim[axis], cuts = 0;
    PlanRing ring = {.length = n, .index = coordinate_of(plan, rank, axis), .direction = direction};
    if (n == 2 && !direction) ring.direction = direction = 1;
    ring.next = plan_step(plan, rank, axis, direction < 0 ? -1 : 1);
    ring.prev = plan_step(plan, rank, axis, direction < 0 ? 1 : -1);
    if (n == 1) return ring;
    for (int k = 0; k < (n == 2 ? 1 : n); k++)
        if (table[plan_link(plan, plan_beside(plan, rank, axis, k), axis, 1)] <= 0) {
            cuts++;
            ring.first = (k + 1) % n;
        }
    if (cuts > 1 || (cuts && n == 2)) return (PlanRing){0};
    if (!cuts) return ring;
    ring.line = true;
    ring.direction = 1;
    ring.next = plan_step(plan, rank, axis, 1);
    ring.prev = plan_step(plan, rank, axis, -1);
    if (ring.index == ring.first) ring.prev = -1;
    if ((ring.index + 1) % n == ring.first) ring.next = -1;
    return ring;
}

PlanRing plan_colour_ring(const Plan *plan, const PlanColour *c, int phase, int rank) {
    if (c->cycle < 0)
        return plan_axis_ring(plan, c->avoids_slow ? plan->slow : plan->bandwidth, c->axis[phase],
                              c->direction, rank);
    size_t base = (size_t)c->cycle * (size_t)plan->size;
    int n = plan->size, at = plan->cycle_index[base + (size_t)rank], up = c->direction < 0 ? -1 : 1;
    return (PlanRing){.length = n,
                      .index = at,
                      .direction = c->direction,
                      .next = plan->cycle_rank[base + (size_t)((at + up + n) % n)],
                      .prev = plan->cycle_rank[base + (size_t)((at - up + n) % n)]};
}

PlanRing plan_ring(const Plan *plan, int colour, int phase, int rank) {
    return plan_colour_ring(plan, &plan->colour[colour], phase, rank);
}

int plan_position(const Plan *plan, int colour, int rank) {
    const PlanColour *c = &plan->colour[colour];
    if (c->cycle >= 0) return plan->cycle_index[(size_t)c->cycle * (size_t)plan->size + (size_t)rank];
    int position = 0;
    for (int p = 0; p < c->phases; p++)
        position = position * plan->dim[c->axis[p]] + coordinate_of(plan, rank, c->axis[p]);
    return position;
}

int plan_rank_at(const Plan *plan, int colour, int position) {
    const PlanColour *c = &plan->colour[colour];
    if (c->cycle >= 0) return plan->cycle_rank[(size_t)c->cycle * (size_t)plan->size + (size_t)position];
    int place = 0;
    for (int p = c->phases - 1; p >= 0; p--) {
        place += position % plan->dim[c->axis[p]] * plan->stride[c->axis[p]];
        position /= plan->dim[c->axis[p]];
    }
    return plan->rank_at[place];
}

bool plan_exchange(const Plan *plan, int axis, int rank, PlanRing *ring) {
    *ring = plan_axis_ring(plan, plan->slow, axis, 1, rank);
    if (!ring->length) *ring = plan_axis_ring(plan, plan->bandwidth, axis, 1, rank);
    return ring->length > 0;
}

bool plan_exchange_possible(const Plan *plan) {
    PlanRing ring;
    for (int a = 0; a < plan->axes; a++)
        for (int r = 0; r < plan->size; r++)
            if (!plan_exchange(plan, a, r, &ring)) return false;
    return true;
}

int plan_neighbours(const Plan *plan, int rank, int *neighbours) {
    int n = 0;
    for (int a = 0; a < plan->axes; a++)
        for (int s = -1; s <= 1; s += 2) {
            if (plan->dim[a] == 1 || plan->bandwidth[plan_link(plan, rank, a, s)] <= 0) continue;
            int peer = plan_step(plan, rank, a, s), i = 0;
            while (i < n && neighbours[i] < peer) i++;
            if (i < n && neighbours[i] == peer) continue;
            memmove(neighbours + i + 1, neighbours + i, (size_t)(n - i) * sizeof *neighbours);
            neighbours[i] = peer;
            n++;
        }
    return n;
}

bool plan_wire(const Plan *plan, int a, int b, int *axis, int *direction) {
    for (*axis = 0; *axis < plan->axes; ++*axis)
        for (*direction = 1; *direction >= -1; *direction -= 2)
            if (plan->dim[*axis] > 1 && plan_step(plan, a, *axis, *direction) == b &&
                plan->bandwidth[plan_link(plan, a, *axis, *direction)] > 0)
                return true;
    return false;
}

bool plan_tree(const Plan *plan, int root, int *parent) {
    int *queue = malloc((size_t)plan->size * sizeof *queue), head = 0, tail = 0;
    if (!queue) return false;
    for (int r = 0; r < plan->size; r++) parent[r] = -2;
    parent[root] = -1;
    queue[tail++] = root;
    while (head < tail) {
        int near[2 * PLAN_AXES_MAX], rank = queue[head++], n = plan_neighbours(plan, rank, near);
        for (int i = 0; i < n; i++)
            if (parent[near[i]] == -2) {
                parent[near[i]] = rank;
                queue[tail++] = near[i];
            }
    }
    free(queue);
    return tail == plan->size;
}

/* --- opening --- */

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static bool plan_allocate(Plan *plan) {
    size_t n = (size_t)plan->size, links = n * (size_t)plan->axes * 2;
    plan->rank_at = malloc(n * sizeof *plan->rank_at);
    plan->place_of = malloc(n * sizeof *plan->place_of);
    plan->bandwidth = calloc(links + 1, sizeof *plan->bandwidth);
    plan->slow = calloc(links + 1, sizeof *plan->slow);
    plan->cycle_rank = malloc(PLAN_CYCLES_MAX * n * sizeof *plan->cycle_rank);
    plan->cycle_index = malloc(PLAN_CYCLES_MAX * n * sizeof *plan->cycle_index);
    return plan->rank_at && plan->place_of && plan->bandwidth && plan->slow && plan->cycle_rank &&
           plan->cycle_index;
}

/* The prime factors of the size, ascending, so that neighbours in rank order exchange first and most. */
static void plan_shape_flat(Plan *plan) {
    plan->flat = true;
    int rest = plan->size;
    for (int p = 2; rest > 1; p++)
        for (; rest % p == 0; rest /= p) {
            CHECK_OP(plan->axes, <, PLAN_AXES_MAX);
            plan->dim[plan->axes++] = p;
        }
}

static void plan_fill_flat(Plan *plan) {
    plan->latency_seconds = FLAT_LATENCY;
    for (int r = 0; r < plan->size; r++) plan->rank_at[r] = plan->place_of[r] = r;
    for (size_t i = 0; i < (size_t)plan->size * (size_t)plan->axes * 2; i++)
        plan->bandwidth[i] = FLAT_BANDWIDTH;
}

static void plan_fill_links(Plan *plan, const Topology *topology) {
    plan->burst_bytes = topology->burst_bytes;
    plan->message_seconds = topology->message_seconds;
    memcpy(plan->rank_at, topology->rank_at, (size_t)plan->size * sizeof *plan->rank_at);
    memcpy(plan->place_of, topology->place_of, (size_t)plan->size * sizeof *plan->place_of);
    for (int r = 0; r < plan->size; r++)
        for (int a = 0; a < plan->axes; a++)
            for (int s = -1; s <= 1; s += 2) {
                double *to = &plan->bandwidth[plan_link(plan, r, a, s)];
                if (plan->dim[a] == 1 || topology_neighbour(topology, r, a, s) < 0) continue;
                const TopologyLink *link = topology_link(topology, r, a, s);
                *to = link->bytes_per_second;
                if (link->bytes_per_second > 0 && link->latency_seconds > plan->latency_seconds)
                    plan->latency_seconds = link->latency_seconds;
            }
}

/* Both directions of a wire live, or neither; an axis of 2 has one wire, with one bandwidth for both its names. */
static void plan_pair_links(Plan *plan, const Topology *topology) {
    for (int r = 0; r < plan->size; r++)
        for (int a = 0; a < plan->axes; a++) {
            double *plus = &plan->bandwidth[plan_link(plan, r, a, 1)];
            double *minus = &plan->bandwidth[plan_link(plan, r, a, -1)];
            if (plan->dim[a] != 2) continue;
            bool has_plus = topology_neighbour(topology, r, a, 1) >= 0;
            bool has_minus = topology_neighbour(topology, r, a, -1) >= 0;
            double least = !has_plus ? *minus : !has_minus || *plus < *minus ? *plus : *minus;
            *plus = *minus = least;
        }
    for (int r = 0; r < plan->size; r++)
        for (int a = 0; a < plan->axes; a++) {
            double *there = &plan->bandwidth[plan_link(plan, r, a, 1)];
            int peer = plan_step(plan, r, a, 1);
            double *back = &plan->bandwidth[plan_link(plan, peer, a, -1)];
            if (*there > 0 && *back > 0) continue;
            *there = *back = 0;
            if (plan->dim[a] == 2)
                plan->bandwidth[plan_link(plan, r, a, -1)] = plan->bandwidth[plan_link(plan, peer, a, 1)] = 0;
        }
}

static bool plan_mark_slow(Plan *plan) {
    size_t links = (size_t)plan->size * 2;
    double *sorted = malloc(links * sizeof *sorted);
    if (!sorted) return false;
    for (int a = 0; a < plan->axes; a++) {
        size_t n = 0;
        for (int r = 0; r < plan->size; r++)
            for (int s = -1; s <= 1; s += 2)
                if (plan->bandwidth[plan_link(plan, r, a, s)] > 0)
                    sorted[n++] = plan->bandwidth[plan_link(plan, r, a, s)];
        qsort(sorted, n, sizeof *sorted, compare_doubles);
        double least = n ? SLOW_SHARE * sorted[n / 2] : 0;
        for (int r = 0; r < plan->size; r++)
            for (int s = -1; s <= 1; s += 2) {
                size_t i = plan_link(plan, r, a, s);
                double back = plan->bandwidth[plan_link(plan, plan_step(plan, r, a, s), a, -s)];
                plan->slow[i] = plan->bandwidth[i] >= least && back >= least ? plan->bandwidth[i] : 0;
            }
    }
    free(sorted);
    return true;
}

bool plan_open(Plan *plan, const Topology *topology, int size, Error *err) {
    *plan = (Plan){.size = size};
    bool flat = topology->axes == 0 || topology->places != size;
    if (size < 1 || size > TOPOLOGY_PLACES_MAX)
        return error_set(err, "plan: %d ranks (1 to %d)", size, TOPOLOGY_PLACES_MAX);
    if (flat)
        plan_shape_flat(plan);
    else
        plan->axes = topology->axes;
    for (int a = 0, stride = 1; a < plan->axes; a++) {
        if (!flat) plan->dim[a] = topology->dim[a];
        plan->stride[a] = stride;
        stride *= plan->dim[a];
    }
    bool done = false;
    if (!plan_allocate(plan)) {
        error_set(err, "plan of %d ranks: no memory", size);
        goto out;
    }
    if (flat) {
        plan_fill_flat(plan);
    } else {
        plan_fill_links(plan, topology);
        plan_pair_links(plan, topology);
    }
    if (!plan_mark_slow(plan)) {
        error_set(err, "plan of %d ranks: no memory", size);
        goto out;
    }
    done = plan_weigh(plan, err) && plan_prove(plan, err);
    if (done) plan_choose(plan, NULL);
out:
    if (!done) plan_close(plan);
    return done;
}

void plan_close(Plan *plan) {
    free(plan->rank_at);
    free(plan->place_of);
    free(plan->bandwidth);
    free(plan->slow);
    free(plan->cycle_rank);
    free(plan->cycle_index);
    *plan = (Plan){0};
}

/* --- the proof --- */

static bool prove_ring(const Plan *plan, int colour, int phase, int rank, int *seen, Error *err) {
    PlanRing ring = plan_ring(plan, colour, phase, rank);
    if (ring.length < 1 || ring.index < 0 || ring.index >= ring.length)
        return error_set(err, "plan: colour %d phase %d has no ring at rank %d", colour, phase, rank);
    int at = rank, steps = 0, width = plan->size, range = plan->size, axis, direction;
    memset(seen, 0, (size_t)ring.length * sizeof *seen);
    for (int p = 0; p <= phase; p++) {
        range = width;
        width /= plan_ring(plan, colour, p, rank).length;
    }
    int first = plan_position(plan, colour, rank) / range;
    do {
        PlanRing here = plan_ring(plan, colour, phase, at);
        int position = plan_position(plan, colour, at);
        if (here.length != ring.length || here.line != ring.line || here.first != ring.first ||
            position / range != first || position / width % here.length != here.index)
            return error_set(err, "plan: colour %d phase %d: ranks %d and %d disagree", colour, phase, rank,
                             at);
        if (seen[here.index])
            return error_set(err, "plan: colour %d phase %d: the ring of rank %d meets rank %d twice", colour,
                             phase, rank, at);
        seen[here.index] = 1;
        steps++;
        if (here.next < 0 || ring.length == 1) break;
        if (!plan_wire(plan, at, here.next, &axis, &direction))
            return error_set(err, "plan: colour %d phase %d: no wire from rank %d to %d", colour, phase, at,
                             here.next);
        if (plan_ring(plan, colour, phase, here.next).prev != at)
            return error_set(err, "plan: colour %d phase %d: rank %d does not hear rank %d", colour, phase,
                             here.next, at);
        at = here.next;
    } while (at != rank);
    if (steps != ring.length)
        return error_set(err, "plan: colour %d phase %d: the ring of rank %d has %d of %d ranks", colour,
                         phase, rank, steps, ring.length);
    return true;
}

bool plan_prove(const Plan *plan, Error *err) {
    size_t n = (size_t)plan->size;
    int *seen = calloc(n, sizeof *seen), *owner = calloc(n, sizeof *owner);
    bool done = false;
    if (!seen || !owner) {
        error_set(err, "plan of %d ranks: no memory", plan->size);
        goto out;
    }
    for (int c = 0; c < plan->colours; c++) {
        for (int r = 0; r < plan->size; r++) {
            int position = plan_position(plan, c, r);
            if (position < 0 || position >= plan->size || owner[position] == c + 1 ||
                plan_rank_at(plan, c, position) != r) {
                error_set(err, "plan: colour %d: rank %d does not own one piece", c, r);
                goto out;
            }
            owner[position] = c + 1;
            for (int p = 0; p < plan->colour[c].phases; p++) {
                PlanRing ring = plan_ring(plan, c, p, r);
                bool begins = ring.line ? ring.prev < 0 : ring.index == 0; /* each ring is walked once */
                if ((begins || ring.length < 1) && !prove_ring(plan, c, p, r, seen, err)) goto out;
            }
        }
    }
    done = true;
out:
    free(seen);
    free(owner);
    return done;
}

/* --- for people --- */

static uint64_t hash_more(uint64_t hash, const void *data, size_t bytes) {
    const unsigned char *p = data;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ p[i]) * 0x100000001b3ull;
    return hash;
}

uint64_t plan_hash(const Plan *plan) {
    uint64_t hash = 0xcbf29ce484222325ull;
    size_t n = (size_t)plan->size;
    hash = hash_more(hash, plan->dim, sizeof plan->dim);
    hash = hash_more(hash, plan->rank_at, n * sizeof *plan->rank_at);
    hash = hash_more(hash, plan->bandwidth, n * (size_t)plan->axes * 2 * sizeof *plan->bandwidth);
    for (int c = 0; c < plan->colours; c++) {
        hash = hash_more(hash, plan->colour[c].axis, sizeof plan->colour[c].axis);
        hash = hash_more(hash, &plan->colour[c].direction, sizeof plan->colour[c].direction);
        hash = hash_more(hash, &plan->colour[c].cycle, sizeof plan->colour[c].cycle);
        hash = hash_more(hash, &plan->colour[c].weight, sizeof plan->colour[c].weight);
    }
    hash = hash_more(hash, &plan->whole_bytes_max, sizeof plan->whole_bytes_max);
    hash = hash_more(hash, &plan->split_bytes_max, sizeof plan->split_bytes_max);
    return hash_more(hash, plan->cycle_rank, (size_t)plan->cycles * n * sizeof *plan->cycle_rank);
}

void plan_describe(const Plan *plan, char *out, size_t size) {
    size_t at = 0;
    static const char names[] = "xyzw";
    if (size) out[0] = 0;
    for (int c = 0; c < plan->colours && at < size; c++) {
        const PlanColour *colour = &plan->colour[c];
        char name[PLAN_AXES_MAX + 8];
        size_t k = 0;
        for (int p = 0; p < colour->phases && colour->cycle < 0; p++)
            name[k++] = plan->axes <= TOPOLOGY_AXES_MAX ? names[colour->axis[p]] : 'h';
        name[k] = 0;
        int wrote = snprintf(out + at, size - at, "%s%s%s%s %.1f%%", c ? ", " : "",
                             colour->cycle < 0 ? name : "cycle",
                             colour->direction > 0   ? "+"
                             : colour->direction < 0 ? "-"
                                                     : "",
                             colour->avoids_slow ? " around slow" : "", 100 * colour->weight);
        at += wrote > 0 ? (size_t)wrote : 0;
    }
}
