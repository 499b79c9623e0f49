/* test_file.c: CRC-32C against known values, files written aside, folders, and errors that say what to do. */
#define _POSIX_C_SOURCE 200809L
#include "base/crc32c.h"
#include "base/file.h"
#include "test.h"
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static Error err;
static char folder[256];

static const char *in_folder(const char *name) {
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static void test_crc(void) {
    unsigned char data[4096];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i * 7 + (i >> 5));
    TEST_CHECK(crc32c(0, "123456789", 9) == 0xE3069283u, "%08x", crc32c(0, "123456789", 9));
    unsigned char zeros[32] = {0}; /* RFC 3720, B.4 */
    TEST_CHECK(crc32c(0, zeros, 32) == 0x8A9136AAu, "%08x", crc32c(0, zeros, 32));
    TEST_CHECK(crc32c(0, NULL, 0) == 0, "nothing");
    for (size_t bytes = 0; bytes < 200; bytes++)
        for (size_t at = 0; at < 9; at++) {
            uint32_t fast = crc32c(5, data + at, bytes), slow = crc32c_portable(5, data + at, bytes);
            TEST_CHECK(fast == slow, "%zu bytes at %zu: %08x, %08x", bytes, at, fast, slow);
            fast = crc32c_unfolded(5, data + at, bytes);
            TEST_CHECK(fast == slow, "%zu bytes at %zu: %08x, %08x", bytes, at, fast, slow);
        }
    static unsigned char
        large[40000]; /* the lanes and folds of the fast paths: all combinations of long, short and rest */
    for (size_t i = 0; i < sizeof large; i++) large[i] = (unsigned char)(i * i >> 3 ^ i * 5);
    for (size_t bytes = 700; bytes < sizeof large - 8; bytes += 61) {
        uint32_t fast = crc32c(9, large + bytes % 8, bytes),
                 slow = crc32c_portable(9, large + bytes % 8, bytes);
        TEST_CHECK(fast == slow, "%zu bytes: %08x, %08x", bytes, fast, slow);
        fast = crc32c_unfolded(9, large + bytes % 8, bytes);
        TEST_CHECK(fast == slow, "%zu bytes by the instruction: %08x, %08x", bytes, fast, slow);
    }
    uint32_t whole = crc32c(0, data, sizeof data);
    for (size_t cut = 0; cut <= sizeof data; cut += 37)
        TEST_CHECK(crc32c(crc32c(0, data, cut), data + cut, sizeof data - cut) == whole, "cut at %zu", cut);
}

static void test_writer(void) {
    char *text = NULL, *big = malloc(3 << 20);
    size_t bytes = 0;
    FileWriter w = {0};
    file_writer_abort(&w);
    const char *path = in_folder("a.txt");
    TEST_CHECK(file_write(path, "old", 3, &err), "%s", err.text);
    TEST_CHECK(file_writer_open(&w, path, &err) && file_writer_write(&w, "0123456789", 10, &err), "%s",
               err.text);
    TEST_CHECK(file_read(path, 100, &text, &bytes, &err) && bytes == 3 && !strcmp(text, "old"),
               "old until commit");
    free(text);
    file_writer_abort(&w);
    TEST_CHECK(!file_exists(w.aside) && file_exists(path), "%s is left", w.aside);

    memset(big, 'b', 3 << 20);
    TEST_CHECK(file_writer_open(&w, path, &err), "%s", err.text);
    bool ok = true;
    for (int i = 0; i < 1000; i++) ok = ok && file_writer_write(&w, "0123456789", 10, &err);
    ok = ok && file_writer_write(&w, big, 3 << 20, &err) && file_writer_write(&w, "end", 3, &err);
    ok =
        ok && file_writer_rewrite(&w, 1, "XY", 2, &err) && file_writer_rewrite(&w, w.bytes - 1, "D", 1, &err);
    TEST_CHECK(ok && w.bytes == 10000 + (3 << 20) + 3, "%s", err.text);
    TEST_CHECK(file_writer_commit(&w, &err) && !file_exists(w.aside), "%s", err.text);
    file_writer_abort(&w);
    TEST_CHECK(file_read(path, 4 << 20, &text, &bytes, &err) && bytes == 10000 + (3 << 20) + 3, "%zu", bytes);
    TEST_CHECK(!memcmp(text, "0XY3456789", 10) && !memcmp(text + 10000, big, 3 << 20), "content");
    TEST_CHECK(!strcmp(text + 10000 + (3 << 20), "enD"), "end");
    free(text);
    TEST_CHECK(!file_read(path, 1000, &text, &bytes, &err) && strstr(err.text, "larger than the 1000 bytes"),
               "%s", err.text);
    for (size_t limit = 3; limit <= 4; limit++) {
        bool written = file_write(path, "1234", 4, &err), read = file_read(path, limit, &text, &bytes, &err);
        TEST_CHECK(written && read == (limit == 4), "limit %zu of 4 bytes", limit);
        if (read) free(text);
    }
    TEST_CHECK(file_write(path, "", 0, &err) && file_read(path, 0, &text, &bytes, &err) && !bytes,
               "empty file");
    free(text);
    free(big);
}

static void test_errors(void) {
    char *text;
    size_t bytes;
    FileWriter w;
    TEST_CHECK(!file_read(in_folder("none"), 10, &text, &bytes, &err) &&
                   strstr(err.text, "(check the spelling)"),
               "%s", err.text);
    TEST_CHECK(!file_read(folder, 10, &text, &bytes, &err) && strstr(err.text, "directory"), "%s", err.text);
    TEST_CHECK(!file_writer_open(&w, in_folder("none/x"), &err), "no folder");
    file_writer_abort(&w);
    TEST_CHECK(!file_writer_open(&w, folder, &err) && strstr(err.text, "it is a folder"), "%s", err.text);
    file_writer_abort(&w);
    TEST_CHECK(!file_write("/dev/full/x", "a", 1, &err), "below a file");

    signal(SIGXFSZ, SIG_IGN); /* a disk that fills up, as far as a test may have one */
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 1000;
    setrlimit(RLIMIT_FSIZE, &small);
    static char data[5000];
    const char *path = in_folder("full");
    TEST_CHECK(!file_write(path, data, sizeof data, &err) && strstr(err.text, "ulimit -f"), "%s", err.text);
    setrlimit(RLIMIT_FSIZE, &old);
    TEST_CHECK(!file_exists(path), "half a file");
    char aside[600];
    snprintf(aside, sizeof aside, "%s.tmp.%ld", path, (long)getpid());
    TEST_CHECK(!file_exists(aside), "%s is left", aside);
}

static void test_folders(void) {
    char joined[FILE_PATH_BYTES];
    TEST_CHECK(file_make_directory(in_folder("x/y//z/"), &err) && file_is_directory(in_folder("x/y/z")), "%s",
               err.text);
    TEST_CHECK(file_make_directory(in_folder("x/y/z"), &err), "again: %s", err.text);
    TEST_CHECK(file_write(in_folder("x/file"), "", 0, &err), "%s", err.text);
    TEST_CHECK(!file_make_directory(in_folder("x/file/y"), &err) && strstr(err.text, "Not a directory"), "%s",
               err.text);
    TEST_CHECK(!file_make_directory("", &err), "no name");
    TEST_CHECK(file_join(joined, "a", "b", &err) && !strcmp(joined, "a/b"), "%s", joined);
    TEST_CHECK(file_join(joined, "a/", "b", &err) && !strcmp(joined, "a/b"), "%s", joined);
    char *name = malloc(5000);
    memset(name, 'n', 4999), name[4999] = 0;
    TEST_CHECK(!file_join(joined, "a", name, &err) && !file_make_directory(name, &err), "too long");
    FileWriter w;
    TEST_CHECK(!file_writer_open(&w, name, &err), "too long");
    file_writer_abort(&w);
    free(name);
}

int main(void) {
    const char *tmp = getenv("TMPDIR");
    char command[300];
    snprintf(folder, sizeof folder, "%s/test_file.XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(folder)) return 1;
    test_crc();
    test_writer();
    test_errors();
    test_folders();
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    return system(command) == 0 ? test_end("file") : 1;
}
