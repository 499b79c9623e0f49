/* ckpt_sim_disk.h: simulated disks: files in memory, a log of every operation on them, and from the log any number of
 * crash states: what a disk may hold when the power fails after operation k.
 *
 * The model. A write is durable once its file was synced, a name once its folder was. Of the rest each crash state has
 * a random part: writes in any order, each whole, not at all, or torn at 512-byte sectors; names either a prefix of what
 * was done (a journal) or any subset (worse than any file system we know). A sync that fails leaves some sectors behind
 * and forgets the others for good, as Linux does with pages whose write-back failed; the running process does not see
 * the difference. Allocated but never written bytes are zeros; reused files keep their old bytes.
 *
 * What always holds: pages are shared between worlds and copied when written to; crash states are a pure function of the
 * log and the random state. Nothing here is for two threads at a time (ckpt_io_sim.c takes turns). */
#ifndef CKPT_SIM_DISK_H
#define CKPT_SIM_DISK_H
#include "ckpt/ckpt_io.h"

enum { SIM_PAGE_BYTES = 4096, SIM_INODES_MAX = 192, SIM_NAMES_MAX = 512, SIM_FILE_PAGES_MAX = 1024 };

#define SIM_ROOT "sim" /* the one folder that an empty disk has */

typedef struct SimPage {
    int refs;
    struct SimPage *next_free;
    uint8_t data[SIM_PAGE_BYTES];
} SimPage;

typedef struct {
    SimPage **pages; /* NULL: zeros */
    uint32_t page_count;
    bool directory;
    uint64_t bytes;
} SimInode;

/* A disk: what every name stands for (an inode, -1: nothing) and what is in it. */
typedef struct {
    SimInode inode[SIM_INODES_MAX];
    int16_t bound[SIM_NAMES_MAX];
    int inodes;
} SimWorld;

typedef enum {
    OP_WRITE,
    OP_EXTEND,
    OP_SYNC,
    OP_SYNC_FAILED,
    OP_BIND,
    OP_UNBIND,
    OP_RENAME,
    OP_SYNC_NAMES
} SimOpKind;

typedef struct {
    uint8_t kind;    /* SimOpKind */
    uint8_t sectors; /* of a page write: bit i is sector i */
    int16_t inode, name, to;
    uint32_t page;
    uint64_t bytes;
    SimPage *image;
} SimOp;

typedef struct {
    SimWorld live, base; /* what the process sees; what was durable when the log began */
    bool recording;
    SimOp *log;
    size_t ops, room;
    uint64_t rng;
    /* faults: operations fault_from <= n < fault_to that change something fail with fault_errno */
    uint64_t changes, fault_from, fault_to;
    int fault_errno;
    bool killed;         /* the faults are the end of the process: they leave no trace on the disk */
    uint64_t free_bytes; /* what free_bytes answers */
} Sim;

/* Begins with a copy of *start (NULL: an empty disk). */
void sim_open(Sim *sim, const SimWorld *start, bool recording, uint64_t seed);
void sim_close(Sim *sim);
/* Where the log is: after operations [0, n). */
size_t sim_position(const Sim *sim);
void sim_world_copy(SimWorld *to, const SimWorld *from);
void sim_world_drop(SimWorld *world);

/* A walk along the log of a simulation: what is durable, and what is not yet. */
typedef struct {
    const Sim *sim;
    SimWorld durable;
    uint32_t *pending;
    size_t pendings, next;
    uint64_t rng;
} SimCursor;

void sim_cursor_open(SimCursor *cursor, const Sim *sim, uint64_t seed);
void sim_cursor_close(SimCursor *cursor);
/* Goes on to position >= the present one. */
void sim_cursor_advance(SimCursor *cursor, size_t position);
/* One possible disk after a crash here, another one at every call; sim_world_drop it. */
void sim_cursor_crash(SimCursor *cursor, SimWorld *world);

static inline uint64_t sim_random(uint64_t *state) { /* splitmix64: Steele, Lea, Flood, OOPSLA 2014 */
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* --- for the body --- */

enum { SIM_PATH_BYTES = 160 };
/* Names are numbered once for the process; a number stands for a path. */
typedef struct {
    char path[SIM_PATH_BYTES];
    int parent; /* -1: at the top, and always there */
} SimName;
extern SimName sim_names[SIM_NAMES_MAX];
extern int sim_name_count, sim_name_order[SIM_NAMES_MAX]; /* order: sorted by path */
int sim_name_of(const char *path);
/* All numbers begin anew; only while there is no world. */
void sim_names_forget(void);
/* Does the name stand for something, and are all folders above it there? */
bool sim_reachable(const SimWorld *world, int name);

SimPage *sim_page_new(void);
void sim_page_drop(SimPage *page);
int sim_inode_new(SimWorld *world, bool directory);
/* Makes it at least `bytes` long. */
void sim_inode_reserve(SimInode *inode, uint64_t bytes);
void sim_log(Sim *sim, SimOp op);
/* The operation, as far as these sectors of a page write go. */
void sim_world_apply(SimWorld *world, const SimOp *op, uint8_t sectors);
#endif
