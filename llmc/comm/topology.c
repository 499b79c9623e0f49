/* topology.c: see topology.h: the shape, the way between ranks and places, and what follows from them. The file format
 * is read and written in topology_file.c. */
#include "comm/topology.h"
#include "base/check.h"
#include "base/file.h"
#include "comm/topology_internal.h"
#include <stdlib.h>
#include <string.h>

const char topology_axis_names[TOPOLOGY_AXES_MAX + 1] = "xyzw";

bool topology_shape(Topology *t, int axes, const int *dim, const bool *wrap, Error *err) {
    memset(t, 0, sizeof *t);
    int places = 1;
    for (int a = 0; a < axes; a++) {
        if (dim[a] < 1 || dim[a] > TOPOLOGY_PLACES_MAX / places)
            return error_set(err, "a torus has 1 to %d places", TOPOLOGY_PLACES_MAX);
        places *= dim[a];
        t->dim[a] = dim[a];
        t->wrap[a] = wrap ? wrap[a] : true;
    }
    t->axes = axes;
    t->places = places;
    t->rank_at = malloc((size_t)places * sizeof *t->rank_at);
    t->place_of = malloc((size_t)places * sizeof *t->place_of);
    t->links = calloc((size_t)places * (size_t)axes * 2, sizeof *t->links);
    if (!t->rank_at || !t->place_of || !t->links) {
        topology_close(t);
        return error_set(err, "no memory for a topology of %d places", places);
    }
    for (int i = 0; i < places; i++) t->rank_at[i] = t->place_of[i] = i;
    for (int i = 0; i < places * axes * 2; i++)
        t->links[i] = (TopologyLink){TOPOLOGY_DEFAULT_RATE, TOPOLOGY_DEFAULT_LATENCY, ""};
    return true;
}

static bool open_flat(Topology *t, int size, Error *err) {
    memset(t, 0, sizeof *t);
    if (size < 1 || size > TOPOLOGY_PLACES_MAX)
        return error_set(err, "a flat topology has 1 to %d ranks, not %d", TOPOLOGY_PLACES_MAX, size);
    t->places = size;
    t->rank_at = malloc((size_t)size * sizeof *t->rank_at);
    t->place_of = malloc((size_t)size * sizeof *t->place_of);
    if (!t->rank_at || !t->place_of) {
        topology_close(t);
        return error_set(err, "no memory for a topology of %d ranks", size);
    }
    for (int i = 0; i < size; i++) t->rank_at[i] = t->place_of[i] = i;
    return true;
}

bool topology_dims(const char *text, size_t bytes, int dim[TOPOLOGY_AXES_MAX], int *axes) {
    *axes = 0;
    for (size_t at = 0;; at++) {
        int value = 0;
        size_t first = at;
        for (; at < bytes && text[at] >= '0' && text[at] <= '9'; at++) {
            if (value > TOPOLOGY_PLACES_MAX) return false;
            value = 10 * value + (text[at] - '0');
        }
        if (at == first || *axes == TOPOLOGY_AXES_MAX) return false;
        dim[(*axes)++] = value;
        if (at == bytes) return true;
        if (text[at] != 'x') return false;
    }
}

bool topology_size_fits(const Topology *t, int size, const char *name, Error *err) {
    if (size == 0 || t->places == size) return true;
    char shape[64];
    topology_format_shape(t, shape, sizeof shape);
    return error_set(err,
                     "%s: %s has %d place%s, but there %s %d rank%s (start %d, or give another topology)",
                     name, shape, t->places, t->places == 1 ? "" : "s", size == 1 ? "is" : "are", size,
                     size == 1 ? "" : "s", t->places);
}

void topology_format_shape(const Topology *t, char *out, size_t size) {
    if (t->axes == 0) {
        snprintf(out, size, "flat %d", t->places);
        return;
    }
    int used = snprintf(out, size, "torus ");
    for (int a = 0; a < t->axes; a++)
        used += snprintf(out + used, size - (size_t)used, "%s%d", a ? "x" : "", t->dim[a]);
}

/* Does spec begin with word and ':'? */
static const char *after(const char *spec, const char *word) {
    size_t n = strlen(word);
    return !strncmp(spec, word, n) && spec[n] == ':' ? spec + n + 1 : NULL;
}

static bool open_file(Topology *t, const char *path, int size, Error *err) {
    char *text = NULL;
    size_t bytes;
    memset(t, 0, sizeof *t);
    if (!file_read(path, TOPOLOGY_FILE_BYTES_MAX, &text, &bytes, err)) return false;
    bool ok = topology_parse(t, text, bytes, path, size, err);
    free(text);
    return ok;
}

bool topology_open(Topology *t, const char *spec, int size, Error *err) {
    CHECK(size >= 0);
    int dim[TOPOLOGY_AXES_MAX], axes;
    const char *rest;
    memset(t, 0, sizeof *t);
    if (!*spec) return open_flat(t, size ? size : 1, err);
    if ((rest = after(spec, "file"))) return open_file(t, rest, size, err);
    bool flat = false, ring = false;
    if ((rest = after(spec, "flat")))
        flat = true;
    else if ((rest = after(spec, "ring")))
        ring = true;
    else
        rest = after(spec, "torus");
    if (!rest || !topology_dims(rest, strlen(rest), dim, &axes) || ((flat || ring) && axes != 1))
        return error_set(err, "--topology: '%.200s' is none (give ring:8, torus:4x4x4, flat:64 or file:PATH)",
                         spec);
    Error why;
    bool ok = flat ? open_flat(t, dim[0], &why) : topology_shape(t, axes, dim, NULL, &why);
    if (!ok) return error_set(err, "--topology: '%.200s': %s", spec, why.text);
    if (topology_size_fits(t, size, spec, err)) return true;
    topology_close(t);
    return false;
}

void topology_close(Topology *t) {
    free(t->rank_at);
    free(t->place_of);
    free(t->links);
    memset(t, 0, sizeof *t);
}

void topology_place_coordinates(const Topology *t, int place, int c[TOPOLOGY_AXES_MAX]) {
    for (int a = 0; a < TOPOLOGY_AXES_MAX; a++) {
        c[a] = a < t->axes ? place % t->dim[a] : 0;
        if (a < t->axes) place /= t->dim[a];
    }
}

int topology_place_at(const Topology *t, const int c[TOPOLOGY_AXES_MAX]) {
    int place = 0;
    for (int a = t->axes - 1; a >= 0; a--) place = place * t->dim[a] + c[a];
    return place;
}

int topology_place_neighbour(const Topology *t, int place, int axis, int direction) {
    CHECK(axis >= 0 && axis < t->axes && (direction == 1 || direction == -1));
    int c[TOPOLOGY_AXES_MAX], dim = t->dim[axis];
    topology_place_coordinates(t, place, c);
    int to = c[axis] + direction;
    if (dim == 1 || (!t->wrap[axis] && (to < 0 || to == dim))) return -1;
    c[axis] = (to + dim) % dim;
    return topology_place_at(t, c);
}

void topology_coordinates(const Topology *t, int rank, int c[TOPOLOGY_AXES_MAX]) {
    CHECK(rank >= 0 && rank < t->places);
    topology_place_coordinates(t, t->place_of[rank], c);
}

int topology_neighbour(const Topology *t, int rank, int axis, int direction) {
    CHECK(rank >= 0 && rank < t->places);
    int place = topology_place_neighbour(t, t->place_of[rank], axis, direction);
    return place < 0 ? -1 : t->rank_at[place];
}

const TopologyLink *topology_link(const Topology *t, int rank, int axis, int direction) {
    if (topology_neighbour(t, rank, axis, direction) < 0) return NULL;
    return &t->links[topology_link_index(t, t->place_of[rank], axis, direction)];
}

bool topology_one_wire(const Topology *t, int axis) {
    CHECK(axis >= 0 && axis < t->axes);
    return t->wrap[axis] && t->dim[axis] == 2;
}

double topology_all_reduce_bound(const Topology *t, double bytes) {
    double all = 0, slowest = 0;
    if (t->axes == 0 || t->places < 2) return 0;
    for (int a = 0; a < t->axes; a++)
        if (!t->known[a]) return 0;
    for (int p = 0; p < t->places; p++) {
        double out = 0;
        for (int a = 0; a < t->axes; a++)
            for (int direction = 1; direction >= (topology_one_wire(t, a) ? 1 : -1); direction -= 2)
                if (topology_place_neighbour(t, p, a, direction) >= 0)
                    out += t->links[topology_link_index(t, p, a, direction)].bytes_per_second;
        if (!(out > 0)) return 0;
        all += out;
        if (bytes / out > slowest) slowest = bytes / out;
    }
    double shared = 2.0 * (t->places - 1) * bytes / all;
    return shared > slowest ? shared : slowest;
}

static void print_axis(const Topology *t, int axis, FILE *out) {
    double least = 0, most = 0;
    char low[TOPOLOGY_TEXT_BYTES], high[TOPOLOGY_TEXT_BYTES], latency[TOPOLOGY_TEXT_BYTES];
    const TopologyLink *slow = NULL;
    int links = 0;
    for (int p = 0; p < t->places; p++)
        for (int direction = 1; direction >= (topology_one_wire(t, axis) ? 1 : -1); direction -= 2) {
            const TopologyLink *link = topology_link(t, t->rank_at[p], axis, direction);
            if (!link || !(link->bytes_per_second > 0)) continue;
            if (!links++ || link->bytes_per_second < least) least = link->bytes_per_second, slow = link;
            if (link->bytes_per_second > most) most = link->bytes_per_second;
        }
    fprintf(out, "  axis %c: %d, %s", topology_axis_names[axis], t->dim[axis],
            t->wrap[axis] ? "wrapped" : "a line");
    if (slow && t->known[axis]) {
        topology_format_rate(low, least);
        topology_format_rate(high, most);
        topology_format_latency(latency, slow->latency_seconds);
        if (least < most)
            fprintf(out, "; %s to %s, %s\n", low, high, latency);
        else
            fprintf(out, "; %s, %s\n", low, latency);
    } else {
        fprintf(out, slow ? "; rates unknown\n" : "\n");
    }
}

void topology_print(const Topology *t, FILE *out) {
    enum { SHOWN = 8 };
    char shape[64];
    int c[TOPOLOGY_AXES_MAX], down = 0, moved = 0;
    topology_format_shape(t, shape, sizeof shape);
    fprintf(out, "topology: %s, %d ranks\n", shape, t->places);
    for (int a = 0; a < t->axes; a++) print_axis(t, a, out);
    for (int p = 0; p < t->places; p++)
        for (int a = 0; a < t->axes; a++) {
            const TopologyLink *link = topology_link(t, t->rank_at[p], a, 1);
            if (!link || link->bytes_per_second > 0) continue;
            int to = topology_place_neighbour(t, p, a, 1);
            if (topology_one_wire(t, a) && to < p) continue; /* seen from its other end */
            topology_place_coordinates(t, p, c);
            if (down++ < SHOWN)
                fprintf(out, "  down: rank %d to rank %d along %c\n", t->rank_at[p], t->rank_at[to],
                        topology_axis_names[a]);
        }
    for (int r = 0; r < t->places; r++)
        if (t->place_of[r] != r) moved++;
    if (down > SHOWN) fprintf(out, "  down: %d wires in all\n", down);
    if (moved) fprintf(out, "  %d ranks lie elsewhere than in order, x fastest\n", moved);
}
