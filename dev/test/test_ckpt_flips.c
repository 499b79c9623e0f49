/* test_ckpt_flips.c: rot: one bit is flipped in every chunk of a checkpoint, one at a time, and in every block of its
 * index, its records and the manifests. Each flip of a tensor's byte must be found, by a read and by a verify, with the
 * place said; nothing that is read may ever differ from what was saved; the checkpoint before must stay whole.
 *
 *   test_ckpt_flips [--bytes=N]    of the checkpoint (6,000,000) */
#define _GNU_SOURCE
#include "base/log.h"
#include "ckpt_rot.h"

enum { CHUNK = 1 << 20, BLOCK = 4096, SMALL = 1000 };

static Error err;
static uint64_t elements;
static float *weights, *small, *back;
static char folder[600];

static void fill(uint64_t step) {
    test_fill(weights, elements, 1, step);
    test_fill(small, SMALL, 1, step + 100);
}

static void save(Ckpt *ckpt, uint64_t step) {
    TensorView views[] = {
        {.name = "weights", .dims = 1, .shape = {elements}, .end = elements, .data = weights},
        {.name = "small", .dims = 1, .shape = {SMALL}, .end = SMALL, .data = small},
    };
    fill(step);
    rot_save(ckpt, step, views, 2);
}

/* Reads a checkpoint; false: something was refused, which is in err. What is not refused must be right. */
static bool read_back(CkptId id) {
    CkptReader *reader = NULL;
    if (!ckpt_reader_open(&reader, folder, &err)) return false;
    fill(id.step);
    bool ok = ckpt_reader_read(reader, id, "weights", CKPT_FP32, 0, elements, back, &err);
    TEST_CHECK(!ok || !memcmp(back, weights, elements * 4), "accepted, but bad");
    if (ok) {
        ok = ckpt_reader_read(reader, id, "small", CKPT_FP32, 0, SMALL, back, &err);
        TEST_CHECK(!ok || !memcmp(back, small, SMALL * 4), "accepted, but bad");
    }
    ckpt_reader_close(reader);
    return ok;
}

static uint64_t count_bad(CkptId id) {
    CkptReader *reader = NULL;
    uint64_t bad = 0;
    if (!ckpt_reader_open(&reader, folder, &err)) return 1;
    bool ok = ckpt_reader_verify(reader, id, &bad, NULL, &err);
    ckpt_reader_close(reader);
    return ok ? bad : bad + !bad;
}

/* Elements of one chunk of "weights"; false: refused. */
static bool read_chunk(CkptId id, uint64_t chunk) {
    uint64_t begin = chunk * CHUNK / 4, end = begin + CHUNK / 4 < elements ? begin + CHUNK / 4 : elements;
    CkptReader *reader = NULL;
    CHECK(ckpt_reader_open(&reader, folder, &err));
    bool ok = ckpt_reader_read(reader, id, "weights", CKPT_FP32, begin, end, back, &err);
    TEST_CHECK(!ok || !memcmp(back, weights + begin, (end - begin) * 4), "accepted, but bad");
    ckpt_reader_close(reader);
    return ok;
}

/* The place of the flip in a chunk; another bit and byte in each. */
static void flip_chunk(int fd, off_t at, uint64_t chunk) {
    uint64_t rest = elements * 4 - chunk * CHUNK, bytes = rest < CHUNK ? rest : CHUNK;
    rot_flip(fd, (uint64_t)at + chunk * CHUNK + chunk * 7919 % bytes, (int)(chunk % 8));
}

static void flip_chunks(CkptId id, CkptId before) {
    const char *path = rot_segment(folder, id);
    fill(id.step);
    off_t at = rot_find(path, weights);
    CHECK(at > 0);
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0);
    uint64_t chunks = (elements * 4 + CHUNK - 1) / CHUNK, found = 0;
    for (uint64_t chunk = 0; chunk < chunks; chunk++) {
        flip_chunk(fd, at, chunk);
        bool refused = !read_chunk(id, chunk);
        TEST_CHECK(refused && strstr(err.text, "weights") && strstr(err.text, "seg/"), "chunk %llu: %s",
                   (unsigned long long)chunk, refused ? err.text : "not found");
        TEST_CHECK(read_chunk(id, (chunk + 1) % chunks), "the one behind: %s", err.text);
        found += refused;
        flip_chunk(fd, at, chunk);
    }
    for (uint64_t chunk = 0; chunk < chunks; chunk++) flip_chunk(fd, at, chunk);
    uint64_t bad = count_bad(id);
    TEST_CHECK(bad == chunks, "a flip in every chunk: verify counts %llu", (unsigned long long)bad);
    TEST_CHECK(!read_back(id), "not found");
    TEST_CHECK(read_back(before) && count_bad(before) == 0, "the checkpoint before: %s", err.text);
    for (uint64_t chunk = 0; chunk < chunks; chunk++) flip_chunk(fd, at, chunk);
    close(fd);
    TEST_CHECK(read_back(id) && count_bad(id) == 0, "as it was: %s", err.text);
    printf("%llu chunks, %llu flipped bits found by reads one at a time, %llu by one verify\n",
           (unsigned long long)chunks, (unsigned long long)found, (unsigned long long)bad);
}

/* A bit in each block of a file but the tensors' own: it may be refused or do no harm, but never be read wrongly. */
static void flip_blocks(const char *path, uint64_t from, uint64_t to, CkptId id, CkptId before) {
    int fd = open(path, O_RDWR), refused = 0;
    CHECK(fd >= 0);
    for (uint64_t block = from / BLOCK; block * BLOCK < to; block++)
        for (int k = 0; k < 3; k++) {
            uint64_t place = block * BLOCK + (k == 0 ? 17 : k == 1 ? 40 : (block * 613 + 100) % BLOCK);
            rot_flip(fd, place, k);
            bool newer = read_back(id), older = read_back(before);
            refused +=
                !newer || !older || count_bad(id) > 0; /* the merged table stands in for a broken one */
            TEST_CHECK(newer || older, "%s: one bit at %llu costs both checkpoints: %s", path,
                       (unsigned long long)place, err.text);
            rot_flip(fd, place, k);
        }
    close(fd);
    printf("%s: bits in %llu blocks, %d were found\n", strrchr(path, '/') + 1,
           (unsigned long long)((to - from + BLOCK - 1) / BLOCK), refused);
    TEST_CHECK(refused > 0, "%s: no flip did anything", path);
}

int main(int argc, char **argv) {
    uint64_t bytes = 6000000;
    if (argc == 2 && !strncmp(argv[1], "--bytes=", 8)) bytes = strtoull(argv[1] + 8, NULL, 10);
    elements = bytes / 4;
    void *p;
    CHECK(posix_memalign(&p, BLOCK, elements * 4) == 0);
    weights = p;
    back = malloc(elements * 4);
    small = malloc(SMALL * 4);
    CHECK(back && small);
    test_folder_open();
    log_open(1, true);
    snprintf(folder, sizeof folder, "%s", test_path("staging").path);
    Ckpt *ckpt = rot_open(folder, (elements + SMALL) * 4, 2, 2);
    if (!ckpt) return test_end("ckpt_flips");
    for (uint64_t step = 1; step <= 3; step++) save(ckpt, step);
    ckpt_close(ckpt);
    CkptId before = {1, 2}, id = {1, 3};
    CHECK(read_back(id) && read_back(before));
    flip_chunks(id, before);
    if (bytes <= 100000000) {
        char path[1400], manifest[700];
        snprintf(path, sizeof path, "%s", rot_segment(folder, id));
        fill(id.step);
        off_t begin = rot_find(path, weights), end = rot_find(path, small) + SMALL * 4;
        CHECK(begin >= BLOCK && end > begin + (off_t)(elements * 4));
        CkptReader *reader;
        const CkptShard *shards;
        size_t count;
        CHECK(ckpt_reader_open(&reader, folder, &err) &&
              ckpt_reader_shards(reader, id, &shards, &count, &err));
        uint64_t used = shards[0].bytes;
        ckpt_reader_close(reader);
        flip_blocks(path, ((uint64_t)end + BLOCK - 1) / BLOCK * BLOCK, used - BLOCK, id, before);
        snprintf(manifest, sizeof manifest, "%s/manifest/host.0.log", folder);
        flip_blocks(manifest, 0, 12 * BLOCK, id, before);
    }
    test_folder_close();
    free(weights);
    free(back);
    free(small);
    return test_end("ckpt_flips");
}
