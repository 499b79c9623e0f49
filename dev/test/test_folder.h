/* test_folder.h: a folder of its own for a test's files, under $TMPDIR or /tmp, and whole files in and out.
 * Needs _XOPEN_SOURCE 700. */
#ifndef TEST_FOLDER_H
#define TEST_FOLDER_H
#include "base/check.h"
#include "base/rng.h"
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
    char path[512];
} TestPath;

static TestPath test_folder;

/* folder/name; name "" is the folder. */
static inline TestPath test_path(const char *name) {
    TestPath p;
    int n = snprintf(p.path, sizeof p.path, "%s%s%s", test_folder.path, *name ? "/" : "", name);
    CHECK(n > 0 && n < (int)sizeof p.path);
    return p;
}

static inline void test_folder_open(void) {
    const char *parent = getenv("TMPDIR");
    snprintf(test_folder.path, sizeof test_folder.path, "%.400s/toroid_test_XXXXXX",
             parent && *parent ? parent : "/tmp");
    CHECK(mkdtemp(test_folder.path) != NULL);
}

/* Empties a folder of files and of folders of files. */
static inline void test_folder_remove(const char *path) {
    DIR *d = opendir(path);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        char name[2048];
        struct stat s;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        snprintf(name, sizeof name, "%.1700s/%s", path, e->d_name);
        if (lstat(name, &s) == 0 && S_ISDIR(s.st_mode))
            test_folder_remove(name);
        else
            unlink(name);
    }
    closedir(d);
    rmdir(path);
}

static inline void test_folder_close(void) {
    test_folder_remove(test_folder.path);
}

static inline void test_file_write(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    CHECK(f != NULL);
    CHECK(fwrite(data, 1, bytes, f) == bytes);
    CHECK(fclose(f) == 0);
}

/* free() it; NULL if there is none. */
static inline uint8_t *test_file_read(const char *path, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    CHECK(fseek(f, 0, SEEK_END) == 0);
    *bytes = (size_t)ftell(f);
    rewind(f);
    uint8_t *data = malloc(*bytes + 1);
    CHECK(data && fread(data, 1, *bytes, f) == *bytes);
    fclose(f);
    return data;
}

/* Changes bytes below `within` at random, or cuts the file off; the same for the same round. Returns its new
 * size. */
static inline size_t test_mutate(uint8_t *data, size_t bytes, size_t within, uint64_t round) {
    uint32_t r[4];
    static const uint8_t wild[] = {0, 1, 0x7f, 0x80, 0xff, '0', '9', '"', '{', '}', ',', '-'};
    rng_block(round, RNG_STREAM(RNG_TEST, 7), 0, r);
    if (within > bytes) within = bytes;
    for (uint32_t i = 0, n = 1 + r[0] % 4; i < n; i++) {
        rng_block(round, RNG_STREAM(RNG_TEST, 7), i + 1, r);
        size_t at = r[1] % within;
        if (r[0] % 8 == 0) return r[3] % 2 ? at : r[1] % bytes;
        if (r[0] % 2)
            data[at] ^= (uint8_t)(1u << r[2] % 8);
        else
            data[at] = wild[r[2] % sizeof wild];
    }
    return bytes;
}
#endif
