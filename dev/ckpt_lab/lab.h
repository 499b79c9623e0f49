/* lab.h: what the crash tests on real files save and how they know it again: every byte of a checkpoint is a pure
 * function of its id, so that a check needs nothing but the folder.
 *
 * What always holds: LabShape is the same in the writing and the checking program, or everything is said to be bad. */
#ifndef CKPT_LAB_H
#define CKPT_LAB_H
#include "base/check.h"
#include "ckpt/ckpt_reader.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAB_WRITERS_MAX = 8, LAB_SEEN_MAX = 64 };

/* The tensor "weights" takes `bytes`, divided among the writers; "state", 64 bytes, is writer 0's alone. */
typedef struct {
    int writers, keep;
    size_t bytes;
} LabShape;

enum { LAB_STATE_ELEMENTS = 16 };

static inline void lab_fill(void *to, uint64_t begin, uint64_t end, CkptId id, uint64_t tensor) {
    uint32_t *word = to;
    uint64_t key =
        (id.attempt * UINT64_C(0x9E3779B97F4A7C15)) ^ (id.step * UINT64_C(0xD1B54A32D192ED03)) ^ tensor << 60;
    for (uint64_t i = begin; i < end; i++)
        word[i - begin] = (uint32_t)((((i + 1) * 0xBF58476D1CE4E5B9u) ^ key) >> 29);
}

static inline void lab_range(const LabShape *shape, int rank, uint64_t *begin, uint64_t *end) {
    uint64_t n = shape->bytes / 4;
    *begin = n * (uint64_t)rank / (uint64_t)shape->writers;
    *end = n * (uint64_t)(rank + 1) / (uint64_t)shape->writers;
}

/* --- the check --- */

typedef struct {
    CkptId restorable[LAB_SEEN_MAX]; /* newest first */
    int count, bad;
    char why[1024]; /* the first bad thing */
} LabSeen;

static inline void lab_bad(LabSeen *seen, CkptId id, const char *what, const char *why) {
    if (seen->bad++ == 0)
        snprintf(seen->why, sizeof seen->why, "%u.%llu: %s: %s", id.attempt, (unsigned long long)id.step,
                 what, why);
}

static inline void lab_check_tensor(CkptReader *reader, CkptId id, const char *name, uint64_t tensor,
                                    uint64_t elements, LabSeen *seen) {
    Error err;
    uint32_t *is = malloc(elements * 4), *should = malloc(elements * 4);
    CHECK(is && should);
    memset(is, 0xff, elements * 4);
    lab_fill(should, 0, elements, id, tensor);
    if (!ckpt_reader_read(reader, id, name, CKPT_FP32, 0, elements, is, &err))
        lab_bad(seen, id, name, err.text);
    else if (memcmp(is, should, elements * 4) != 0)
        lab_bad(seen, id, name, "accepted, but differs from what was saved");
    free(is);
    free(should);
}

/* Reads everything that says it is restorable. */
static inline void lab_check(const char *folder, const LabShape *shape, LabSeen *seen) {
    Error err;
    CkptReader *reader;
    const CkptInfo *list;
    *seen = (LabSeen){.count = 0};
    if (!ckpt_reader_open(&reader, folder, &err)) {
        lab_bad(seen, (CkptId){0}, "the folder", err.text);
        return;
    }
    size_t n = ckpt_reader_list(reader, &list);
    for (size_t i = 0; i < n; i++) {
        if (list[i].state == CKPT_CORRUPT) lab_bad(seen, list[i].id, "corrupt", list[i].why);
        if (list[i].state != CKPT_RESTORABLE || seen->count == LAB_SEEN_MAX) continue;
        seen->restorable[seen->count++] = list[i].id;
        lab_check_tensor(reader, list[i].id, "weights", 0, shape->bytes / 4, seen);
        lab_check_tensor(reader, list[i].id, "state", 1, LAB_STATE_ELEMENTS, seen);
    }
    ckpt_reader_close(reader);
}

/* Was this acknowledged checkpoint lost? Not if it, or `keep` newer ones, are there. */
static inline bool lab_lost(const LabSeen *seen, const LabShape *shape, CkptId acknowledged) {
    int newer = 0;
    for (int i = 0; i < seen->count; i++) {
        int order = ckpt_id_compare(seen->restorable[i], acknowledged);
        if (order == 0) return false;
        newer += order > 0;
    }
    return newer < shape->keep;
}
#endif
