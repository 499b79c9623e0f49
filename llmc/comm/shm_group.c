/* shm_group.c: see shm_group.h: opening a group, meeting in it, and the memory of comm_alloc. */
#define _GNU_SOURCE
#include "comm/shm_group.h"
#include "base/check.h"
#include "base/log.h"
#include "base/machine.h"
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* --- meeting --- */

bool shm_late(CommGroup *group, int peer, Error *err) {
    char what[96];
    snprintf(what, sizeof what, "nothing from it for %g s (stopped, or much slower?)",
             group->timeout_seconds);
    return comm_group_fault(group, peer, what, err);
}

static void enter(CommGroup *group, const CommHeader *header, const ShmPlace *place, const void *data,
                  size_t bytes) {
    Shm *shm = group->state;
    shm->round++;
    ShmSlot *mine = shm_slot(shm, group->rank);
    if (header) {
        mine->header = *header;
        mine->place = *place;
        if (bytes) memcpy(mine->data, data, bytes);
    }
    shm_word_set(&mine->entered, shm->round);
}

static bool await(CommGroup *group, Error *err) {
    Shm *shm = group->state;
    for (int i = 1; i < group->size; i++) {
        int r = (group->rank + i) % group->size;
        ShmWaited waited = shm_wait(group, shm->crowded, &shm_slot(shm, r)->entered, shm->round, err);
        if (waited == SHM_FAILED) return false;
        if (waited == SHM_LATE) return shm_late(group, r, err);
    }
    return true;
}

bool shm_step(CommGroup *group, Error *err) {
    enter(group, NULL, NULL, NULL, 0);
    return await(group, err);
}

bool shm_meet(CommGroup *group, const CommHeader *header, const ShmPlace *place, const void *data,
              size_t bytes, Error *err) {
    Shm *shm = group->state;
    enter(group, header, place, data, bytes);
    if (!await(group, err)) return false;
    for (int r = 0; r < group->size; r++) {
        const CommHeader *theirs = &shm_slot(shm, r)->header;
        if (memcmp(theirs, header, sizeof *header)) return comm_group_mismatch(group, r, theirs, err);
    }
    return true;
}

/* --- opening --- */

/* The first group that this process opens is found through the control plane; others are parts of it, found in its
 * boxes. */
static const CommGroup *first_group;
static pthread_mutex_t first_lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t group_key(const CommGroup *group) {
    uint64_t key = 0xcbf29ce484222325u; /* FNV-1a */
    key = (key ^ group->id) * 0x100000001b3u;
    for (int r = 0; r < group->size; r++) key = (key ^ (uint64_t)group->world[r]) * 0x100000001b3u;
    return key ? key : 1;
}

static size_t aligned(size_t bytes) {
    return (bytes + 4095) / 4096 * 4096;
}

/* Where everything lies if it begins at `memory`; and how much it is. */
static void lay_out(Shm *shm, void *memory, size_t n) {
    uintptr_t start = (uintptr_t)memory, at = start;
    shm->head = (void *)at, at += aligned(sizeof(ShmHead));
    shm->slots = (void *)at, at += aligned(2 * n * sizeof(ShmSlot));
    shm->boxes = (void *)at, at += aligned(n * sizeof(ShmBox));
    shm->stages = (void *)at, at += 2 * n * SHM_STAGE_BYTES;
    shm->pairs = (void *)at, at += n * n * sizeof(ShmPair);
    shm->memory = memory;
    shm->memory_bytes = at - start;
}

static int first_rank_of(int world) {
    for (int r = 0; r < first_group->size; r++)
        if (first_group->world[r] == world) return r;
    return -1;
}

/* Where in the first group's memory the leader of this one speaks. */
static ShmBox *leader_box(const CommGroup *group, Error *err) {
    for (int r = 0; r < group->size; r++)
        if (first_rank_of(group->world[r]) < 0) {
            error_set(err, "rank %d shares no memory with this one yet", group->world[r]);
            return NULL;
        }
    const Shm *shm = first_group->state;
    return &shm->boxes[first_rank_of(group->world[0])];
}

static bool wait_for_box(CommGroup *group, ShmBox *box, uint64_t key, Error *err) {
    for (double begin = log_seconds(); atomic_load(&box->key) != key;) {
        if (comm_group_failed(group, err)) return false;
        if (log_seconds() - begin > group->timeout_seconds) return shm_late(group, 0, err);
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
    return true;
}

/* file: in, on the leader, its file; out: the leader's. *box: to be emptied when all have it. */
static bool find_leader(CommGroup *group, uint64_t key, ShmFile *file, ShmBox **box, Error *err) {
    bool leads = group->rank == 0;
    if (first_group) {
        if (!(*box = leader_box(group, err))) return false;
        if (leads) {
            (*box)->file = *file;
            atomic_store(&(*box)->key, key);
        } else {
            if (!wait_for_box(group, *box, key, err)) return false;
            *file = (*box)->file;
        }
        return true;
    }
    ShmFile *all = calloc((size_t)control_size(group->control), sizeof *all);
    CHECK(all);
    bool done = control_all_gather(group->control, file, sizeof *file, all, err);
    if (done && !leads) *file = all[group->world[0]];
    free(all);
    return done;
}

/* More ranks than processors that they may run on? */
static bool is_crowded(const CommGroup *group) {
    const Shm *shm = group->state;
    cpu_set_t all, theirs;
    CPU_ZERO(&all);
    for (int r = 0; r < group->size; r++) {
        memcpy(&theirs, shm_slot(shm, r)->data, sizeof theirs);
        CPU_OR(&all, &all, &theirs);
    }
    int here = 0;
    const char *host = control_host(group->control, group->world[group->rank]);
    for (int r = 0; r < control_size(group->control); r++)
        here += !strcmp(control_host(group->control, r), host);
    return group->size > CPU_COUNT(&all) || here > sysconf(_SC_NPROCESSORS_ONLN);
}

static bool say_hello(CommGroup *group, Error *err) {
    Shm *shm = group->state;
    cpu_set_t mine;
    _Static_assert(sizeof mine <= SHM_SMALL_BYTES, "a set of processors fits into a slot");
    CPU_ZERO(&mine);
    sched_getaffinity(0, sizeof mine, &mine);
    const CommHeader header = {.group = group->id};
    const ShmPlace none = {.offset = 0};
    shm->crowded = true;
    if (!shm_meet(group, &header, &none, &mine, sizeof mine, err)) return false;
    shm->crowded = is_crowded(group);
    return true;
}

static bool allocate_scratch(Shm *shm, size_t n) {
    shm->from = calloc(n, sizeof *shm->from);
    shm->to = calloc(n, sizeof *shm->to);
    shm->offsets = calloc(n + 1, sizeof *shm->offsets);
    return shm->from && shm->to && shm->offsets;
}

/* On the first rank: new memory that holds the group's key. */
static bool make_memory(CommGroup *group, uint64_t key, ShmFile *file, Error *err) {
    Shm *shm = group->state;
    void *memory;
    if (!shm_file_make(file, shm->memory_bytes, false, err)) return false;
    if (shm_file_map(&memory, file, shm->memory_bytes, false, err)) {
        lay_out(shm, memory, (size_t)group->size);
        shm->head->key = key;
        return true;
    }
    shm_file_close(file);
    return false;
}

/* On the others: the first rank's. */
static bool map_memory(CommGroup *group, uint64_t key, const ShmFile *file, Error *err) {
    Shm *shm = group->state;
    void *memory;
    if (file->descriptor < 0)
        return error_set(err, "rank %d has no shared memory for the group", group->world[0]);
    if (!shm_file_map(&memory, file, shm->memory_bytes, false, err)) return false;
    lay_out(shm, memory, (size_t)group->size);
    return shm->head->key == key ||
           error_set(
               err, "process %d shares other memory (are the ranks in different containers? then --comm=mpi)",
               (int)file->process);
}

bool shm_group_open(CommGroup *group, Error *err) {
    const uint64_t key = group_key(group);
    const bool leads = group->rank == 0;
    ShmFile own = {0, -1}, file;
    ShmBox *box = NULL;
    Error ignored;
    Shm *shm = group->state = calloc(1, sizeof *shm);
    CHECK(shm && allocate_scratch(shm, (size_t)group->size));
    lay_out(shm, NULL, (size_t)group->size);
    pthread_mutex_lock(&first_lock);
    /* If the first rank has no memory, it still tells the others, which wait for it. */
    bool made = !leads || make_memory(group, key, &own, err);
    file = own;
    bool done = find_leader(group, key, &file, &box, made ? err : &ignored) && made;
    if (done && !leads && !map_memory(group, key, &file, err)) {
        done = false;
        control_abort(group->control, err->text); /* the others are about to wait for this rank */
    }
    done = done && say_hello(group, err);
    if (done && !first_group) first_group = group;
    if (leads && box) atomic_store(&box->key, 0);
    pthread_mutex_unlock(&first_lock);
    shm_file_close(&own);
    if (!done) shm_group_close(group);
    return done;
}

void shm_group_close(CommGroup *group) {
    Shm *shm = group->state;
    if (!shm) return;
    pthread_mutex_lock(&first_lock);
    if (first_group == group) first_group = NULL;
    pthread_mutex_unlock(&first_lock);
    shm_region_remove(group->id, (uint32_t)group->world[0]);
    shm_unmap(shm->memory, shm->memory_bytes);
    free(shm->from);
    free(shm->to);
    free(shm->offsets);
    free(shm);
    group->state = NULL;
}

/* --- comm_alloc --- */

/* Maps the piece of every rank; bases (size). */
static bool map_pieces(CommGroup *group, size_t bytes, void **bases, Error *err) {
    const Shm *shm = group->state;
    for (int r = 0; r < group->size; r++) {
        ShmFile file;
        memcpy(&file, shm_slot(shm, r)->data, sizeof file);
        if (file.descriptor < 0)
            return error_set(err, "shared memory of %zu bytes: rank %d has none left", bytes,
                             group->world[r]);
        if (!shm_file_map(&bases[r], &file, bytes, true, err)) return false;
    }
    return true;
}

void *shm_group_alloc(CommGroup *group, size_t bytes, Error *err) {
    Shm *shm = group->state;
    const ShmKey key = {group->id, (uint32_t)group->world[0], ++shm->regions};
    const CommHeader header = {.group = group->id, .bytes = bytes};
    const ShmPlace none = {.offset = 0};
    const size_t size = bytes ? bytes : 1;
    Error own_err;
    ShmFile file = {0, -1};
    void **bases = calloc((size_t)group->size, sizeof *bases), *data = NULL;
    /* All ranks meet twice even if this one has failed: then none gets memory. */
    bool done = bases || error_set(&own_err, "no memory for the list of shared memory");
    done = done &&
           machine_check_memory((double)size * group->size, machine_available_bytes(),
                                "shared memory of all ranks", "fewer ranks, or a smaller model", &own_err);
    done = done && shm_file_make(&file, size, true, &own_err);
    if (!shm_meet(group, &header, &none, &file, sizeof file, err)) goto out;
    done = done && map_pieces(group, size, bases, &own_err);
    done = done && shm_region_add(key, size, group->size, group->world, bases, &own_err);
    if (!shm_meet(group, &header, &none, &done, sizeof done, err)) goto out;
    for (int r = 0; r < group->size && done; r++) {
        bool theirs;
        memcpy(&theirs, shm_slot(shm, r)->data, sizeof theirs);
        if (!theirs)
            done = error_set(&own_err, "shared memory of %zu bytes: rank %d could not map it", bytes,
                             group->world[r]);
    }
    if (done)
        data = bases[group->rank];
    else
        *err = own_err;
out:
    shm_file_close(&file);
    free(bases);
    return data;
}
