/* ckpt_io_sim.c: see ckpt_io_sim.h. */
#define _POSIX_C_SOURCE 200809L
#include "ckpt_io_sim.h"
#include "base/check.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { SECTORS = SIM_PAGE_BYTES / CKPT_IO_SECTOR_BYTES, PATH_BYTES = 160, ALL_SECTORS = 0xff };
_Static_assert(SECTORS == 8, "sectors of a page are the bits of a byte");

typedef enum {
    OP_WRITE,
    OP_EXTEND,
    OP_SYNC,
    OP_SYNC_FAILED,
    OP_BIND,
    OP_UNBIND,
    OP_RENAME,
    OP_SYNC_NAMES
} OpKind;

struct SimPage {
    int refs;
    SimPage *next_free;
    uint8_t data[SIM_PAGE_BYTES];
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Sim *used;
static SimPage *free_pages;

/* --- pages: shared by reference count, copied when written to --- */

static SimPage *page_new(void) {
    SimPage *p = free_pages;
    if (p)
        free_pages = p->next_free;
    else
        p = malloc(sizeof *p);
    CHECK(p != NULL);
    p->refs = 1;
    return p;
}

static SimPage *page_share(SimPage *p) {
    if (p) p->refs++;
    return p;
}

static void page_drop(SimPage *p) {
    if (!p || --p->refs) return;
    p->next_free = free_pages;
    free_pages = p;
}

/* --- names: numbered once for the process; a number stands for a path --- */

static struct {
    char path[PATH_BYTES];
    int parent; /* -1: at the top, and always there */
} names[SIM_NAMES_MAX];
static int name_count, name_order[SIM_NAMES_MAX];

static int name_of(const char *path) {
    int low = 0, high = name_count;
    while (low < high) {
        int middle = (low + high) / 2, order = strcmp(names[name_order[middle]].path, path);
        if (order == 0) return name_order[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    size_t length = strlen(path);
    CHECK(length < PATH_BYTES);
    CHECK_OP(name_count, <, SIM_NAMES_MAX);
    int parent = -1;
    const char *slash = strrchr(path, '/');
    if (slash && slash > path) {
        char above[PATH_BYTES];
        memcpy(above, path, (size_t)(slash - path));
        above[slash - path] = 0;
        parent = name_of(above);
        for (low = 0; low < name_count && strcmp(names[name_order[low]].path, path) < 0;) low++;
    }
    memcpy(names[name_count].path, path, length + 1);
    names[name_count].parent = parent;
    memmove(name_order + low + 1, name_order + low, (size_t)(name_count - low) * sizeof *name_order);
    name_order[low] = name_count;
    return name_count++;
}

/* --- worlds --- */

static bool reachable(const SimWorld *w, int name) {
    for (; name >= 0; name = names[name].parent)
        if (w->bound[name] < 0) return false;
    return true;
}

static void inode_reserve(SimInode *inode, uint64_t bytes) {
    uint32_t count = (uint32_t)((bytes + SIM_PAGE_BYTES - 1) / SIM_PAGE_BYTES);
    CHECK_OP(count, <=, SIM_FILE_PAGES_MAX);
    if (count > inode->page_count) {
        inode->pages = realloc(inode->pages, count * sizeof *inode->pages);
        CHECK(inode->pages != NULL);
        memset(inode->pages + inode->page_count, 0, (count - inode->page_count) * sizeof *inode->pages);
        inode->page_count = count;
    }
    if (bytes > inode->bytes) inode->bytes = bytes;
}

/* Takes the sectors of a mask from image. */
static void inode_put(SimInode *inode, uint32_t page, const uint8_t mask, SimPage *image) {
    if (!mask) return;
    SimPage **slot = &inode->pages[page], *old = *slot;
    if (mask == ALL_SECTORS) {
        *slot = page_share(image);
        page_drop(old);
        return;
    }
    if (!old || old->refs > 1) {
        *slot = page_new();
        if (old)
            memcpy((*slot)->data, old->data, SIM_PAGE_BYTES);
        else
            memset((*slot)->data, 0, SIM_PAGE_BYTES);
        page_drop(old);
    }
    for (size_t i = 0; i < SECTORS; i++)
        if (mask >> i & 1)
            memcpy((*slot)->data + i * CKPT_IO_SECTOR_BYTES, image->data + i * CKPT_IO_SECTOR_BYTES,
                   CKPT_IO_SECTOR_BYTES);
}

static void inode_share(SimInode *to, const SimInode *from) {
    *to = *from;
    to->pages = NULL;
    if (!from->page_count) return;
    to->pages = malloc(from->page_count * sizeof *to->pages);
    CHECK(to->pages != NULL);
    for (uint32_t p = 0; p < from->page_count; p++) to->pages[p] = page_share(from->pages[p]);
}

void sim_world_copy(SimWorld *to, const SimWorld *from) {
    memcpy(to->bound, from->bound, sizeof to->bound);
    to->inodes = from->inodes;
    for (int i = 0; i < from->inodes; i++) inode_share(&to->inode[i], &from->inode[i]);
}

void sim_world_drop(SimWorld *world) {
    for (int i = 0; i < world->inodes; i++) {
        for (uint32_t p = 0; p < world->inode[i].page_count; p++) page_drop(world->inode[i].pages[p]);
        free(world->inode[i].pages);
    }
    world->inodes = 0;
}

static int inode_new(SimWorld *w, bool directory) {
    CHECK_OP(w->inodes, <, SIM_INODES_MAX);
    w->inode[w->inodes] = (SimInode){.directory = directory};
    return w->inodes++;
}

/* Files that no name stands for any more are left out. */
static void world_compact(SimWorld *to, const SimWorld *from) {
    to->inodes = 0;
    memset(to->bound, 0xff, sizeof to->bound);
    for (int name = 0; name < name_count; name++) {
        if (!reachable(from, name)) continue;
        const SimInode *inode = &from->inode[from->bound[name]];
        int n = inode_new(to, inode->directory);
        inode_share(&to->inode[n], inode);
        to->bound[name] = (int16_t)n;
    }
}

void sim_open(Sim *sim, const SimWorld *start, bool recording, uint64_t seed) {
    memset(sim, 0, sizeof *sim);
    sim->recording = recording;
    sim->rng = seed;
    sim->free_bytes = UINT64_C(1) << 40;
    if (start) {
        world_compact(&sim->live, start);
    } else {
        memset(sim->live.bound, 0xff, sizeof sim->live.bound);
        sim->live.bound[name_of(SIM_ROOT)] = (int16_t)inode_new(&sim->live, true);
    }
    if (recording) sim_world_copy(&sim->base, &sim->live);
}

void sim_close(Sim *sim) {
    for (size_t i = 0; i < sim->ops; i++) page_drop(sim->log[i].image);
    free(sim->log);
    sim_world_drop(&sim->live);
    sim_world_drop(&sim->base);
    if (used == sim) used = NULL;
}

void sim_use(Sim *sim) {
    used = sim;
}

size_t sim_position(const Sim *sim) {
    return sim->ops;
}

/* --- the log, and what a crash leaves of it --- */

static void sim_log(Sim *sim, SimOp op) {
    if (!sim->recording) return;
    if (sim->ops == sim->room) {
        sim->room = sim->room ? 2 * sim->room : 256;
        sim->log = realloc(sim->log, sim->room * sizeof *sim->log);
        CHECK(sim->log != NULL);
    }
    page_share(op.image);
    sim->log[sim->ops++] = op;
}

static SimInode *world_inode(SimWorld *w, int inode) {
    while (w->inodes <= inode) inode_new(w, false);
    return &w->inode[inode];
}

/* op, as far as `sectors` of a page write go. */
static void world_apply(SimWorld *w, const SimOp *op, uint8_t sectors) {
    switch ((OpKind)op->kind) {
    case OP_WRITE: {
        SimInode *inode = world_inode(w, op->inode);
        inode_reserve(inode, op->bytes);
        inode_put(inode, op->page, sectors & op->sectors, op->image);
        break;
    }
    case OP_EXTEND: inode_reserve(world_inode(w, op->inode), op->bytes); break;
    case OP_BIND:
        world_inode(w, op->inode)->directory = op->bytes;
        w->bound[op->name] = op->inode;
        break;
    case OP_UNBIND: w->bound[op->name] = -1; break;
    case OP_RENAME:
        w->bound[op->name] = -1;
        w->bound[op->to] = op->inode;
        break;
    case OP_SYNC:
    case OP_SYNC_FAILED:
    case OP_SYNC_NAMES: break;
    }
}

static bool is_data(const SimOp *op) {
    return op->kind == OP_WRITE || op->kind == OP_EXTEND;
}

void sim_cursor_open(SimCursor *cursor, const Sim *sim, uint64_t seed) {
    *cursor = (SimCursor){.sim = sim, .rng = seed};
    sim_world_copy(&cursor->durable, &sim->base);
    cursor->pending = malloc((sim->ops + 1) * sizeof *cursor->pending);
    CHECK(cursor->pending != NULL);
}

void sim_cursor_close(SimCursor *cursor) {
    sim_world_drop(&cursor->durable);
    free(cursor->pending);
}

/* Ends the doubt about what concerns this sync: durable, or after a failed one partly so and otherwise lost. */
static void cursor_sync(SimCursor *c, const SimOp *sync) {
    size_t left = 0;
    for (size_t i = 0; i < c->pendings; i++) {
        const SimOp *op = &c->sim->log[c->pending[i]];
        bool concerned = sync->kind == OP_SYNC_NAMES ? !is_data(op) && names[op->name].parent == sync->name
                                                     : is_data(op) && op->inode == sync->inode;
        if (!concerned)
            c->pending[left++] = c->pending[i];
        else if (sync->kind == OP_SYNC_FAILED)
            world_apply(&c->durable, op, (uint8_t)sim_random(&c->rng));
        else
            world_apply(&c->durable, op, ALL_SECTORS);
    }
    c->pendings = left;
}

void sim_cursor_advance(SimCursor *c, size_t position) {
    CHECK(position >= c->next && position <= c->sim->ops);
    for (; c->next < position; c->next++) {
        const SimOp *op = &c->sim->log[c->next];
        if (op->kind == OP_SYNC || op->kind == OP_SYNC_FAILED || op->kind == OP_SYNC_NAMES)
            cursor_sync(c, op);
        else
            c->pending[c->pendings++] = (uint32_t)c->next;
    }
}

/* Which sectors of a write arrived: often none or all, else torn. */
static uint8_t torn(uint64_t *rng, unsigned percent) {
    uint64_t r = sim_random(rng);
    if (r % 8 == 0) return (uint8_t)(r >> 8);                   /* any sectors */
    if (r % 8 == 1) return (uint8_t)((1u << (r >> 8) % 9) - 1); /* the first ones */
    return (r >> 8) % 100 < percent ? ALL_SECTORS : 0;
}

void sim_cursor_crash(SimCursor *c, SimWorld *world) {
    static const unsigned percents[] = {0, 5, 50, 95, 100, 100};
    sim_world_copy(world, &c->durable);
    uint64_t r = sim_random(&c->rng);
    unsigned percent = percents[r % 6];
    bool journal = r >> 8 & 1, whole = percent == 0 || (percent == 100 && r >> 9 & 1);
    size_t names_left = (size_t)(r >> 16) % (c->pendings + 1);
    uint32_t *order = NULL;
    if (c->pendings && (r >> 10 & 1)) { /* in any order: that matters where two writes meet */
        order = malloc(c->pendings * sizeof *order);
        CHECK(order != NULL);
        memcpy(order, c->pending, c->pendings * sizeof *order);
        for (size_t i = c->pendings - 1; i > 0; i--) {
            size_t j = (size_t)(sim_random(&c->rng) % (i + 1));
            uint32_t swap = order[i];
            order[i] = order[j];
            order[j] = swap;
        }
    }
    for (size_t i = 0; i < c->pendings; i++) {
        const SimOp *op = &c->sim->log[order ? order[i] : c->pending[i]];
        if (!is_data(op)) continue;
        uint8_t sectors = whole ? percent ? ALL_SECTORS : 0 : torn(&c->rng, percent);
        if (sectors) world_apply(world, op, sectors);
    }
    for (size_t i = 0; i < c->pendings; i++) { /* names in their order, or an older name would win */
        const SimOp *op = &c->sim->log[c->pending[i]];
        if (is_data(op)) continue;
        if (journal ? i < names_left : (sim_random(&c->rng) & 1)) world_apply(world, op, 0);
    }
    free(order);
}

/* --- the body --- */

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
    return error_set(err, "%s: cannot %s: %s (simulated)", names[name].path, what, strerror(error));
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
    int name = name_of(path), parent = names[name].parent;
    bool above = parent < 0 || reachable(&sim->live, parent);
    int inode = above ? sim->live.bound[name] : -1;
    if (inode >= 0 && sim->live.inode[inode].directory) {
        failed(err, name, "open", EISDIR);
    } else if (inode < 0 && (!above || !(flags & CKPT_IO_CREATE))) {
        failed(err, name, "open", ENOENT);
    } else if (inode < 0 && faulty(sim)) {
        failed(err, name, "create", sim->fault_errno);
    } else {
        if (inode < 0) {
            inode = inode_new(&sim->live, false);
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
        inode_reserve(&sim->live.inode[file->inode], bytes);
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
    SimPage *image = page_new(), *old = inode->pages[page];
    if (end - begin < SIM_PAGE_BYTES) {
        if (old)
            memcpy(image->data, old->data, SIM_PAGE_BYTES);
        else
            memset(image->data, 0, SIM_PAGE_BYTES);
    }
    memcpy(image->data + begin, data, end - begin);
    inode->pages[page] = image;
    page_drop(old);
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
    inode_reserve(&sim->live.inode[file->inode], offset + bytes);
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
                     names[file->name].path, (unsigned long long)end, bytes, (unsigned long long)offset);
}

static bool sim_sync(CkptIo *io, CkptFile *file, Error *err) {
    Sim *sim = file->sim;
    sim_wait(io, 0, err);
    pthread_mutex_lock(&mutex);
    bool ok = !faulty(sim) || failed(err, file->name, "make its data durable", sim->fault_errno);
    sim_log(sim, (SimOp){.kind = ok ? OP_SYNC : OP_SYNC_FAILED, .inode = (int16_t)file->inode});
    pthread_mutex_unlock(&mutex);
    return ok;
}

static bool sim_rename(CkptIo *io, const char *from, const char *to, Error *err) {
    Sim *sim = ((SimIo *)io->state)->sim;
    pthread_mutex_lock(&mutex);
    int a = name_of(from), b = name_of(to), inode = reachable(&sim->live, a) ? sim->live.bound[a] : -1;
    bool ok = inode >= 0 || failed(err, a, "rename", ENOENT);
    if (ok && faulty(sim)) ok = failed(err, a, "rename", sim->fault_errno);
    if (ok) {
        SimOp op = {.kind = OP_RENAME, .inode = (int16_t)inode, .name = (int16_t)a, .to = (int16_t)b};
        world_apply(&sim->live, &op, 0);
        sim_log(sim, op);
    }
    pthread_mutex_unlock(&mutex);
    return ok;
}

static bool sim_remove(CkptIo *io, const char *path, Error *err) {
    Sim *sim = ((SimIo *)io->state)->sim;
    pthread_mutex_lock(&mutex);
    int name = name_of(path);
    bool ok = true;
    if (reachable(&sim->live, name)) {
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
    int parent = names[name].parent;
    if (parent >= 0 && !make_directory(sim, parent, err)) return false;
    int inode = sim->live.bound[name];
    if (inode >= 0) return sim->live.inode[inode].directory || failed(err, name, "make this folder", ENOTDIR);
    if (faulty(sim)) return failed(err, name, "make this folder", sim->fault_errno);
    inode = inode_new(&sim->live, true);
    sim->live.bound[name] = (int16_t)inode;
    sim_log(sim, (SimOp){.kind = OP_BIND, .inode = (int16_t)inode, .name = (int16_t)name, .bytes = 1});
    return true;
}

static bool sim_make_directory(CkptIo *io, const char *path, Error *err) {
    pthread_mutex_lock(&mutex);
    bool ok = make_directory(((SimIo *)io->state)->sim, name_of(path), err);
    pthread_mutex_unlock(&mutex);
    return ok;
}

static bool sim_sync_directory(CkptIo *io, const char *path, Error *err) {
    Sim *sim = ((SimIo *)io->state)->sim;
    pthread_mutex_lock(&mutex);
    int name = name_of(path);
    bool ok = reachable(&sim->live, name) || failed(err, name, "open this folder", ENOENT);
    if (ok && faulty(sim)) ok = failed(err, name, "make the names in it durable", sim->fault_errno);
    if (ok) sim_log(sim, (SimOp){.kind = OP_SYNC_NAMES, .name = (int16_t)name});
    pthread_mutex_unlock(&mutex);
    return ok;
}

static bool sim_list(CkptIo *io, const char *path, void (*each)(void *ctx, const char *name), void *ctx,
                     Error *err) {
    (void)err;
    Sim *sim = ((SimIo *)io->state)->sim;
    char found[SIM_NAMES_MAX][PATH_BYTES];
    int count = 0;
    pthread_mutex_lock(&mutex);
    int name = name_of(path);
    for (int i = 0; i < name_count && reachable(&sim->live, name); i++) {
        int n = name_order[i];
        if (names[n].parent == name && sim->live.bound[n] >= 0)
            memcpy(found[count++], strrchr(names[n].path, '/') + 1, strlen(strrchr(names[n].path, '/')));
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
    int name = name_of(path);
    if (!reachable(&sim->live, name)) return false;
    SimInode *inode = &sim->live.inode[sim->live.bound[name]];
    if (byte >= inode->bytes) return false;
    uint32_t page = (uint32_t)(byte / SIM_PAGE_BYTES);
    SimPage *old = inode->pages[page], *image = page_new();
    if (old)
        memcpy(image->data, old->data, SIM_PAGE_BYTES);
    else
        memset(image->data, 0, SIM_PAGE_BYTES);
    image->data[byte % SIM_PAGE_BYTES] ^= (uint8_t)(1u << bit);
    inode->pages[page] = image;
    page_drop(old);
    return true;
}
