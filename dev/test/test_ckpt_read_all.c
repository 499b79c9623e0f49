/* test_ckpt_read_all.c: many tensors by many threads at once, large and tiny, side by side in one block of memory as a model's
 * are, each in one to three pieces: into a block laid out as the saved one, into others, and parts of them; and a flipped bit in any of them is found and its tensor named. */
#define _GNU_SOURCE
#include "base/log.h"
#include "ckpt/ckpt_reader.h"
#include "test.h"
#include "test_folder.h"
#include <fcntl.h>

enum { TENSORS = 40, PIECES = 3, BLOCK = 4096, GAP = 16, SMALL_MAX = 3000, LARGE_MAX = 2000000 };

typedef struct {
    char name[16];
    uint64_t first, count; /* elements of the block */
} Tensor;

static Error err;
static Tensor tensors[TENSORS];
static uint64_t elements, room, draws;
static float *saved, *back; /* (elements), (room) */
static char folder[600];

static uint64_t draw(uint64_t below) {
    return (uint64_t)(rng_uniform(11, RNG_STREAM(RNG_TEST, 1), draws++) * (double)below);
}

static float *block_new(uint64_t count) {
    void *p;
    CHECK(posix_memalign(&p, BLOCK, count * sizeof(float)) == 0);
    return p;
}

static void make_tensors(void) {
    for (int t = 0; t < TENSORS; t++) {
        snprintf(tensors[t].name, sizeof tensors[t].name, "tensor-%02d", t);
        tensors[t].first = elements;
        tensors[t].count = 1 + draw(t % 4 == 3 ? LARGE_MAX : SMALL_MAX);
        elements += tensors[t].count;
    }
    saved = block_new(elements);
    room = elements + TENSORS * GAP + BLOCK;
    back = block_new(room);
    test_fill(saved, elements, 1, 1);
}

static void save(Ckpt *ckpt) {
    static TensorView views[TENSORS * PIECES];
    size_t count = 0;
    for (int t = 0; t < TENSORS; t++)
        for (uint64_t begin = 0, end; begin < tensors[t].count; begin = end) {
            end =
                t % 5 == 2 && count % PIECES ? begin + 1 + draw(tensors[t].count - begin) : tensors[t].count;
            TensorView *v = &views[count++];
            CHECK(count <= TENSORS * PIECES);
            *v = (TensorView){.dims = 1,
                              .shape = {tensors[t].count},
                              .begin = begin,
                              .end = end,
                              .data = saved + tensors[t].first + begin};
            memcpy(v->name, tensors[t].name, sizeof tensors[t].name);
        }
    CHECK(ckpt_begin(ckpt, 1, views, count, &err) && ckpt_wait(ckpt, 600));
    ckpt_fence(ckpt);
    ckpt_commit(ckpt, 1, false);
    CHECK(ckpt_wait(ckpt, 600));
}

static bool read_all(const CkptWanted *wanted, size_t count, int threads) {
    CkptReader *reader = NULL;
    CHECK(ckpt_reader_open(&reader, folder, &err));
    bool ok = ckpt_reader_read_all(reader, (CkptId){1, 1}, wanted, count, threads, &err);
    ckpt_reader_close(reader);
    return ok;
}

/* Every tensor, one behind the other with `gap` floats between them, the first `gap` floats behind an aligned address;
 * reversed: the last first. */
static void read_block(uint64_t gap, bool reversed, int threads) {
    CkptWanted wanted[TENSORS];
    float *to = back;
    test_poison(back, room * sizeof *back);
    for (int i = 0; i < TENSORS; i++) {
        const Tensor *t = &tensors[reversed ? TENSORS - 1 - i : i];
        wanted[i] = (CkptWanted){t->name, CKPT_FP32, 0, t->count, to += gap};
        to += t->count;
    }
    TEST_CHECK(read_all(wanted, TENSORS, threads), "%s", err.text);
    int same = 0, beside = 0;
    for (int i = 0; i < TENSORS; i++) {
        const Tensor *t = &tensors[reversed ? TENSORS - 1 - i : i];
        const float *got = wanted[i].data;
        same += !memcmp(got, saved + t->first, t->count * sizeof *got);
        for (uint64_t g = 1; g <= gap; g++) beside += !isnan(got[-(int64_t)g]);
    }
    for (; to < back + room; to++) beside += !isnan(*to);
    TEST_CHECK(same == TENSORS && !beside,
               "gap %d, reversed %d: %d tensors are right, %d elements beside them written", (int)gap,
               reversed, (int)same, (int)beside);
}

/* A part of each tensor, one behind the other. */
static void read_parts(void) {
    CkptWanted wanted[TENSORS];
    float *to = back;
    test_poison(back, room * sizeof *back);
    for (int t = 0; t < TENSORS; t++) {
        uint64_t begin = draw(tensors[t].count), end = begin + draw(tensors[t].count - begin + 1);
        wanted[t] = (CkptWanted){tensors[t].name, CKPT_FP32, begin, end, to};
        to += end - begin;
    }
    TEST_CHECK(read_all(wanted, TENSORS, 0), "%s", err.text);
    for (int t = 0; t < TENSORS; t++)
        TEST_CHECK(!memcmp(wanted[t].data, saved + tensors[t].first + wanted[t].begin,
                           (wanted[t].end - wanted[t].begin) * sizeof(float)),
                   "%s: other bytes", wanted[t].name);
    TEST_CHECK(isnan(*to), "written behind the parts");
}

/* The one segment, and where the block begins in it. */
static int open_segment(off_t *at) {
    CkptReader *reader;
    const CkptShard *shards;
    size_t count, bytes;
    CHECK(ckpt_reader_open(&reader, folder, &err));
    CHECK(ckpt_reader_shards(reader, (CkptId){1, 1}, &shards, &count, &err) && count == 1);
    char path[1400];
    snprintf(path, sizeof path, "%s/%s", folder, shards[0].name);
    ckpt_reader_close(reader);
    uint8_t *file = test_file_read(path, &bytes);
    CHECK(file != NULL);
    uint8_t *found = memmem(file, bytes, saved, 64);
    CHECK(found != NULL);
    *at = found - file;
    free(file);
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0);
    return fd;
}

static void flip(int fd, off_t at) {
    uint8_t byte;
    CHECK(pread(fd, &byte, 1, at) == 1);
    byte ^= (uint8_t)(1u << at % 8);
    CHECK(pwrite(fd, &byte, 1, at) == 1);
}

static void flip_bits(void) {
    CkptWanted wanted[TENSORS];
    off_t begin;
    int fd = open_segment(&begin);
    for (int t = 0; t < TENSORS; t++)
        wanted[t] = (CkptWanted){tensors[t].name, CKPT_FP32, 0, tensors[t].count, back + tensors[t].first};
    for (int t = 0; t < TENSORS; t++) {
        off_t at = begin + (off_t)(tensors[t].first * sizeof(float) + draw(tensors[t].count * sizeof(float)));
        flip(fd, at);
        bool ok = read_all(wanted, TENSORS, t % 3);
        TEST_CHECK(!ok && strstr(err.text, tensors[t].name) && strstr(err.text, "seg/"), "%s: %s",
                   tensors[t].name, ok ? "not found" : err.text);
        flip(fd, at);
    }
    close(fd);
    TEST_CHECK(read_all(wanted, TENSORS, 0), "as it was: %s", err.text);
}

int main(void) {
    make_tensors();
    test_folder_open();
    log_open(1, true);
    snprintf(folder, sizeof folder, "%s", test_path("staging").path);
    CkptConfig config = {.directory = folder,
                         .node = "host",
                         .io = "auto",
                         .size = 1,
                         .node_first = true,
                         .attempt = 1,
                         .run = {7},
                         .payload_bytes = elements * sizeof(float),
                         .views_max = TENSORS * PIECES,
                         .keep = 1};
    Ckpt *ckpt = NULL;
    TEST_CHECK(ckpt_open(&ckpt, &config, &err), "%s", err.text);
    if (!ckpt) return test_end("ckpt_read_all");
    save(ckpt);
    ckpt_close(ckpt);
    for (int threads = 0; threads < 3; threads++) {
        read_block(0, false, threads); /* as it was saved */
        read_block(GAP, false, threads);
        read_block(1, false, threads);
        read_block(0, true, threads);
    }
    for (int i = 0; i < 20; i++) read_parts();
    flip_bits();
    test_folder_close();
    free(saved);
    free(back);
    return test_end("ckpt_read_all");
}
