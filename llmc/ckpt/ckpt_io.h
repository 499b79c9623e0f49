/* ckpt_io.h: every file operation of the checkpoint store, behind one struct of functions.
 *
 * Three bodies: io_uring with O_DIRECT (ckpt_io_uring.c), pread/pwrite (ckpt_io_plain.c), and a crash simulator that
 * keeps files in memory with a log of what would be durable (dev/test/ckpt_io_sim.c). The store above is written against
 * this alone, so that what the simulator proves holds for the others. What a body promises: a write is durable only
 * after `sync` of its file returned true; a name (created, renamed, removed) only after `sync_directory` did; until
 * then any subset of the unsynced writes, torn at CKPT_IO_SECTOR_BYTES, may have reached the disk, in any order.
 *
 * A CkptIo is used by one thread at a time; each thread opens its own. */
#ifndef LLMC_CKPT_IO_H
#define LLMC_CKPT_IO_H
#include "base/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    CKPT_IO_ALIGN = 4096, /* of memory, offset and length of writes to a file opened with CKPT_IO_DIRECT */
    CKPT_IO_SECTOR_BYTES = 512 /* what a disk writes whole */
};

typedef enum { CKPT_IO_READ = 1, CKPT_IO_WRITE = 2, CKPT_IO_CREATE = 4, CKPT_IO_DIRECT = 8 } CkptIoFlags;

typedef struct CkptIo CkptIo;
typedef struct CkptFile CkptFile; /* each body's own */

typedef struct {
    const char *name; /* for people: io_uring + O_DIRECT, pwrite */
    void (*close)(CkptIo *io);
    /* CKPT_IO_DIRECT is a wish: bodies and file systems without it go through the page cache. */
    CkptFile *(*open)(CkptIo *io, const char *path, int flags, Error *err);
    void (*close_file)(CkptIo *io, CkptFile *file);
    bool (*size)(CkptIo *io, CkptFile *file, uint64_t *bytes, Error *err);
    /* Blocks for [0, bytes) are there afterwards; a full disk leaves the file as it was. */
    bool (*allocate)(CkptIo *io, CkptFile *file, uint64_t bytes, Error *err);
    /* Begins to write; data must stay until `wait`. May wait for earlier ones. Failures may be told by a later call on
     * the same io, at the latest by `wait`. */
    bool (*write)(CkptIo *io, CkptFile *file, const void *data, size_t bytes, uint64_t offset, Error *err);
    /* Until at most `pending` writes of this io are under way (0: all done). Writes end in the order of beginning as far
     * as this count tells: after wait(n) all but the last n begun are done. */
    bool (*wait)(CkptIo *io, unsigned pending, Error *err);
    /* All bytes or an error; a file that ends before is an error that says so. Any alignment. */
    bool (*read)(CkptIo *io, CkptFile *file, void *data, size_t bytes, uint64_t offset, Error *err);
    bool (*sync)(CkptIo *io, CkptFile *file, Error *err); /* waits for the writes, then makes them durable */
    bool (*rename)(CkptIo *io, const char *from, const char *to, Error *err);
    bool (*remove)(CkptIo *io, const char *path, Error *err); /* absent: true */
    /* With those above it; all their names are durable afterwards, also of those that were there. */
    bool (*make_directory)(CkptIo *io, const char *path, Error *err);
    bool (*sync_directory)(CkptIo *io, const char *path, Error *err);
    /* Calls with every name in the folder, sorted; an absent folder has none. */
    bool (*list)(CkptIo *io, const char *path, void (*each)(void *ctx, const char *name), void *ctx,
                 Error *err);
    bool (*free_bytes)(CkptIo *io, const char *path, uint64_t *bytes, Error *err);
    /* An advisory lock of the file `path`, which is made if absent, until close_file; never waits: where others hold
     * it, NULL with *busy true and err set. What is locked is the file that has this name then, so that who holds it
     * alone may remove it. Means nothing after a crash. A body for one process alone leaves this NULL. */
    CkptFile *(*lock)(CkptIo *io, const char *path, bool exclusive, bool *busy, Error *err);
} CkptIoBody;

struct CkptIo {
    const CkptIoBody *body;
    void *state; /* the body's */
};

/* kind: "auto" (io_uring where it works, else pwrite; *why says in words what was not to be had, "" if nothing),
 * "uring", "plain". */
bool ckpt_io_open(CkptIo *io, const char *kind, const char **why, Error *err);
bool ckpt_io_plain_open(CkptIo *io, Error *err);
bool ckpt_io_uring_open(CkptIo *io,
                        Error *err); /* an error that says so where it was not built or is forbidden */
void ckpt_io_close(CkptIo *io);
#endif
