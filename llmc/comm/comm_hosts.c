/* comm_hosts.c: the backend of several ranks in each of several hosts: shared memory inside them, the torus among them.
 *
 * Rank number l of every host forms a torus with the l-th ranks of all others, over the wires of the hosts. A large sum
 * is scattered inside each host, summed share by share in these tori at the same time, and gathered inside each host: so
 * every byte crosses a wire as often as if each host were one rank. Small sums go by the first rank of each host alone.
 *
 * What always holds: a topology has a place for each host, in the order of their first ranks; all hosts have the same
 * number of ranks, or the group (a part of the world, then) is one flat torus of all. */
#include "base/check.h"
#include "comm/backend.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Up to here, the steps that are saved are worth more than the share of the others. */
enum { SMALL_BYTES = 64 << 10, ALIGNMENT_BYTES = 2 << 20 };

enum { LAYER_LOCAL = 1, LAYER_ACROSS, LAYER_PAIRS };

typedef struct {
    int hosts, locals; /* hosts * locals == size */
    int host, own;     /* this rank's host, and its number there */
    int *rank_of;      /* (hosts, locals) */
    int *world;        /* (size + hosts + locals): of the groups */
    CommGroup local, across, pairs;
    bool has_local, has_across, has_pairs;
    int *place; /* (hosts) in the topology */
    Topology flat;
    size_t *local_offsets, *across_offsets;
    char *scratch;
    size_t scratch_bytes;
    void **blocks; /* of hosts_alloc */
    int num_blocks;
    char algorithm[64];
} Hosts;

/* --- who is where --- */

/* Of n ranks, world[r]: host numbers in the order of their first ranks; returns how many there are. */
static int number_hosts(const Control *control, const int *world, int n, int *host) {
    int hosts = 0;
    for (int r = 0; r < n; r++) {
        int same = 0;
        while (strcmp(control_host(control, world ? world[same] : same),
                      control_host(control, world ? world[r] : r)) != 0)
            same++;
        host[r] = same == r ? hosts++ : host[same];
    }
    return hosts;
}

/* Fills rank_of, hosts and locals; false: the hosts have unequal numbers of ranks. */
static bool spread_evenly(const CommGroup *group, Hosts *h) {
    int *host = malloc((size_t)group->size * sizeof *host),
        *count = calloc((size_t)group->size, sizeof *count);
    CHECK(host && count);
    h->hosts = number_hosts(group->control, group->world, group->size, host);
    h->locals = group->size / h->hosts;
    bool even = h->hosts * h->locals == group->size;
    for (int r = 0; r < group->size && even; r++) {
        int at = host[r];
        if (r == group->rank) h->host = at, h->own = count[at];
        if (count[at] == h->locals)
            even = false;
        else
            h->rank_of[at * h->locals + count[at]++] = r;
    }
    free(host);
    free(count);
    return even;
}

static bool is_wired(const CommGroup *group, int hosts) {
    return group->topology->axes > 0 && group->topology->places == hosts;
}

/* place (hosts): the number of each host in the world. False: no memory. */
static bool place_hosts(const CommGroup *group, Hosts *h, const int *across) {
    int n = control_size(group->control), *host = malloc((size_t)n * sizeof *host);
    if (!host) return false;
    bool wired = is_wired(group, number_hosts(group->control, NULL, n, host));
    for (int k = 0; k < h->hosts; k++) h->place[k] = host[across[k]];
    h->across.place = h->place;
    h->across.topology = wired ? group->topology : &h->flat;
    free(host);
    return true;
}

/* --- opening --- */

static CommGroup part_of(const CommGroup *group, uint32_t layer, int rank, int size, const int *world) {
    CommGroup part = *group;
    part.rank = rank;
    part.size = size;
    part.layer = layer;
    part.world = world;
    part.state = NULL;
    part.backend = layer == LAYER_LOCAL ? &comm_backend_shm : &comm_backend_torus;
    return part;
}

static void hosts_close(CommGroup *group) {
    Hosts *h = group->state;
    if (!h) return;
    if (h->has_pairs) h->pairs.backend->close(&h->pairs);
    if (h->has_across) h->across.backend->close(&h->across);
    if (h->has_local) h->local.backend->close(&h->local);
    free(h->place);
    free(h->rank_of);
    free(h->world);
    free(h->local_offsets);
    free(h->across_offsets);
    free(h->scratch);
    for (int i = 0; i < h->num_blocks; i++) free(h->blocks[i]);
    free(h->blocks);
    free(h);
    group->state = NULL;
}

static bool hosts_layout(CommGroup *group, Hosts *h) {
    size_t n = (size_t)group->size;
    h->rank_of = malloc(n * sizeof *h->rank_of);
    h->world = malloc(3 * n * sizeof *h->world);
    h->local_offsets = malloc((n + 1) * sizeof *h->local_offsets);
    h->across_offsets = malloc((n + 1) * sizeof *h->across_offsets);
    h->place = malloc(n * sizeof *h->place);
    if (!h->place || !h->rank_of || !h->world || !h->local_offsets || !h->across_offsets) return false;
    bool even = spread_evenly(group, h);
    if (!even) { /* each rank counts for a host, without wires */
        h->hosts = group->size;
        h->locals = 1;
        h->host = group->rank;
        h->own = 0;
        for (int r = 0; r < group->size; r++) h->rank_of[r] = r;
    }
    int *local = h->world, *across = local + h->locals;
    for (int l = 0; l < h->locals; l++) local[l] = group->world[h->rank_of[h->host * h->locals + l]];
    for (int k = 0; k < h->hosts; k++) across[k] = group->world[h->rank_of[k * h->locals + h->own]];
    h->local = part_of(group, LAYER_LOCAL, h->own, h->locals, local);
    h->across = part_of(group, LAYER_ACROSS, h->host, h->hosts, across);
    h->pairs = part_of(group, LAYER_PAIRS, group->rank, group->size, group->world);
    h->across.topology = h->pairs.topology = &h->flat;
    return !even || place_hosts(group, h, across);
}

static bool hosts_open(CommGroup *group, Error *err) {
    Hosts *h = group->state = calloc(1, sizeof *h);
    bool done = h && hosts_layout(group, h);
    if (!done) error_set(err, "groups of %d ranks: no memory", group->size);
    if (done && h->locals > 1) {
        h->has_local = true;
        done = h->local.backend->open(&h->local, err);
    }
    if (done && h->hosts > 1) {
        h->has_across = true;
        done = h->across.backend->open(&h->across, err);
    }
    if (done && h->has_local && h->has_across) {
        h->has_pairs = true;
        done = h->pairs.backend->open(&h->pairs, err);
    }
    if (!done) hosts_close(group);
    return done;
}

static bool hosts_usable(const CommGroup *group, Error *err) {
    Hosts h = {.rank_of = malloc((size_t)group->size * sizeof(int))};
    CHECK(h.rank_of);
    bool even = spread_evenly(group, &h);
    free(h.rank_of);
    if (h.hosts == group->size) return error_set(err, "every rank has a host of its own");
    if (!even) return error_set(err, "the hosts have unequal numbers of ranks");
    return group->topology->axes == 0 || is_wired(group, h.hosts) ||
           error_set(err, "the topology has %d places for %d hosts", group->topology->places, h.hosts);
}

/* --- operations --- */

/* The part, ready for a step of the operation that runs. */
static CommGroup *ready(const CommGroup *group, CommGroup *part) {
    part->header = group->header;
    part->step = group->step;
    return part;
}

static void name_algorithm(CommGroup *group) {
    Hosts *h = group->state;
    snprintf(h->algorithm, sizeof h->algorithm, "%s%s%s",
             h->has_local && h->local.algorithm ? h->local.algorithm : "",
             h->has_local && h->has_across ? " + " : "",
             h->has_across && h->across.algorithm ? h->across.algorithm : "");
    group->algorithm = h->algorithm;
}

static bool local_broadcast(CommGroup *group, void *data, size_t bytes, int root, Error *err) {
    Hosts *h = group->state;
    return !h->has_local || comm_backend_shm.broadcast(ready(group, &h->local), data, bytes, root, err);
}

static bool sum_small(CommGroup *group, void *data, size_t count, CommType type, CommOp op, Error *err) {
    Hosts *h = group->state;
    if (h->has_local && !comm_backend_shm.all_reduce(ready(group, &h->local), data, count, type, op, err))
        return false;
    if (!h->has_across) return true;
    if (h->own == 0 && !comm_backend_torus.all_reduce(ready(group, &h->across), data, count, type, op, err))
        return false;
    return local_broadcast(group, data, count * comm_type_bytes(type), 0, err);
}

static bool sum_large(CommGroup *group, void *data, size_t count, CommType type, CommOp op, Error *err) {
    Hosts *h = group->state;
    size_t *share = h->local_offsets;
    comm_share_evenly(count, h->locals, share);
    char *own = (char *)data + share[h->own] * comm_type_bytes(type);
    return comm_backend_shm.reduce_scatter(ready(group, &h->local), data, share, type, op, err) &&
           comm_backend_torus.all_reduce(ready(group, &h->across), own, share[h->own + 1] - share[h->own],
                                         type, op, err) &&
           comm_backend_shm.all_gather(ready(group, &h->local), data, share, type, err);
}

static bool hosts_all_reduce(CommGroup *group, void *data, size_t count, CommType type, CommOp op,
                             Error *err) {
    Hosts *h = group->state;
    bool small = !h->has_local || !h->has_across || count * comm_type_bytes(type) <= SMALL_BYTES;
    bool done = (small ? sum_small : sum_large)(group, data, count, type, op, err);
    name_algorithm(group);
    return done;
}

/* The shares of all ranks in the scratch buffer: those of the first rank of every host, host by host, then those of the
 * second, ... so that what each torus works on lies together. */
typedef enum { TO_SCRATCH, TO_DATA } Way;

static void lay_out(Hosts *h, const size_t *offsets) {
    size_t at = 0;
    for (int l = 0; l < h->locals; l++) {
        h->local_offsets[l] = at;
        for (int k = 0; k < h->hosts; k++) {
            int r = h->rank_of[k * h->locals + l];
            if (l == h->own) h->across_offsets[k] = at - h->local_offsets[l];
            at += offsets[r + 1] - offsets[r];
        }
        if (l == h->own) h->across_offsets[h->hosts] = at - h->local_offsets[l];
    }
    h->local_offsets[h->locals] = at;
}

static void copy_shares(Hosts *h, char *data, const size_t *offsets, size_t element, Way way) {
    char *at = h->scratch;
    for (int l = 0; l < h->locals; l++)
        for (int k = 0; k < h->hosts; k++) {
            int r = h->rank_of[k * h->locals + l];
            size_t bytes = (offsets[r + 1] - offsets[r]) * element;
            if (bytes && way == TO_SCRATCH) memcpy(at, data + offsets[r] * element, bytes);
            if (bytes && way == TO_DATA) memcpy(data + offsets[r] * element, at, bytes);
            at += bytes;
        }
}

static bool reserve(Hosts *h, size_t bytes, Error *err) {
    if (bytes <= h->scratch_bytes) return true;
    free(h->scratch);
    h->scratch = malloc(bytes);
    h->scratch_bytes = h->scratch ? bytes : 0;
    return h->scratch || error_set(err, "no memory for %zu bytes", bytes);
}

/* Where this rank's share lies in scratch. */
static char *own_share(Hosts *h, size_t element) {
    return h->scratch + (h->local_offsets[h->own] + h->across_offsets[h->host]) * element;
}

static bool hosts_reduce_scatter(CommGroup *group, void *data, const size_t *offsets, CommType type,
                                 CommOp op, Error *err) {
    Hosts *h = group->state;
    size_t element = comm_type_bytes(type), first = offsets[group->rank];
    size_t bytes = (offsets[group->rank + 1] - first) * element;
    bool done;
    if (!h->has_across) {
        done = comm_backend_shm.reduce_scatter(ready(group, &h->local), data, offsets, type, op, err);
    } else if (!h->has_local) {
        done = comm_backend_torus.reduce_scatter(ready(group, &h->across), data, offsets, type, op, err);
    } else {
        if (!reserve(h, offsets[group->size] * element, err)) return false;
        lay_out(h, offsets);
        copy_shares(h, data, offsets, element, TO_SCRATCH);
        char *across = h->scratch + h->local_offsets[h->own] * element;
        done = comm_backend_shm.reduce_scatter(ready(group, &h->local), h->scratch, h->local_offsets, type,
                                               op, err) &&
               comm_backend_torus.reduce_scatter(ready(group, &h->across), across, h->across_offsets, type,
                                                 op, err);
        if (done && bytes) memcpy((char *)data + first * element, own_share(h, element), bytes);
    }
    name_algorithm(group);
    return done;
}

static bool hosts_all_gather(CommGroup *group, void *data, const size_t *offsets, CommType type, Error *err) {
    Hosts *h = group->state;
    size_t element = comm_type_bytes(type), first = offsets[group->rank];
    size_t bytes = (offsets[group->rank + 1] - first) * element;
    bool done;
    if (!h->has_across) {
        done = comm_backend_shm.all_gather(ready(group, &h->local), data, offsets, type, err);
    } else if (!h->has_local) {
        done = comm_backend_torus.all_gather(ready(group, &h->across), data, offsets, type, err);
    } else {
        if (!reserve(h, offsets[group->size] * element, err)) return false;
        lay_out(h, offsets);
        if (bytes) memcpy(own_share(h, element), (char *)data + first * element, bytes);
        char *across = h->scratch + h->local_offsets[h->own] * element;
        done =
            comm_backend_torus.all_gather(ready(group, &h->across), across, h->across_offsets, type, err) &&
            comm_backend_shm.all_gather(ready(group, &h->local), h->scratch, h->local_offsets, type, err);
        if (done) copy_shares(h, data, offsets, element, TO_DATA);
    }
    name_algorithm(group);
    return done;
}

/* Which host a rank is on, and its number there. */
static void find(const Hosts *h, int rank, int *host, int *own) {
    int at = 0;
    while (h->rank_of[at] != rank) at++;
    *host = at / h->locals;
    *own = at % h->locals;
}

/* Inside the root's host, among the first ranks of the hosts, inside the other hosts. */
static bool hosts_broadcast(CommGroup *group, void *data, size_t bytes, int root, Error *err) {
    Hosts *h = group->state;
    int host, own;
    find(h, root, &host, &own);
    bool done = h->host != host || local_broadcast(group, data, bytes, own, err);
    if (done && h->has_across && h->own == 0)
        done = comm_backend_torus.broadcast(ready(group, &h->across), data, bytes, host, err);
    done = done && (h->host == host || local_broadcast(group, data, bytes, 0, err));
    name_algorithm(group);
    return done;
}

static bool hosts_barrier(CommGroup *group, Error *err) {
    Hosts *h = group->state;
    if (h->has_local && !comm_backend_shm.barrier(ready(group, &h->local), err)) return false;
    if (!h->has_across) return true;
    if (h->own == 0 && !comm_backend_torus.barrier(ready(group, &h->across), err)) return false;
    return !h->has_local || comm_backend_shm.barrier(ready(group, &h->local), err);
}

/* The part in which a message to or from a rank goes, and the rank's number there. */
static CommGroup *part_for(CommGroup *group, int peer, int *there) {
    Hosts *h = group->state;
    int host, own;
    find(h, peer, &host, &own);
    bool same_host = host == h->host;
    *there = same_host ? own : h->has_pairs ? peer : host;
    return ready(group, same_host ? &h->local : h->has_pairs ? &h->pairs : &h->across);
}

static bool hosts_send(CommGroup *group, const void *data, size_t bytes, int to, Error *err) {
    int there;
    CommGroup *part = part_for(group, to, &there);
    return part->backend->send(part, data, bytes, there, err);
}

static bool hosts_recv(CommGroup *group, void *data, size_t bytes, int from, Error *err) {
    int there;
    CommGroup *part = part_for(group, from, &there);
    return part->backend->recv(part, data, bytes, there, err);
}

/* Shared within the host; where this rank is alone there, any memory. */
static void *hosts_alloc(CommGroup *group, size_t bytes, Error *err) {
    Hosts *h = group->state;
    if (h->has_local) return comm_backend_shm.alloc(ready(group, &h->local), bytes, err);
    size_t whole = (bytes + ALIGNMENT_BYTES - 1) / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
    void **blocks = realloc(h->blocks, (size_t)(h->num_blocks + 1) * sizeof *blocks);
    if (blocks) h->blocks = blocks;
    void *block =
        blocks && whole >= bytes ? aligned_alloc(ALIGNMENT_BYTES, whole ? whole : ALIGNMENT_BYTES) : NULL;
    if (!block) {
        error_set(err, "no memory for %zu bytes", bytes);
        return NULL;
    }
    h->blocks[h->num_blocks++] = block;
    return memset(block, 0, whole);
}

static void hosts_describe(const CommGroup *group, char *out, size_t size) {
    const Hosts *h = group->state;
    char wires[200] = "";
    if (h->has_across) comm_backend_torus.describe(&h->across, wires, sizeof wires);
    snprintf(out, size, "shared memory among %d in each host, then torus%s%s", h->locals,
             wires[0] ? ": " : "", wires);
}

const CommBackend comm_backend_hosts = {.name = "hosts",
                                        .usable = hosts_usable,
                                        .open = hosts_open,
                                        .close = hosts_close,
                                        .all_reduce = hosts_all_reduce,
                                        .reduce_scatter = hosts_reduce_scatter,
                                        .all_gather = hosts_all_gather,
                                        .broadcast = hosts_broadcast,
                                        .send = hosts_send,
                                        .recv = hosts_recv,
                                        .barrier = hosts_barrier,
                                        .alloc = hosts_alloc,
                                        .describe = hosts_describe};
