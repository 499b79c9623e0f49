/* ckpt_lab.h: a small run with checkpoints and no training: tensors with contents that are a function of a seed, cut among
 * writers of this process, in memory with odd neighbours. Needs _XOPEN_SOURCE 700 or _GNU_SOURCE. */
#ifndef CKPT_LAB_H
#define CKPT_LAB_H
#include "base/check.h"
#include "ckpt/ckpt.h"
#include "ckpt/ckpt_reader.h"
#include "test.h"
#include "test_folder.h"
#include <sys/mman.h>

enum { LAB_TENSORS = 12, LAB_WRITERS = 8, LAB_VIEWS = 64, LAB_COPIED = 100 };

typedef struct {
    TensorView tensor; /* begin 0, end: its elements */
    uint64_t bytes;
    char *data; /* somewhere in an arena, all of it */
} LabTensor;

typedef struct {
    uint64_t seed;
    int writers;
    CkptConfig config;
    char directory[512];
    Ckpt *ckpt[LAB_WRITERS];
    TensorView views[LAB_WRITERS][LAB_VIEWS];
    size_t num_views[LAB_WRITERS];
    char *arena; /* tensors one after the other, from odd addresses */
    size_t arena_bytes;
    LabTensor tensors[LAB_TENSORS];
} Lab;

static inline uint32_t lab_random(uint64_t seed, uint64_t index, uint32_t below) {
    uint32_t r[4];
    rng_block(seed, RNG_STREAM(RNG_TEST, 11), index, r);
    return r[0] % below;
}

static inline unsigned char lab_byte(uint64_t seed, int tensor, uint64_t at) {
    uint64_t x = seed * 0x9E3779B97F4A7C15u + (uint64_t)tensor * 0xD1B54A32D192ED03u + at / 8;
    x ^= x >> 31;
    x *= 0xBF58476D1CE4E5B9u;
    return (unsigned char)((x ^ (x >> 29)) >> (at % 8 * 8));
}

static inline void lab_change(Lab *lab, uint64_t seed) {
    for (int t = 0; t < LAB_TENSORS; t++)
        for (uint64_t i = 0; i < lab->tensors[t].bytes; i++)
            lab->tensors[t].data[i] = (char)lab_byte(seed, t, i);
}

/* Shapes: mostly small, some of more than a chunk, some of one element; one of none. */
static inline void lab_shapes(Lab *lab) {
    size_t at = 0;
    for (int t = 0; t < LAB_TENSORS; t++) {
        TensorView *v = &lab->tensors[t].tensor;
        *v = (TensorView){.dims = 1 + t % CKPT_DIMS_MAX};
        snprintf(v->name, sizeof v->name, "layer.%d/t%d", t * 7 % LAB_TENSORS, t);
        v->type = (CkptType)lab_random(lab->seed, (uint64_t)t, 4);
        v->end = 1;
        uint32_t large = t % 4 == 0 ? 500000 : t % 4 == 1 ? 30000 : 300;
        for (int d = 0; d < v->dims; d++) {
            v->shape[d] = d ? 1 + lab_random(lab->seed, (uint64_t)(100 + t * 4 + d), 3)
                            : 1 + lab_random(lab->seed, (uint64_t)(100 + t * 4), large);
            v->end *= v->shape[d];
        }
        if (t == 7) v->end = v->shape[0] = 0;
        lab->tensors[t].bytes = v->end * ckpt_type_bytes(v->type);
        lab->arena_bytes += lab->tensors[t].bytes + 4096;
    }
    lab->arena = mmap(NULL, lab->arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(lab->arena != MAP_FAILED);
    for (int t = 0; t < LAB_TENSORS; t++) {
        lab->tensors[t].data = lab->arena + at;
        at += lab->tensors[t].bytes;
        if (lab_random(lab->seed, (uint64_t)(300 + t), 3)) /* else it touches the next one */
            at = (at + 63) / 64 * 64 + 64 * lab_random(lab->seed, (uint64_t)(400 + t), 60);
    }
}

/* Every tensor is cut into writers + 2 pieces, each given to a writer. */
static inline void lab_cut(Lab *lab) {
    for (int t = 0; t < LAB_TENSORS; t++) {
        uint64_t from = 0, pieces = (uint64_t)lab->writers + 2;
        for (uint64_t p = 0; p < pieces; p++) {
            TensorView v = lab->tensors[t].tensor;
            uint64_t to = p == pieces - 1 || !v.end
                              ? v.end
                              : from + lab_random(lab->seed, 1000 * (uint64_t)(t + 1) + p,
                                                  (uint32_t)(v.end - from) / 2 + 1);
            v.begin = from;
            v.end = to;
            v.data = lab->tensors[t].data + from * ckpt_type_bytes(v.type);
            v.copied = (to - from) * ckpt_type_bytes(v.type) < LAB_COPIED;
            int w = (int)lab_random(lab->seed, 2000 * (uint64_t)(t + 1) + p, (uint32_t)lab->writers);
            lab->views[w][lab->num_views[w]++] = v;
            from = to;
        }
    }
}

/* One folder for every name. attempt: of the run; counts from 1. */
static inline void lab_start(Lab *lab, uint32_t attempt, CkptId newest) {
    for (int w = 0; w < lab->writers; w++) {
        Error err = {""};
        CkptConfig config = lab->config;
        config.directory = lab->directory;
        config.rank = w;
        config.attempt = attempt;
        config.node_first = w == 0;
        config.newest = newest;
        config.newest_agreed = true;
        config.payload_bytes = 0;
        for (size_t i = 0; i < lab->num_views[w]; i++)
            config.payload_bytes +=
                (lab->views[w][i].end - lab->views[w][i].begin) * ckpt_type_bytes(lab->views[w][i].type);
        TEST_CHECK(ckpt_open(&lab->ckpt[w], &config, &err), "%s", err.text);
        CHECK(lab->ckpt[w] != NULL);
    }
}

static inline void lab_stop(Lab *lab) {
    for (int w = 0; w < lab->writers; w++) {
        ckpt_close(lab->ckpt[w]);
        lab->ckpt[w] = NULL;
    }
}

static inline void lab_open(Lab *lab, uint64_t seed, int writers, CkptPolicy policy) {
    *lab = (Lab){.seed = seed, .writers = writers};
    char name[40];
    snprintf(name, sizeof name, "run%llu", (unsigned long long)seed);
    snprintf(lab->directory, sizeof lab->directory, "%s", test_path(name).path);
    lab->config = (CkptConfig){.directory = lab->directory,
                               .node = "host.example",
                               .io = "auto",
                               .size = writers,
                               .run = {1, 2, 3, (uint8_t)seed},
                               .views_max = LAB_VIEWS,
                               .keep = 2,
                               .policy = policy};
    lab_shapes(lab);
    lab_cut(lab);
    lab_change(lab, seed);
    lab_start(lab, 1, (CkptId){0, 0});
}

static inline void lab_close(Lab *lab) {
    lab_stop(lab);
    munmap(lab->arena, lab->arena_bytes);
}

static inline void lab_begin(Lab *lab, uint64_t step) {
    for (int w = 0; w < lab->writers; w++) {
        Error err = {""};
        TEST_CHECK(ckpt_begin(lab->ckpt[w], step, lab->views[w], lab->num_views[w], &err), "%s", err.text);
    }
}

/* All writers save; then all commit. */
static inline void lab_save(Lab *lab, uint64_t step, bool commit) {
    lab_begin(lab, step);
    for (int w = 0; w < lab->writers; w++) ckpt_fence(lab->ckpt[w]);
    for (int w = 0; w < lab->writers; w++) {
        bool done = ckpt_wait(lab->ckpt[w], 60);
        TEST_CHECK(done, "step %d: %s", (int)step, ckpt_status(lab->ckpt[w]).error.text);
    }
    for (int w = 0; commit && w < lab->writers; w++) {
        ckpt_commit(lab->ckpt[w], step, false);
        TEST_CHECK(ckpt_wait(lab->ckpt[w], 60), "commit of step %d", (int)step);
    }
}

/* Does every range that is asked for read as it was written with this seed? */
static inline void lab_check_reader(Lab *lab, CkptReader *reader, CkptId id, uint64_t seed) {
    Error err = {""};
    for (int t = 0; t < LAB_TENSORS; t++) {
        const TensorView *v = &lab->tensors[t].tensor;
        size_t element = ckpt_type_bytes(v->type);
        for (uint64_t k = 0; k < 4 && v->end; k++) {
            uint64_t begin = k ? lab_random(seed, 5000 + 10 * (uint64_t)t + k, (uint32_t)v->end) : 0;
            uint64_t end =
                k ? begin + 1 + lab_random(seed, 6000 + 10 * (uint64_t)t + k, (uint32_t)(v->end - begin))
                  : v->end;
            unsigned char *data = malloc((end - begin) * element + 1);
            CHECK(data != NULL);
            test_poison(data, (end - begin) * element + 1);
            bool ok = ckpt_reader_read(reader, id, v->name, v->type, begin, end, data, &err);
            TEST_CHECK(ok && ckpt_reader_has(reader, id, v->name, begin, end), "%s %s", v->name, err.text);
            uint64_t wrong = 0;
            for (uint64_t i = 0; i < (end - begin) * element; i++)
                wrong += data[i] != lab_byte(seed, t, begin * element + i);
            TEST_CHECK(wrong == 0 && data[(end - begin) * element] == 0xff, "%s: %d bytes are wrong", v->name,
                       (int)wrong);
            free(data);
        }
    }
}

/* The same of whole tensors, read all at once. */
static inline void lab_check_all(Lab *lab, CkptReader *reader, CkptId id, uint64_t seed) {
    CkptWanted wanted[LAB_TENSORS];
    Error err = {""};
    for (int t = 0; t < LAB_TENSORS; t++) {
        const TensorView *v = &lab->tensors[t].tensor;
        wanted[t] = (CkptWanted){v->name, v->type, 0, v->end, malloc(lab->tensors[t].bytes + 1)};
        CHECK(wanted[t].data != NULL);
        test_poison(wanted[t].data, lab->tensors[t].bytes);
    }
    TEST_CHECK(ckpt_reader_read_all(reader, id, wanted, LAB_TENSORS, 0, &err), "%s", err.text);
    for (int t = 0; t < LAB_TENSORS; t++) {
        uint64_t wrong = 0;
        for (uint64_t i = 0; i < lab->tensors[t].bytes; i++)
            wrong += ((unsigned char *)wanted[t].data)[i] != lab_byte(seed, t, i);
        TEST_CHECK(wrong == 0, "%s: %d bytes are wrong", wanted[t].name, (int)wrong);
        free(wanted[t].data);
    }
    wanted[0].name = "none such";
    TEST_CHECK(!ckpt_reader_read_all(reader, id, wanted, 1, 3, &err), "no such tensor");
}

static inline void lab_check(Lab *lab, CkptId id, uint64_t seed) {
    CkptReader *reader;
    const CkptInfo *list;
    Error err = {""};
    uint64_t bad = 99;
    if (!ckpt_reader_open(&reader, lab->directory, &err)) {
        TEST_CHECK(false, "%s", err.text);
        return;
    }
    size_t n = ckpt_reader_list(reader, &list);
    TEST_CHECK(n > 0 && !ckpt_id_compare(list[0].id, id), "%d checkpoints", (int)n);
    TEST_CHECK(n > 0 && list[0].state == CKPT_RESTORABLE, "%s", list[0].why);
    lab_check_reader(lab, reader, id, seed);
    lab_check_all(lab, reader, id, seed);
    TEST_CHECK(ckpt_reader_verify(reader, id, &bad, NULL, &err) && bad == 0, "%s", err.text);
    ckpt_reader_close(reader);
}
#endif
