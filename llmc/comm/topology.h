/* topology.h: which ranks are wired to which, and how fast: a torus of up to four axes, each wrapped or a line.
 *
 *   ring:8              one wrapped axis of 8            torus:4x4x4   three wrapped axes, x fastest in rank order
 *   flat:64             no known wires                   file:PATH     as below, a line each, '#' comments
 *
 *     torus 4x4x4 wrap 111          dims, and for each axis: 1 wrapped, 0 a line (without "wrap": all wrapped)
 *     axis x 128GB/s 1us            bandwidth of its links one way, and latency
 *     burst 40KB                    what a wire takes at once beyond its rate (the bucket of a shaper)
 *     message 70us                  what each message costs the processors of its two ends
 *     link 0,0,0 +x down            one link of one place: down, which holds both ways,
 *     link 1,2,0 -y 32GB/s          or its own bandwidth and latency, this way only
 *     address 0,0,0 +x 10.0.0.2     the IP address of this place's end of that link (also set by the probe)
 *     rank 5 at 1,1,0               ranks without such a line fill the other places in order, x fastest
 *
 * Axes are x, y, z, w. Bandwidths are in B/s, KB/s, MB/s, GB/s, kbit/s, Mbit/s or Gbit/s, all powers of ten; latencies in
 * s, ms, us or ns. Lines may come in any order after the first. The parser is bounded and strict: a line that it does
 * not understand, that repeats another or names a link that is not there is an error with its number. */
#ifndef LLMC_COMM_TOPOLOGY_H
#define LLMC_COMM_TOPOLOGY_H
#include "base/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* The largest file that topology_write makes is smaller than TOPOLOGY_FILE_BYTES_MAX. */
enum { TOPOLOGY_AXES_MAX = 4, TOPOLOGY_PLACES_MAX = 65536, TOPOLOGY_FILE_BYTES_MAX = 80 << 20 };

/* One direction of one wire, as seen from the place it leaves. */
typedef struct {
    double bytes_per_second; /* 0: down */
    double latency_seconds;
    char address[48]; /* IP of this end; "": unknown */
} TopologyLink;

typedef struct {
    int axes; /* 0: flat */
    int dim[TOPOLOGY_AXES_MAX];
    bool wrap[TOPOLOGY_AXES_MAX];
    bool known
        [TOPOLOGY_AXES_MAX]; /* were the rates of this axis given? Else every link has 1 GB/s and 20 us */
    int places;              /* product of the dims */
    double burst_bytes;      /* of every wire; 0 unless given */
    double message_seconds;  /* of every message; 0 unless given */
    int *rank_at, *place_of; /* (places) */
    TopologyLink *links; /* (places, axes, 2): towards + and -; of a wrapped axis of 2 both are the same */
} Topology;

/* spec as above; "" is flat. size: the number of ranks, which must be that of the places; 0: whatever the spec says.
 * Whatever they return, topology_close may follow. */
bool topology_open(Topology *topology, const char *spec, int size, Error *err);
/* The text of such a file; name stands in messages. */
bool topology_parse(Topology *topology, const char *text, size_t bytes, const char *name, int size,
                    Error *err);
void topology_close(Topology *topology);
/* A file that reads back as the same topology, bit by bit, but for the latencies of links that are down. Of a flat one
 * there is none: an error. */
bool topology_write(const Topology *topology, const char *path, Error *err);
/* For people: shape, rates, and what is out of the ordinary; a few lines. */
void topology_print(const Topology *topology, FILE *out);

/* Coordinates of a rank; those of axes that are not there are 0. */
void topology_coordinates(const Topology *topology, int rank, int coordinates[TOPOLOGY_AXES_MAX]);
/* The rank one step along an axis, direction +1 or -1; -1 if there is none (a line's end, an axis of 1). A wrapped axis
 * of 2 has one wire between its two places; both directions lead over it. */
int topology_neighbour(const Topology *topology, int rank, int axis, int direction);
/* The way out of that rank over that wire; NULL where there is no neighbour. */
const TopologyLink *topology_link(const Topology *topology, int rank, int axis, int direction);
/* Has this axis one wire for both directions? Then only + is counted. */
bool topology_one_wire(const Topology *topology, int axis);

/* "100Mbit/s", "1.5us": as a file has them; they read back equal. */
enum { TOPOLOGY_TEXT_BYTES = 40 };
void topology_format_rate(char out[TOPOLOGY_TEXT_BYTES], double bytes_per_second);
void topology_format_latency(char out[TOPOLOGY_TEXT_BYTES], double seconds);

/* No all-reduce of `bytes` bytes per rank can take less time over these links, in seconds: every element crosses 2(n-1)
 * links in all, and every rank sends all it has at least once. 0 if rates are unknown or a rank is cut off. */
double topology_all_reduce_bound(const Topology *topology, double bytes);
#endif
