/* ckpt_io_sim.c: see ckpt_io_sim.h. */
#define _POSIX_C_SOURCE 200809L
#include "ckpt_io_sim.h"
#include "base/check.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Sim *used;

void sim_use(Sim *sim) {
    used = sim;
}

struct CkptFile {
    Sim *sim;
    int inode;
    bool aligned, writes;
    int name;
};

enum { WRITES_MAX = 8 };
typedef struct {
    Sim *sim;
    struct {
        const void *data;
        void *copy;
        size_t bytes;
    } write[WRITES_MAX];
    unsigned writes; /* begun, not waited for */
} SimIo;

static bool failed(Error *err, int name, const char *what, int error) {
    return error_set(err, "%s: cannot %s: %s (simulated)", sim_names[name].path, what, strerror(error));
}

/* Counts an operation that changes something; true: it is to fail. */
static bool faulty(Sim *sim) {
    uint64_t n = sim->changes++;
    return n >= sim->fault_from && n < sim->fault_to;
}

static void sim_io_close(CkptIo *io) {
    SimIo *s = io->state;
    for (unsigned i = 0; i < s->writes; i++) free(s->write[i].copy);
    free(s);
}

static CkptFile *sim_open_file(CkptIo *io, const char *path, int flags, Error *err) {
    Sim *sim = ((SimIo *)io->state)->sim;
    CkptFile *file = NULL;
    pthread_mutex_lock(&mutex);
    int name = sim_name_of(path), parent = sim_names[name].parent;
    bool above = parent < 0 || sim_reachable(&sim->live, parent);
    int inode = above ? sim->live.bound[name] : -1;
    if (inode >= 0 && sim->live.inode[inode].directory) {
        failed(err, name, "open", EISDIR);
    } else if (inode < 0 && (!above || !(flags & CKPT_IO_CREATE))) {
        failed(err, name, "open", ENOENT);
    } else if (inode < 0 && faulty(sim)) {
        failed(err, name, "create", sim->fault_errno);
    } else {
        if (inode < 0) {
            inode = sim_inode_new(&sim->live, false);
            sim->live.bound[name] = (int16_t)inode;
            sim_log(sim, (SimOp){.kind = OP_BIND, .inode = (int16_t)inode, .name = (int16_t)name});
        }
        file = malloc(sizeof *file);
        CHECK(file != NULL);
        *file = (CkptFile){sim, inode, flags & CKPT_IO_DIRECT, flags & CKPT_IO_WRITE, name};
    }
    pthread_mutex_unlock(&mutex);
    return file;
}

static void sim_close_file(CkptIo *io, CkptFile *file) {
    (void)io;
    free(file);
}

static bool sim_size(CkptIo *io, CkptFile *file, uint64_t *bytes, Error *err) {
    (void)io, (void)err;
    pthread_mutex_lock(&mutex);
    *bytes = file->sim->live.inode[file->inode].bytes;
    pthread_mutex_unlock(&mutex);
    return true;
}

static bool sim_allocate(CkptIo *io, CkptFile *file, uint64_t bytes, Error *err) {
    (void)io;
    Sim *sim = file->sim;
    pthread_mutex_lock(&mutex);
    bool ok = !faulty(sim) || failed(err, file->name, "allocate", sim->fault_errno);
    if (ok) {
        sim_inode_reserve(&sim->live.inode[file->inode], bytes);
        sim_log(sim, (SimOp){.kind = OP_EXTEND, .inode = (int16_t)file->inode, .bytes = bytes});
    }
    pthread_mutex_unlock(&mutex);
    return ok;
}

/* One page of a write: a new image, so that worlds and log can share it. */
static void write_page(Sim *sim, int inode_number, const uint8_t *data, uint64_t from, uint64_t to) {
    SimInode *inode = &sim->live.inode[inode_number];
    uint32_t page = (uint32_t)(from / SIM_PAGE_BYTES);
    size_t begin = (size_t)(from % SIM_PAGE_BYTES), end = begin + (size_t)(to - from);
    SimPage *image = sim_page_new(), *old = inode->pages[page];
    if (end - begin < SIM_PAGE_BYTES) {
        if (old)
            memcpy(image->data, old->data, SIM_PAGE_BYTES);
        else
            memset(image->data, 0, SIM_PAGE_BYTES);
    }
    memcpy(image->data + begin, data, end - begin);
    inode->pages[page] = image;
    sim_page_drop(old);
    unsigned mask = 0;
    for (size_t s = begin / CKPT_IO_SECTOR_BYTES; s * CKPT_IO_SECTOR_BYTES < end; s++) mask |= 1u << s;
    sim_log(sim, (SimOp){.kind = OP_WRITE,
                         .sectors = (uint8_t)mask,
                         .inode = (int16_t)inode_number,
                         .page = page,
                         .bytes = to,
                         .image = image});
}

static bool sim_wait(CkptIo *io, unsigned pending, Error *err) {
    (void)err;
    SimIo *s = io->state;
    unsigned done = s->writes > pending ? s->writes - pending : 0;
    for (unsigned i = 0; i < done; i++) {
        CHECK(memcmp(s->write[i].data, s->write[i].copy, s->write[i].bytes) == 0); /* changed too early */
        free(s->write[i].copy);
    }
    s->writes -= done;
    memmove(s->write, s->write + done, s->writes * sizeof *s->write);
    return true;
}

static bool sim_write(CkptIo *io, CkptFile *file, const void *data, size_t bytes, uint64_t offset,
                      Error *err) {
    SimIo *s = io->state;
    Sim *sim = file->sim;
    CHECK(file->writes);
    if (file->aligned) CHECK_OP(((uintptr_t)data | bytes | offset) % CKPT_IO_ALIGN, ==, 0);
    if (!bytes) return true;
    sim_wait(io, WRITES_MAX - 1, err);
    pthread_mutex_lock(&mutex);
    bool fault = faulty(sim);
    sim_inode_reserve(&sim->live.inode[file->inode], offset + bytes);
    for (uint64_t at = offset, next; at < offset + bytes; at = next) {
        next = at - at % SIM_PAGE_BYTES + SIM_PAGE_BYTES;
        if (next > offset + bytes) next = offset + bytes;
        if (!fault || sim_random(&sim->rng) & 1) /* a failed write may have done a part */
            write_page(sim, file->inode, (const uint8_t *)data + (at - offset), at, next);
    }
    if (fault) failed(err, file->name, "write", sim->fault_errno);
    pthread_mutex_unlock(&mutex);
    if (fault || !sim->recording) return !fault;
    void *copy = malloc(bytes);
    CHECK(copy != NULL);
    memcpy(copy, data, bytes);
    s->write[s->writes].data = data;
    s->write[s->writes].copy = copy;
    s->write[s->writes++].bytes = bytes;
    return true;
}

static bool sim_read(CkptIo *io, CkptFile *file, void *data, size_t bytes, uint64_t offset, Error *err) {
    (void)io;
    pthread_mutex_lock(&mutex);
    const SimInode *inode = &file->sim->live.inode[file->inode];
    bool ok = offset <= inode->bytes && bytes <= inode->bytes - offset;
    for (size_t done = 0; ok && done < bytes;) {
        uint64_t at = offset + done;
        size_t skip = (size_t)(at % SIM_PAGE_BYTES), part = SIM_PAGE_BYTES - skip;
        if (part > bytes - done) part = bytes - done;
        const SimPage *p = inode->pages[at / SIM_PAGE_BYTES];
        if (p)
            memcpy((char *)data + done, p->data + skip, part);
        else
            memset((char *)data + done, 0, part);
        done += part;
    }
    uint64_t end = inode->bytes;
    pthread_mutex_unlock(&mutex);
    return ok ||
           error_set(err, "%s: ends at byte %llu, but %zu bytes at %llu are needed (it was cut off)",
                     sim_names[file->name].path, (unsigned long long)end, bytes, (unsigned long long)offset);
}

static bool sim_sync(CkptIo *io, CkptFile *file, Error *err) {
    Sim *sim = file->sim;
    sim_wait(io, 0, err);
    pthread_mutex_lock(&mutex);
    bool ok = !faulty(sim) || failed(err, file->name, "make its data durable", sim->fault_errno);
    if (ok || !sim->killed)
        sim_log(sim, (SimOp){.kind = ok ? OP_SYNC : OP_SYNC_FAILED, .inode = (int16_t)file->inode});
    pthread_mutex_unlock(&mutex);
    return ok;
}

static bool sim_rename(CkptIo *io, const char *from, const char *to, Error *err) {
    Sim *sim = ((SimIo *)io->state)->sim;
    pthread_mutex_lock(&mutex);
    int a = sim_name_of(from), b = sim_name_of(to),
        inode = sim_reachable(&sim->live, a) ? sim->live.bound[a] : -1;
    bool ok = inode >= 0 || failed(err, a, "rename", ENOENT);
    if (ok && faulty(sim)) ok = failed(err, a, "rename", sim->fault_errno);
    if (ok) {
        SimOp op = {.kind = OP_RENAME, .inode = (int16_t)inode, .name = (int16_t)a, .to = (int16_t)b};
        sim_world_apply(&sim->live, &op, 0);
        sim_log(sim, op);
    }
    pthread_mutex_unlock(&mutex);
    return ok;
}

static bool sim_remove(CkptIo *io, const char *path, Error *err) {
    Sim *sim = ((SimIo *)io->state)->sim;
    pthread_mutex_lock(&mutex);
    int name = sim_name_of(path);
    bool ok = true;
    if (sim_reachable(&sim->live, name)) {
        ok = !faulty(sim) || failed(err, name, "remove", sim->fault_errno);
        if (ok) {
            sim->live.bound[name] = -1;
            sim_log(sim, (SimOp){.kind = OP_UNBIND, .name = (int16_t)name});
        }
    }
    pthread_mutex_unlock(&mutex);
    return ok;
}

static bool make_directory(Sim *sim, int name, Error *err) {
    int parent = sim_names[name].parent;
    if (parent < 0) return true; /* SIM_ROOT */
    if (!make_directory(sim, parent, err)) return false;
    int inode = sim->live.bound[name];
    if (inode >= 0 && !sim->live.inode[inode].directory)
        return failed(err, name, "make this folder", ENOTDIR);
    if (inode >= 0) {
        if (faulty(sim)) return failed(err, parent, "make the names in it durable", sim->fault_errno);
        sim_log(sim, (SimOp){.kind = OP_SYNC_NAMES, .name = (int16_t)parent});
        return true;
    }
    if (faulty(sim)) return failed(err, name, "make this folder", sim->fault_errno);
    inode = sim_inode_new(&sim->live, true);
    sim->live.bound[name] = (int16_t)inode;
    sim_log(sim, (SimOp){.kind = OP_BIND, .inode = (int16_t)inode, .name = (int16_t)name, .bytes = 1});
    if (faulty(sim)) return failed(err, parent, "make the names in it durable", sim->fault_errno);
    sim_log(sim, (SimOp){.kind = OP_SYNC_NAMES, .name = (int16_t)parent});
    return true;
}

static bool sim_make_directory(CkptIo *io, const char *path, Error *err) {
    pthread_mutex_lock(&mutex);
    bool ok = make_directory(((SimIo *)io->state)->sim, sim_name_of(path), err);
    pthread_mutex_unlock(&mutex);
    return ok;
}

static bool sim_sync_directory(CkptIo *io, const char *path, Error *err) {
    Sim *sim = ((SimIo *)io->state)->sim;
    pthread_mutex_lock(&mutex);
    int name = sim_name_of(path);
    bool ok = sim_reachable(&sim->live, name) || failed(err, name, "open this folder", ENOENT);
    if (ok && faulty(sim)) ok = failed(err, name, "make the names in it durable", sim->fault_errno);
    if (ok) sim_log(sim, (SimOp){.kind = OP_SYNC_NAMES, .name = (int16_t)name});
    pthread_mutex_unlock(&mutex);
    return ok;
}

static bool sim_list(CkptIo *io, const char *path, void (*each)(void *ctx, const char *name), void *ctx,
                     Error *err) {
    (void)err;
    Sim *sim = ((SimIo *)io->state)->sim;
    char found[SIM_NAMES_MAX][SIM_PATH_BYTES];
    int count = 0;
    pthread_mutex_lock(&mutex);
    int name = sim_name_of(path);
    for (int i = 0; i < sim_name_count && sim_reachable(&sim->live, name); i++) {
        int n = sim_name_order[i];
        if (sim_names[n].parent == name && sim->live.bound[n] >= 0)
            memcpy(found[count++], strrchr(sim_names[n].path, '/') + 1,
                   strlen(strrchr(sim_names[n].path, '/')));
    }
    pthread_mutex_unlock(&mutex);
    for (int i = 0; i < count; i++) each(ctx, found[i]);
    return true;
}

static bool sim_free_bytes(CkptIo *io, const char *path, uint64_t *bytes, Error *err) {
    (void)path, (void)err;
    *bytes = ((SimIo *)io->state)->sim->free_bytes;
    return true;
}

bool ckpt_io_sim_open(CkptIo *io, Error *err) {
    static const CkptIoBody body = {
        .name = "simulator",
        .close = sim_io_close,
        .open = sim_open_file,
        .close_file = sim_close_file,
        .size = sim_size,
        .allocate = sim_allocate,
        .write = sim_write,
        .wait = sim_wait,
        .read = sim_read,
        .sync = sim_sync,
        .rename = sim_rename,
        .remove = sim_remove,
        .make_directory = sim_make_directory,
        .sync_directory = sim_sync_directory,
        .list = sim_list,
        .free_bytes = sim_free_bytes,
    };
    (void)err;
    CHECK(used != NULL);
    SimIo *s = calloc(1, sizeof *s);
    CHECK(s != NULL);
    s->sim = used;
    *io = (CkptIo){&body, s};
    return true;
}

bool sim_flip(Sim *sim, const char *path, uint64_t byte, int bit) {
    int name = sim_name_of(path);
    if (!sim_reachable(&sim->live, name)) return false;
    SimInode *inode = &sim->live.inode[sim->live.bound[name]];
    if (byte >= inode->bytes) return false;
    uint32_t page = (uint32_t)(byte / SIM_PAGE_BYTES);
    SimPage *old = inode->pages[page], *image = sim_page_new();
    if (old)
        memcpy(image->data, old->data, SIM_PAGE_BYTES);
    else
        memset(image->data, 0, SIM_PAGE_BYTES);
    image->data[byte % SIM_PAGE_BYTES] ^= (uint8_t)(1u << bit);
    inode->pages[page] = image;
    sim_page_drop(old);
    return true;
}
