/* ckpt_retain.h: which checkpoints stay in a staging folder, and the marks by which people and the drainer decide it. */
#ifndef LLMC_CKPT_RETAIN_H
#define LLMC_CKPT_RETAIN_H
#include "ckpt/ckpt_ring.h"

/* Drops this writer's shards of what may go; before this attempt's first commit nothing. */
bool ckpt_retain(CkptRing *ring, Error *err);
/* What earlier attempts left: the files of writers that are no more, if nothing in them is kept, and tables. */
bool ckpt_retain_strangers(CkptRing *ring, CkptId committed, Error *err);

/* lock/marks of a staging folder, waited for at most some seconds: who decides by marks holds it. *lock NULL and true: a
 * body without other processes; unlocking that is nothing. */
bool ckpt_marks_lock(CkptIo *io, const char *folder, CkptFile **lock, Error *err);
void ckpt_marks_unlock(CkptIo *io, CkptFile *lock);

/* In ckpt_ring.c. */
bool ckpt_ring_drop(CkptRing *ring, const CkptRecord *drops, size_t count, Error *err);
/* marks.log with its blocks, so that what was uploaded can be let go although the disk is full by then; as far as there
 * is room now. */
void ckpt_marks_prepare(CkptRing *ring);
#endif
