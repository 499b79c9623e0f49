/* ckpt_rot.h: what tests of bit rot share: a checkpoint store of one writer, the segment of a checkpoint, a flipped bit. */
#ifndef CKPT_ROT_H
#define CKPT_ROT_H
#include "ckpt/ckpt_reader.h"
#include "test.h"
#include "test_folder.h"
#include <fcntl.h>

/* NULL: it cannot be opened, which is said. */
static inline Ckpt *rot_open(const char *folder, uint64_t payload_bytes, int views_max, int keep) {
    Error err;
    CkptConfig config = {.directory = folder,
                         .node = "host",
                         .io = "auto",
                         .size = 1,
                         .node_first = true,
                         .attempt = 1,
                         .run = {7},
                         .payload_bytes = payload_bytes,
                         .views_max = views_max,
                         .keep = keep};
    Ckpt *ckpt = NULL;
    TEST_CHECK(ckpt_open(&ckpt, &config, &err), "%s", err.text);
    return ckpt;
}

/* Saves the views as a committed checkpoint. */
static inline void rot_save(Ckpt *ckpt, uint64_t step, const TensorView *views, size_t count) {
    Error err;
    CHECK(ckpt_begin(ckpt, step, views, count, &err) && ckpt_wait(ckpt, 600));
    ckpt_fence(ckpt);
    ckpt_commit(ckpt, step, false);
    CHECK(ckpt_wait(ckpt, 600));
}

/* The segment that holds a checkpoint. */
static inline const char *rot_segment(const char *folder, CkptId id) {
    static char path[1400];
    Error err;
    CkptReader *reader;
    const CkptShard *shards;
    size_t count;
    CHECK(ckpt_reader_open(&reader, folder, &err));
    bool found = ckpt_reader_shards(reader, id, &shards, &count, &err);
    if (!found) printf("%s\n", err.text);
    CHECK(found && count == 1);
    snprintf(path, sizeof path, "%s/%s", folder, shards[0].name);
    ckpt_reader_close(reader);
    return path;
}

/* Where these 64 bytes are in a file; -1: not there. */
static inline off_t rot_find(const char *path, const void *data) {
    size_t bytes;
    uint8_t *file = test_file_read(path, &bytes);
    CHECK(file != NULL);
    uint8_t *at = memmem(file, bytes, data, 64);
    off_t offset = at ? at - file : -1;
    free(file);
    return offset;
}

static inline void rot_flip(int fd, uint64_t at, int bit) {
    uint8_t byte;
    CHECK(pread(fd, &byte, 1, (off_t)at) == 1);
    byte ^= (uint8_t)(1u << bit);
    CHECK(pwrite(fd, &byte, 1, (off_t)at) == 1);
}
#endif
