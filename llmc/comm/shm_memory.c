/* shm_memory.c: see shm_memory.h. */
#define _GNU_SOURCE
#include "comm/shm_memory.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const size_t HUGE_BYTES = 2 << 20;

/* --- files --- */

bool shm_file_make(ShmFile *file, size_t bytes, bool reserve, Error *err) {
    *file = (ShmFile){(int32_t)getpid(), memfd_create("toroid", MFD_CLOEXEC)};
    if (file->descriptor < 0) return error_set_errno(err, "shared memory of %zu bytes: memfd_create", bytes);
    int failed = ftruncate(file->descriptor, (off_t)bytes) ? errno : 0;
    while (!failed && reserve && fallocate(file->descriptor, 0, 0, (off_t)bytes) && errno != EOPNOTSUPP)
        if (errno != EINTR) failed = errno;
    if (!failed) return true;
    shm_file_close(file);
    errno = failed;
    return error_set_errno(err, "shared memory of %zu bytes", bytes);
}

void shm_file_close(ShmFile *file) {
    if (file->descriptor >= 0) close(file->descriptor);
    file->descriptor = -1;
}

/* Rounds up to whole huge pages; an address range of that size that starts on one. */
static size_t mapped_bytes(size_t bytes) {
    return (bytes + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
}

static char *reserve_addresses(size_t bytes) {
    size_t more = bytes + HUGE_BYTES;
    char *start = mmap(NULL, more, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return NULL;
    size_t before = (HUGE_BYTES - (uintptr_t)start % HUGE_BYTES) % HUGE_BYTES;
    if (before) munmap(start, before);
    if (before < HUGE_BYTES) munmap(start + before + bytes, HUGE_BYTES - before);
    return start + before;
}

bool shm_file_map(void **data, const ShmFile *file, size_t bytes, bool touch, Error *err) {
    char path[64];
    char *address = NULL;
    bool done = false;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)file->process, (int)file->descriptor);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        error_set_errno(
            err,
            "shared memory of process %d: %s (are the ranks of one host in different containers, or of "
            "different users? then --comm=mpi)",
            (int)file->process, path);
        goto out;
    }
    struct stat status;
    if (fstat(fd, &status) || (uint64_t)status.st_size != bytes) {
        error_set(
            err,
            "shared memory of process %d: %s is something else (are the ranks in different containers? then "
            "--comm=mpi)",
            (int)file->process, path);
        goto out;
    }
    address = reserve_addresses(mapped_bytes(bytes));
    if (!address ||
        mmap(address, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        error_set_errno(err, "shared memory of process %d: mmap of %zu bytes", (int)file->process, bytes);
        goto out;
    }
    madvise(address, bytes, MADV_HUGEPAGE); /* where the system allows it */
#ifdef MADV_POPULATE_WRITE
    if (touch) madvise(address, bytes, MADV_POPULATE_WRITE); /* since Linux 5.14 */
#else
    (void)touch;
#endif
    *data = address;
    done = true;
out:
    if (!done && address) shm_unmap(address, bytes);
    if (fd >= 0) close(fd);
    return done;
}

void shm_unmap(void *data, size_t bytes) {
    if (data) munmap(data, mapped_bytes(bytes));
}

/* --- regions --- */

typedef struct ShmRegion {
    struct ShmRegion *next;
    ShmKey key;
    size_t bytes;
    int size;
    int *world;   /* (size) */
    void **bases; /* (size) */
} ShmRegion;

/* Of this process: a group may be given buffers that another one allocated. */
static ShmRegion *regions;
static pthread_mutex_t regions_lock = PTHREAD_MUTEX_INITIALIZER;

static void region_free(ShmRegion *region) {
    if (!region) return;
    free(region->world);
    free(region->bases);
    free(region);
}

bool shm_region_add(ShmKey key, size_t bytes, int size, const int *world, void *const *bases, Error *err) {
    ShmRegion *region = calloc(1, sizeof *region);
    size_t n = (size_t)size;
    if (!region || !(region->world = malloc(n * sizeof *world)) ||
        !(region->bases = malloc(n * sizeof *bases))) {
        region_free(region);
        return error_set(err, "no memory for the list of shared memory");
    }
    region->key = key;
    region->bytes = bytes;
    region->size = size;
    memcpy(region->world, world, n * sizeof *world);
    memcpy(region->bases, bases, n * sizeof *bases);
    pthread_mutex_lock(&regions_lock);
    region->next = regions;
    regions = region;
    pthread_mutex_unlock(&regions_lock);
    return true;
}

void shm_region_remove(uint32_t group, uint32_t leader) {
    pthread_mutex_lock(&regions_lock);
    for (ShmRegion **at = &regions; *at;) {
        ShmRegion *region = *at;
        if (region->key.group != group || region->key.leader != leader) {
            at = &region->next;
            continue;
        }
        *at = region->next;
        for (int r = 0; r < region->size; r++) shm_unmap(region->bases[r], region->bytes);
        region_free(region);
    }
    pthread_mutex_unlock(&regions_lock);
}

static int region_index(const ShmRegion *region, int world) {
    for (int r = 0; r < region->size; r++)
        if (region->world[r] == world) return r;
    return -1;
}

static bool region_has_all(const ShmRegion *region, const CommGroup *group) {
    for (int r = 0; r < group->size; r++)
        if (region_index(region, group->world[r]) < 0) return false;
    return true;
}

ShmPlace shm_region_find(const CommGroup *group, const void *data, size_t bytes) {
    ShmPlace place = {.offset = 0};
    pthread_mutex_lock(&regions_lock);
    for (const ShmRegion *region = regions; region; region = region->next) {
        int mine = region_index(region, group->world[group->rank]);
        if (mine < 0) continue;
        uintptr_t offset =
            (uintptr_t)data - (uintptr_t)region->bases[mine]; /* wraps if data lies before it */
        if (offset > region->bytes || bytes > region->bytes - offset) continue;
        if (region_has_all(region, group)) {
            place.key = region->key;
            place.offset = offset;
        }
        break;
    }
    pthread_mutex_unlock(&regions_lock);
    return place;
}

void *shm_region_at(const ShmPlace *place, int world) {
    void *at = NULL;
    pthread_mutex_lock(&regions_lock);
    for (const ShmRegion *region = regions; region && !at; region = region->next) {
        const ShmKey *key = &region->key;
        if (key->group != place->key.group || key->leader != place->key.leader ||
            key->number != place->key.number)
            continue;
        int r = region_index(region, world);
        if (r >= 0) at = (char *)region->bases[r] + place->offset;
    }
    pthread_mutex_unlock(&regions_lock);
    return at;
}
