/* checkpoint_internal.h: what checkpoint.c and checkpoint_restore.c share. */
#ifndef LLMC_CHECKPOINT_INTERNAL_H
#define LLMC_CHECKPOINT_INTERNAL_H
#include "run/checkpoint.h"

/* Opens the readers, and agrees with the other ranks on run and attempt. */
bool checkpoint_look(Checkpoint *c, Error *err);
void checkpoint_look_away(Checkpoint *c);
/* values (count <= 2) become their sums over all ranks. */
bool checkpoint_sum(Checkpoint *c, double *values, int count, Error *err);
#endif
