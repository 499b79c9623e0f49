/* plan_internal.h: what the files of the planner share: plan.c (rings, positions, proof), plan_weights.c (candidates
 * and the linear program), plan_cycle.c (Hamiltonian cycles). */
#ifndef LLMC_PLAN_INTERNAL_H
#define LLMC_PLAN_INTERNAL_H
#include "comm/plan.h"

/* Index into bandwidth and slow; direction +1 or -1. */
static inline size_t plan_link(const Plan *plan, int rank, int axis, int direction) {
    return ((size_t)rank * (size_t)plan->axes + (size_t)axis) * 2 + (direction < 0);
}

int plan_step(const Plan *plan, int rank, int axis, int direction); /* the rank beside it, around the end */

/* The ring of an axis through a rank, cut where `table` (bandwidth or slow) has no wire; length 0: more than one cut. */
PlanRing plan_axis_ring(const Plan *plan, const double *table, int axis, int direction, int rank);

/* plan_ring, of a colour that is not, or not yet, of the plan. */
PlanRing plan_colour_ring(const Plan *plan, const PlanColour *colour, int phase, int rank);

/* A cycle through all ranks over the wires of `table`, without those marked in `used` (indexed as table; may be NULL);
 * false if none was found within a bounded search. scratch (2 * size). */
bool plan_find_cycle(const Plan *plan, const double *table, const unsigned char *used, uint64_t seed,
                     int *order, int *index);

/* Fills colours, weights and seconds_per_byte. */
bool plan_weigh(Plan *plan, Error *err);
#endif
