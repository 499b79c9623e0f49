/* ckpt_sim_disk.c: see ckpt_sim_disk.h. */
#include "ckpt_sim_disk.h"
#include "base/check.h"
#include <stdlib.h>
#include <string.h>

enum { SECTORS = SIM_PAGE_BYTES / CKPT_IO_SECTOR_BYTES, ALL_SECTORS = 0xff };
_Static_assert(SECTORS == 8, "sectors of a page are the bits of a byte");

static SimPage *free_pages;

/* --- pages: shared by reference count, copied when written to --- */

SimPage *sim_page_new(void) {
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

void sim_page_drop(SimPage *p) {
    if (!p || --p->refs) return;
    p->next_free = free_pages;
    free_pages = p;
}

/* --- names: numbered once for the process; a number stands for a path --- */

SimName sim_names[SIM_NAMES_MAX];
int sim_name_count, sim_name_order[SIM_NAMES_MAX];

void sim_names_forget(void) {
    sim_name_count = 0;
}

int sim_name_of(const char *path) {
    int low = 0, high = sim_name_count;
    while (low < high) {
        int middle = (low + high) / 2, order = strcmp(sim_names[sim_name_order[middle]].path, path);
        if (order == 0) return sim_name_order[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    size_t length = strlen(path);
    CHECK(length < SIM_PATH_BYTES);
    CHECK_OP(sim_name_count, <, SIM_NAMES_MAX);
    int parent = -1;
    const char *slash = strrchr(path, '/');
    if (slash && slash > path) {
        char above[SIM_PATH_BYTES];
        memcpy(above, path, (size_t)(slash - path));
        above[slash - path] = 0;
        parent = sim_name_of(above);
        for (low = 0; low < sim_name_count && strcmp(sim_names[sim_name_order[low]].path, path) < 0;) low++;
    }
    memcpy(sim_names[sim_name_count].path, path, length + 1);
    sim_names[sim_name_count].parent = parent;
    memmove(sim_name_order + low + 1, sim_name_order + low,
            (size_t)(sim_name_count - low) * sizeof *sim_name_order);
    sim_name_order[low] = sim_name_count;
    return sim_name_count++;
}

/* --- worlds --- */

bool sim_reachable(const SimWorld *w, int name) {
    for (; name >= 0; name = sim_names[name].parent)
        if (w->bound[name] < 0) return false;
    return true;
}

void sim_inode_reserve(SimInode *inode, uint64_t bytes) {
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
        sim_page_drop(old);
        return;
    }
    if (!old || old->refs > 1) {
        *slot = sim_page_new();
        if (old)
            memcpy((*slot)->data, old->data, SIM_PAGE_BYTES);
        else
            memset((*slot)->data, 0, SIM_PAGE_BYTES);
        sim_page_drop(old);
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
        for (uint32_t p = 0; p < world->inode[i].page_count; p++) sim_page_drop(world->inode[i].pages[p]);
        free(world->inode[i].pages);
    }
    world->inodes = 0;
}

int sim_inode_new(SimWorld *w, bool directory) {
    CHECK_OP(w->inodes, <, SIM_INODES_MAX);
    w->inode[w->inodes] = (SimInode){.directory = directory};
    return w->inodes++;
}

/* Files that no name stands for any more are left out. */
static void world_compact(SimWorld *to, const SimWorld *from) {
    to->inodes = 0;
    memset(to->bound, 0xff, sizeof to->bound);
    for (int name = 0; name < sim_name_count; name++) {
        if (!sim_reachable(from, name)) continue;
        const SimInode *inode = &from->inode[from->bound[name]];
        int n = sim_inode_new(to, inode->directory);
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
        sim->live.bound[sim_name_of(SIM_ROOT)] = (int16_t)sim_inode_new(&sim->live, true);
    }
    if (recording) sim_world_copy(&sim->base, &sim->live);
}

void sim_close(Sim *sim) {
    for (size_t i = 0; i < sim->ops; i++) sim_page_drop(sim->log[i].image);
    free(sim->log);
    sim_world_drop(&sim->live);
    sim_world_drop(&sim->base);
}

size_t sim_position(const Sim *sim) {
    return sim->ops;
}

/* --- the log, and what a crash leaves of it --- */

void sim_log(Sim *sim, SimOp op) {
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
    while (w->inodes <= inode) sim_inode_new(w, false);
    return &w->inode[inode];
}

/* op, as far as `sectors` of a page write go. */
void sim_world_apply(SimWorld *w, const SimOp *op, uint8_t sectors) {
    switch ((SimOpKind)op->kind) {
    case OP_WRITE: {
        SimInode *inode = world_inode(w, op->inode);
        sim_inode_reserve(inode, op->bytes);
        inode_put(inode, op->page, sectors & op->sectors, op->image);
        break;
    }
    case OP_EXTEND: sim_inode_reserve(world_inode(w, op->inode), op->bytes); break;
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
        bool concerned = sync->kind == OP_SYNC_NAMES
                             ? !is_data(op) && sim_names[op->name].parent == sync->name
                             : is_data(op) && op->inode == sync->inode;
        if (!concerned)
            c->pending[left++] = c->pending[i];
        else if (sync->kind == OP_SYNC_FAILED)
            sim_world_apply(&c->durable, op, (uint8_t)sim_random(&c->rng));
        else
            sim_world_apply(&c->durable, op, ALL_SECTORS);
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
        if (sectors) sim_world_apply(world, op, sectors);
    }
    for (size_t i = 0; i < c->pendings; i++) { /* names in their order, or an older name would win */
        const SimOp *op = &c->sim->log[c->pending[i]];
        if (is_data(op)) continue;
        if (journal ? i < names_left : (sim_random(&c->rng) & 1)) sim_world_apply(world, op, 0);
    }
    free(order);
}
