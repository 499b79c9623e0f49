/* ckpt_io_uring.c: the io_uring body of ckpt_io.h: several writes under way at once, straight from the caller's memory
 * to the disk (O_DIRECT), with next to no processor time. Everything but writing is the pread/pwrite body's.
 *
 * Files whose file system refuses O_DIRECT are written with pwrite: through the page cache there is nothing to overlap.
 * Neither registered files nor registered buffers: at the store's chunk size the first saves nothing measurable, and the
 * second would lock the tensors' memory.
 *
 * What always holds: writes are numbered in the order of beginning; [oldest, begun) are under way or await their turn to
 * be forgotten, write n has slot n % DEPTH; the first failure is kept until a call has told it. */
#define _GNU_SOURCE
#include "ckpt/ckpt_io_plain.h"

#ifndef HAVE_URING
bool ckpt_io_uring_open(CkptIo *io, Error *err) {
    (void)io;
    return error_set(err,
                     "io_uring is not in this build (install liburing-dev, then 'make clean' and 'make')");
}
#else
#include "base/check.h"
#include "base/file.h"
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH = 16, WRITE_BYTES_MAX = 1 << 30 };

typedef struct {
    CkptFile *file;
    const char *data;
    size_t bytes; /* what is still to be written; 0: done */
    uint64_t offset;
} Slot;

typedef struct {
    CkptIoBody body;
    struct io_uring ring;
    Slot slots[DEPTH];
    uint64_t oldest, begun;
    bool failed;
    Error error;
} Uring;

static void fail(Uring *u, const Error *error) {
    if (!u->failed) u->error = *error;
    u->failed = true;
}

/* Tells the first failure once. */
static bool tell(Uring *u, Error *err) {
    if (!u->failed) return true;
    *err = u->error;
    u->failed = false;
    return false;
}

/* Hands what is left of a slot to the kernel. */
static void submit(Uring *u, Slot *slot) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    CHECK(sqe != NULL); /* there are as many entries as slots */
    size_t bytes = slot->bytes < WRITE_BYTES_MAX ? slot->bytes : WRITE_BYTES_MAX;
    io_uring_prep_write(sqe, slot->file->fd, slot->data, (unsigned)bytes, slot->offset);
    io_uring_sqe_set_data(sqe, slot);
    int result;
    do result = io_uring_submit(&u->ring);
    while (result == -EINTR || result == -EAGAIN || result == -EBUSY || result == 0);
    CHECK_OP(result, ==, 1);
}

/* One write ended, or a part of it. */
static void complete(Uring *u, Slot *slot, int result) {
    Error error;
    if (result > 0 && (size_t)result <= slot->bytes) {
        slot->data += result;
        slot->offset += (uint64_t)result;
        slot->bytes -= (size_t)result;
        if (slot->bytes) submit(u, slot);
        return;
    }
    if (result == -EINTR || result == -EAGAIN) {
        submit(u, slot);
        return;
    }
    if (result == -EINVAL && slot->file->direct) {
        /* taken at open, refused now: pwrite finds out the same and goes through the page cache */
        if (!ckpt_io_plain_write(slot->file, slot->data, slot->bytes, slot->offset, &error)) fail(u, &error);
    } else {
        errno = result < 0 ? -result : ENOSPC;
        file_error(&error, slot->file->path, "write");
        fail(u, &error);
    }
    slot->bytes = 0;
}

static void reap_until(Uring *u, uint64_t pending) {
    for (;;) {
        while (u->oldest < u->begun && u->slots[u->oldest % DEPTH].bytes == 0) u->oldest++;
        if (u->begun - u->oldest <= pending) return;
        struct io_uring_cqe *cqe;
        int result;
        while ((result = io_uring_wait_cqe(&u->ring, &cqe)) == -EINTR || result == -EAGAIN) {
        }
        CHECK_OP(result, ==, 0);
        Slot *slot = io_uring_cqe_get_data(cqe);
        int written = cqe->res;
        io_uring_cqe_seen(&u->ring, cqe);
        complete(u, slot, written);
    }
}

static bool uring_write(CkptIo *io, CkptFile *file, const void *data, size_t bytes, uint64_t offset,
                        Error *err) {
    Uring *u = io->state;
    ckpt_io_plain_check_aligned(file, data, bytes, offset);
    if (!bytes) return true;
    reap_until(u, DEPTH - 1);
    if (!tell(u, err)) return false;
    Slot *slot = &u->slots[u->begun++ % DEPTH];
    if (file->direct) {
        *slot = (Slot){file, data, bytes, offset};
        submit(u, slot);
        return true;
    }
    slot->bytes = 0;
    return ckpt_io_plain_write(file, data, bytes, offset, err);
}

static bool uring_wait(CkptIo *io, unsigned pending, Error *err) {
    Uring *u = io->state;
    reap_until(u, pending);
    return tell(u, err);
}

static bool uring_sync(CkptIo *io, CkptFile *file, Error *err) {
    return uring_wait(io, 0, err) && ckpt_io_plain_body.sync(io, file, err);
}

static void uring_close_file(CkptIo *io, CkptFile *file) {
    reap_until(io->state, 0);
    ckpt_io_plain_body.close_file(io, file);
}

static void uring_close(CkptIo *io) {
    Uring *u = io->state;
    reap_until(u, 0);
    io_uring_queue_exit(&u->ring);
    free(u);
    io->state = NULL;
}

static const char *hint(int error) {
    switch (error) {
    case ENOSYS: return " (this kernel has none, or the container hides it)";
    case EPERM:
    case EACCES: return " (forbidden by the container's seccomp profile or by kernel.io_uring_disabled)";
    case ENOMEM: return " (raise the limit of locked memory, 'ulimit -l')";
    case EMFILE: return " (too many open files: raise 'ulimit -n')";
    default: return "";
    }
}

bool ckpt_io_uring_open(CkptIo *io, Error *err) {
    Uring *u = calloc(1, sizeof *u);
    CHECK(u != NULL);
    int result = io_uring_queue_init(DEPTH, &u->ring, 0);
    if (result < 0) {
        free(u);
        return error_set(err, "io_uring cannot be used: %s%s", strerror(-result), hint(-result));
    }
    struct io_uring_probe *probe = io_uring_get_probe_ring(&u->ring);
    bool able = probe && io_uring_opcode_supported(probe, IORING_OP_WRITE);
    io_uring_free_probe(probe);
    if (!able) {
        io_uring_queue_exit(&u->ring);
        free(u);
        return error_set(err, "io_uring cannot be used: this kernel's cannot write (Linux 5.6 is needed)");
    }
    u->body = ckpt_io_plain_body;
    u->body.name = "io_uring + O_DIRECT";
    u->body.close = uring_close;
    u->body.close_file = uring_close_file;
    u->body.write = uring_write;
    u->body.wait = uring_wait;
    u->body.sync = uring_sync;
    *io = (CkptIo){&u->body, u};
    return true;
}
#endif
