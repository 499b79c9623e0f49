/* test_ckpt_read_all.c: many tensors by many threads at once, large and tiny, side by side in one block of memory as a model's
 * are, each in one to three pieces: into a block laid out as the saved one, into others, and parts of them; and a flipped bit
 * in any of them is found and its tensor named. */
#define _GNU_SOURCE
#include "base/log.h"
#include "ckpt_rot.h"

enum { TENSORS = 40, PIECES = 3, BLOCK = 4096, GAP = 16, SMALL_MAX = 3000, LARGE_MAX = 2000000 };

typedef struct {
    char name[24];
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
    for (int t = 0; t < TENSORS; t++) {
        int pieces = t % 5 == 2 ? PIECES : 1;
        for (uint64_t begin = 0, end; begin < tensors[t].count; begin = end) {
            uint64_t left = tensors[t].count - begin;
            end = begin + (--pieces ? 1 + draw(left) : left);
            TensorView *v = &views[count++];
            *v = (TensorView){.dims = 1,
                              .shape = {tensors[t].count},
                              .begin = begin,
                              .end = end,
                              .data = saved + tensors[t].first + begin};
            memcpy(v->name, tensors[t].name, sizeof tensors[t].name);
        }
    }
    rot_save(ckpt, 1, views, count);
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
               reversed, same, beside);
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

static void flip_bits(void) {
    CkptWanted wanted[TENSORS];
    const char *path = rot_segment(folder, (CkptId){1, 1});
    off_t begin = rot_find(path, saved);
    int fd = open(path, O_RDWR);
    CHECK(begin > 0 && fd >= 0);
    for (int t = 0; t < TENSORS; t++)
        wanted[t] = (CkptWanted){tensors[t].name, CKPT_FP32, 0, tensors[t].count, back + tensors[t].first};
    for (int t = 0; t < TENSORS; t++) {
        uint64_t at =
            (uint64_t)begin + tensors[t].first * sizeof(float) + draw(tensors[t].count * sizeof(float));
        rot_flip(fd, at, t % 8);
        bool ok = read_all(wanted, TENSORS, t % 3);
        TEST_CHECK(!ok && strstr(err.text, tensors[t].name) && strstr(err.text, "seg/"), "%s: %s",
                   tensors[t].name, ok ? "not found" : err.text);
        rot_flip(fd, at, t % 8);
    }
    close(fd);
    TEST_CHECK(read_all(wanted, TENSORS, 0), "as it was: %s", err.text);
}

int main(void) {
    make_tensors();
    test_folder_open();
    log_open(1, true);
    snprintf(folder, sizeof folder, "%s", test_path("staging").path);
    Ckpt *ckpt = rot_open(folder, elements * sizeof(float), TENSORS * PIECES, 1);
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
