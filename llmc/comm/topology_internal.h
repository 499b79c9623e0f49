/* topology_internal.h: what topology.c and topology_file.c share. Places are numbered x fastest; ranks lie on them. */
#ifndef LLMC_COMM_TOPOLOGY_INTERNAL_H
#define LLMC_COMM_TOPOLOGY_INTERNAL_H
#include "comm/topology.h"

#define TOPOLOGY_DEFAULT_RATE    1e9
#define TOPOLOGY_DEFAULT_LATENCY 20e-6

extern const char topology_axis_names[TOPOLOGY_AXES_MAX + 1];

/* A torus with ranks in order and default links; wrap NULL: all wrapped. On failure nothing is held. */
bool topology_shape(Topology *topology, int axes, const int *dim, const bool *wrap, Error *err);
/* "4x4x2"; false if it is none. */
bool topology_dims(const char *text, size_t bytes, int dim[TOPOLOGY_AXES_MAX], int *axes);
bool topology_size_fits(const Topology *topology, int size, const char *name, Error *err);
void topology_format_shape(const Topology *topology, char *out, size_t size);

void topology_place_coordinates(const Topology *topology, int place, int coordinates[TOPOLOGY_AXES_MAX]);
int topology_place_at(const Topology *topology, const int coordinates[TOPOLOGY_AXES_MAX]);
int topology_place_neighbour(const Topology *topology, int place, int axis, int direction);

static inline size_t topology_link_index(const Topology *t, int place, int axis, int direction) {
    return ((size_t)place * (size_t)t->axes + (size_t)axis) * 2 + (direction > 0 ? 0 : 1);
}
#endif
