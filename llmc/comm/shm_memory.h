/* shm_memory.h: memory that the processes of one host share, and the list of what comm_alloc gave out.
 *
 * A piece of memory is a file without a name (memfd). Its maker tells the others its process and descriptor, they open
 * it through /proc and map it, and all close it: it ends with the last process that maps it, however that ends, so
 * nothing is ever left behind. Unlike files in /dev/shm it is not bounded by that mount (64 MB in many containers).
 *
 * A region is what one comm_alloc gave to the ranks of a group: a piece of every rank, mapped by all of them. */
#ifndef LLMC_COMM_SHM_MEMORY_H
#define LLMC_COMM_SHM_MEMORY_H
#include "comm/backend.h"
#include <sys/types.h>

/* How another process finds a file without a name. */
typedef struct {
    int32_t process;
    int32_t descriptor; /* -1: there is none */
} ShmFile;

/* A new file of zeros. reserve: its pages are made now, for a page that cannot be made later ends the process. */
bool shm_file_make(ShmFile *file, size_t bytes, bool reserve, Error *err);
/* Maps the file of this or another process; 2 MiB aligned. touch: sets up the page tables now rather than on first use. */
bool shm_file_map(void **data, const ShmFile *file, size_t bytes, bool touch, Error *err);
void shm_file_close(ShmFile *file);       /* of this process; it may have none */
void shm_unmap(void *data, size_t bytes); /* NULL: nothing */

/* Names a region in all processes alike. */
typedef struct {
    uint32_t group, leader; /* number of the group, world rank of its rank 0 */
    uint32_t number;        /* of the comm_alloc in its group, from 1; 0: no region */
} ShmKey;

/* Where a buffer lies: `offset` bytes into the piece of the rank that says so. */
typedef struct {
    ShmKey key;
    uint32_t unused;
    uint64_t offset;
} ShmPlace;

/* Adds a region: bases (size) is where the pieces of the ranks `world` (size) are mapped here. Both are copied. */
bool shm_region_add(ShmKey key, size_t bytes, int size, const int *world, void *const *bases, Error *err);
/* Unmaps and forgets all regions of a group. */
void shm_region_remove(uint32_t group, uint32_t leader);

/* Where data lies in the regions of this process; key.number is 0 if not in one that all ranks of the group have. */
ShmPlace shm_region_find(const CommGroup *group, const void *data, size_t bytes);
/* Where the place that `world` rank told lies here; NULL if it is in no region, which shm_region_find excludes. */
void *shm_region_at(const ShmPlace *place, int world);
#endif
