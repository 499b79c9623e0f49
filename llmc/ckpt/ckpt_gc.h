/* ckpt_gc.h: letting go by hand of what nobody needs: `train_gpt2 ckpt gc`.
 *
 * What always holds: nothing goes unless something that is whole stays; the newest `keep` restorable checkpoints, pinned
 * ones, the best one and, where a store is used, those that it does not have yet stay. In a staging folder nothing is
 * touched while any of its writers runs, nor what a reader holds; in a store COMMIT goes before the rest. */
#ifndef LLMC_CKPT_GC_H
#define LLMC_CKPT_GC_H
#include "ckpt/ckpt.h"

typedef struct {
    const char *place;     /* a staging folder, or what store.h takes */
    int keep;              /* restorable checkpoints that stay, the newest ones; >= 1 */
    bool dry_run;          /* only counts and tells */
    bool has_store;        /* staging: what was not uploaded stays, also if nothing ever was */
    double orphan_seconds; /* store: uploads that were begun longer ago and never finished are ended */
    /* Told of every checkpoint that goes; may be NULL. */
    void (*each)(void *ctx, CkptId id, const char *why);
    void *ctx;
} CkptGcConfig;

typedef struct {
    uint64_t checkpoints, files, bytes; /* that went, or would; bytes of files, as long as they are */
    uint64_t held;                      /* files that stay for now: a reader holds them */
    int orphans;                        /* uploads that were ended; 0 when dry_run */
} CkptGcResult;

/* False: why in err; what went before that is in *result. */
bool ckpt_gc(const CkptGcConfig *config, CkptGcResult *result, Error *err);

/* The two kinds of place; in ckpt_gc.c and ckpt_gc_store.c. */
bool ckpt_gc_staging(const CkptGcConfig *config, CkptGcResult *result, Error *err);
bool ckpt_gc_store(const CkptGcConfig *config, CkptGcResult *result, Error *err);
#endif
