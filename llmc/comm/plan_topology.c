/* plan_topology.c: the topology of some of the world's ranks among themselves, and wires taken out of one. */
#include "base/check.h"
#include "comm/plan.h"
#include <stdlib.h>
#include <string.h>

/* The interval of coordinates that the ranks have on every axis, if together they fill a box; else false. */
static bool box_of(const Topology *topology, const int *world, int size, int *low, int *count) {
    int high[TOPOLOGY_AXES_MAX];
    for (int r = 0; r < size; r++) {
        int at[TOPOLOGY_AXES_MAX];
        topology_coordinates(topology, world[r], at);
        for (int a = 0; a < topology->axes; a++) {
            low[a] = r == 0 || at[a] < low[a] ? at[a] : low[a];
            high[a] = r == 0 || at[a] > high[a] ? at[a] : high[a];
        }
    }
    long long product = 1;
    for (int a = 0; a < topology->axes; a++) {
        count[a] = high[a] - low[a] + 1;
        product *= count[a];
    }
    return product == size; /* the ranks are distinct, so they fill it */
}

bool plan_topology_among(Topology *group, const Topology *topology, const int *world, int size, Error *err) {
    int low[TOPOLOGY_AXES_MAX], count[TOPOLOGY_AXES_MAX], kept[TOPOLOGY_AXES_MAX];
    *group = (Topology){
        .places = size, .burst_bytes = topology->burst_bytes, .message_seconds = topology->message_seconds};
    if (topology->axes > 0 && size > 1 && box_of(topology, world, size, low, count))
        for (int a = 0; a < topology->axes; a++)
            if (count[a] > 1) {
                kept[group->axes] = a;
                group->dim[group->axes] = count[a];
                group->wrap[group->axes++] = topology->wrap[a] && count[a] == topology->dim[a];
            }
    group->rank_at = malloc((size_t)size * sizeof *group->rank_at);
    group->place_of = malloc((size_t)size * sizeof *group->place_of);
    group->links = calloc((size_t)size * (size_t)group->axes * 2 + 1, sizeof *group->links);
    if (!group->rank_at || !group->place_of || !group->links) {
        topology_close(group);
        return error_set(err, "topology of %d ranks: no memory", size);
    }
    for (int r = 0; r < size; r++) {
        int at[TOPOLOGY_AXES_MAX], place = r;
        if (group->axes) {
            topology_coordinates(topology, world[r], at);
            place = 0;
            for (int k = group->axes - 1; k >= 0; k--)
                place = place * group->dim[k] + at[kept[k]] - low[kept[k]];
        }
        group->rank_at[place] = r;
        group->place_of[r] = place;
        for (int k = 0; k < group->axes; k++)
            for (int s = 0; s < 2; s++)
                if (topology_neighbour(topology, world[r], kept[k], s ? -1 : 1) >= 0)
                    group->links[((size_t)place * (size_t)group->axes + (size_t)k) * 2 + (size_t)s] =
                        *topology_link(topology, world[r], kept[k], s ? -1 : 1);
    }
    return true;
}

bool plan_topology_cut(Topology *topology, int rank_a, int rank_b) {
    bool cut = false;
    for (int a = 0; a < topology->axes; a++)
        for (int s = -1; s <= 1; s += 2)
            if (topology->dim[a] > 1 && topology_neighbour(topology, rank_a, a, s) == rank_b) {
                size_t here = (size_t)topology->place_of[rank_a] * (size_t)topology->axes + (size_t)a;
                size_t there = (size_t)topology->place_of[rank_b] * (size_t)topology->axes + (size_t)a;
                topology->links[here * 2 + (s < 0)].bytes_per_second = 0;
                topology->links[there * 2 + (s > 0)].bytes_per_second = 0;
                cut = true;
            }
    return cut;
}
