/* plan.h: how a collective is laid over the wires of a topology; arithmetic only, no I/O.
 *
 * A large collective is cut into colours, each a share of the data (its weight). A colour is a list of phases; in each
 * phase the ranks form disjoint rings (or lines, where a wire is missing), and every ring reduce-scatters what its ranks
 * hold among them; the all-gather walks the phases back. Colour d takes the axes d, d+1, ... (rotated multi-rings,
 * "bucket" algorithm), so that at any time each wire of a host carries another colour. Around a ring data goes both
 * ways, each block the shorter one, which halves the steps. Where wires are dead or slow, a
 * ring is cut there into a line, and Hamiltonian cycles around them are colours too. The weights solve a small linear
 * program: the smallest maximum over links of bytes / bandwidth.
 *
 * Small messages go around every axis in turn, both ways, as they are (plan_exchange): as few steps as the torus is wide.
 * The smallest go in one piece; others in as many as there are axes, each of which begins with another one.
 *
 * What always holds (plan_prove): every ring closes, holds every rank of its line once, and uses live wires between
 * neighbours only; every piece is owned by one rank, and every rank owns one piece, in every colour.
 *
 * A flat topology is planned as a torus of the prime factors of its size, in which all ranks are neighbours. */
#ifndef LLMC_COMM_PLAN_H
#define LLMC_COMM_PLAN_H
#include "comm/topology.h"

/* Bytes on the wire for each byte of data: 1448 of an Ethernet frame's 1514. */
#define PLAN_HEADER_FACTOR (1514.0 / 1448.0)

enum { PLAN_AXES_MAX = 16, PLAN_COLOURS_MAX = 16, PLAN_CYCLES_MAX = 8, PLAN_PLACES_CYCLE_MAX = 4096 };

/* How a sum over all ranks is made; in the order of the sizes for which each is best. */
typedef enum {
    PLAN_WHOLE, /* around every axis in turn, in one piece */
    PLAN_SPLIT, /* the same in as many pieces as there are axes, at the same time */
    PLAN_RINGS, /* reduce-scatter and all-gather of every colour */
    PLAN_ALGORITHMS
} PlanAlgorithm;
extern const char *const plan_algorithm_names[PLAN_ALGORITHMS];

/* Where one rank stands in its ring or line of one phase. The members are numbered 0 .. length-1, and block b of what
 * they hold belongs to member b. */
typedef struct {
    int length, index;
    int direction; /* a ring: next is member index + direction; 0: data goes both ways, and next is index + 1 */
    int next, prev; /* ranks; in a line, -1 beyond the end */
    bool line;      /* not closed: it begins with member `first` and goes up, modulo length */
    int first;
} PlanRing;

typedef struct {
    int phases;              /* 1 if it follows a cycle */
    int axis[PLAN_AXES_MAX]; /* of each phase */
    int direction;           /* +1 or -1; 0: both ways */
    bool avoids_slow;        /* rings are cut at slow wires, too */
    int cycle;               /* the cycle it follows, or -1 */
    double weight;           /* share of the data; all sum to 1 */
} PlanColour;

typedef struct {
    int size, axes;
    int dim[PLAN_AXES_MAX], stride[PLAN_AXES_MAX];
    bool flat;
    int *rank_at, *place_of; /* (size) */
    double *
        bandwidth; /* (size, axes, 2) bytes/s from a place; 0: no wire. An axis of 2 has both entries alike */
    double *slow;  /* the same, but 0 where the wire is much slower than its axis */
    double latency_seconds; /* the longest of any wire */
    double burst_bytes;     /* beyond the rate, on every wire */
    double message_seconds; /* what a message costs; 0: not known */
    int cycles;
    int *cycle_rank, *cycle_index; /* (PLAN_CYCLES_MAX, size) */
    int colours;
    PlanColour colour[PLAN_COLOURS_MAX];
    size_t whole_bytes_max, split_bytes_max; /* up to here WHOLE, then SPLIT, is the best all-reduce */
    size_t single_bytes_max; /* up to here, one colour alone does for a reduce-scatter or an all-gather */
    double seconds_per_byte; /* of a reduce-scatter or an all-gather: max over links, headers not counted */
} Plan;

/* The same result on all ranks. Fails if the wires do not connect all ranks by any plan known here. */
bool plan_open(Plan *plan, const Topology *topology, int size, Error *err);
void plan_close(Plan *plan);
bool plan_prove(const Plan *plan, Error *err);

/* The topology of `size` ranks of the world (world[r], distinct) among themselves, ranked 0 .. size-1: the torus of the
 * axes they fill wholly, or flat. topology_close frees it. */
bool plan_topology_among(Topology *group, const Topology *topology, const int *world, int size, Error *err);
/* Takes a wire out, both ways; false if there was none. */
bool plan_topology_cut(Topology *topology, int rank_a, int rank_b);

PlanRing plan_ring(const Plan *plan, int colour, int phase, int rank);
/* Members before phase 0 hold positions 0 .. size-1; a phase of n divides its ring's range in n equal ones. So a rank
 * ends with one position: plan_position; plan_rank_at is the reverse. */
int plan_position(const Plan *plan, int colour, int rank);
int plan_rank_at(const Plan *plan, int colour, int position);

/* Small messages: the ring (both ways) or line of this axis. False: the wires do not allow it. */
bool plan_exchange(const Plan *plan, int axis, int rank, PlanRing *ring);
bool plan_exchange_possible(const Plan *plan);

/* Ranks joined by a live wire, ascending; returns how many (at most 2 * PLAN_AXES_MAX). */
int plan_neighbours(const Plan *plan, int rank, int *neighbours);
/* The axis and direction that lead from a to b; false if they are no neighbours. */
bool plan_wire(const Plan *plan, int a, int b, int *axis, int *direction);
/* parent (size): of every rank in a tree of fewest steps from root, -1 at root. */
bool plan_tree(const Plan *plan, int root, int *parent);

/* Predicted seconds of an all-reduce; 1e30: the wires do not allow it. */
double plan_seconds(const Plan *plan, PlanAlgorithm algorithm, double bytes);
PlanAlgorithm plan_algorithm(const Plan *plan, size_t bytes);
/* Takes the algorithm of that name for every size; NULL or "auto": the fastest by plan_seconds, as plan_open does. False:
 * there is none of that name. */
bool plan_choose(Plan *plan, const char *name);

uint64_t plan_hash(const Plan *plan); /* equal plans, equal hashes */
void plan_describe(const Plan *plan, char *out, size_t size);
#endif
