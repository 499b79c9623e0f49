/* ckpt_source.h: where checkpoints are read from: a staging folder or a store, by names of the staging folder's kind.
 *
 * What always holds: any number of threads may read from one source at once. */
#ifndef LLMC_CKPT_SOURCE_H
#define LLMC_CKPT_SOURCE_H
#include "ckpt/ckpt_format.h"
#include "ckpt/ckpt_io.h"

typedef struct CkptSource CkptSource;
struct CkptSource {
    bool store; /* names are keys of a store; else files below a staging folder */
    const char *place;
    /* Calls with every name that is there below `folder`, without it, ascending; size 0 where it was not asked for. */
    bool (*list)(CkptSource *source, const char *folder,
                 void (*each)(void *ctx, const char *name, uint64_t bytes), void *ctx, Error *err);
    /* *found false: no such name. */
    bool (*size)(CkptSource *source, const char *name, uint64_t *bytes, bool *found, Error *err);
    bool (*read)(CkptSource *source, const char *name, void *data, size_t bytes, uint64_t offset, Error *err);
    void (*close)(CkptSource *source);
};

/* place: a staging folder, or what store.h takes. A folder that has a subfolder `ckpt` is a store. */
bool ckpt_source_open(CkptSource **source, const char *place, Error *err);
/* A staging folder, read by at most `threads` at once (others wait). */
bool ckpt_source_open_folder(CkptSource **source, const char *folder, int threads, Error *err);
bool ckpt_source_open_store(CkptSource **source, const char *place, Error *err);
#endif
