/* checkpoint_internal.h: what checkpoint.c and checkpoint_restore.c share. */
#ifndef LLMC_CHECKPOINT_INTERNAL_H
#define LLMC_CHECKPOINT_INTERNAL_H
#include "run/checkpoint.h"

/* Opens the readers, and agrees with the other ranks on run and attempt. */
bool checkpoint_look(Checkpoint *c, Error *err);
void checkpoint_look_away(Checkpoint *c);
/* Starts this host's drain, if there is a remote store. */
bool checkpoint_start_drain(Checkpoint *c, Error *err);
/* Uploads what only staging has, then lets old checkpoints go there; together, before any rank has opened its store. */
bool checkpoint_make_room(Checkpoint *c, bool node_first, Error *err);
/* values (count <= 2) become their sums over all ranks. */
bool checkpoint_sum(Checkpoint *c, double *values, int count, Error *err);
#endif
