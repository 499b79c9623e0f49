/* test_token_file.c: token files written, read back, and every kind of damage named. */
#define _POSIX_C_SOURCE 200809L
#include "data/token_file.h"
#include "test.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static Error err;
static char folder[256];

static const char *in_folder(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static bool write_tokens(const char *path, size_t count, int vocab_size, uint32_t fingerprint) {
    TokenFileWriter w;
    uint16_t ids[1000];
    bool ok = token_file_writer_open(&w, path, vocab_size, fingerprint, &err);
    for (size_t at = 0, n; ok && at < count; at += n) {
        n = count - at < 1000 ? count - at : 1000;
        for (size_t i = 0; i < n; i++) ids[i] = (uint16_t)((at + i) * 7919 % 60000);
        ok = token_file_writer_write(&w, ids, n, &err);
    }
    ok = ok && token_file_writer_commit(&w, &err);
    token_file_writer_abort(&w);
    return ok;
}

static void test_round_trip(void) {
    const char *path = in_folder("a.bin");
    uint16_t ids[5000];
    TokenFileInfo info;
    struct stat s;
    int fd;
    for (size_t count = 0; count <= 4321; count = count ? count * 4321 : 1) {
        TEST_CHECK(write_tokens(path, count, 60001, 0xfedcba98u), "%s", err.text);
        TEST_CHECK(stat(path, &s) == 0 && (size_t)s.st_size == 1024 + 2 * count, "size %ld", (long)s.st_size);
        TEST_CHECK(token_file_open(path, &fd, &info, &err), "%s", err.text);
        TEST_CHECK(info.tokens == count && info.vocab_size == 60001 && info.fingerprint == 0xfedcba98u,
                   "%llu %d %x", (unsigned long long)info.tokens, info.vocab_size, info.fingerprint);
        TEST_CHECK(token_file_read(fd, path, 0, count, ids, &err), "%s", err.text);
        size_t wrong = 0;
        for (size_t i = 0; i < count; i++) wrong += ids[i] != i * 7919 % 60000;
        TEST_CHECK(!wrong, "%zu wrong", wrong);
        if (count)
            TEST_CHECK(token_file_read(fd, path, count - 1, 1, ids, &err) &&
                           ids[0] == (count - 1) * 7919 % 60000,
                       "last");
        TEST_CHECK(!token_file_read(fd, path, count, 1, ids, &err) && strstr(err.text, "shrank"), "%s",
                   err.text);
        close(fd);
    }
}

static void test_writer(void) {
    TokenFileWriter w = {0};
    token_file_writer_abort(&w);
    TEST_CHECK(!token_file_writer_open(&w, in_folder("b.bin"), 65536, 0, &err) && strstr(err.text, "65536"),
               "%s", err.text);
    token_file_writer_abort(&w);
    TEST_CHECK(token_file_writer_open(&w, in_folder("b.bin"), 65535, 0, &err), "%s", err.text);
    w.info.tokens = TOKEN_FILE_TOKENS_MAX; /* as if so many were written */
    TEST_CHECK(!token_file_writer_write(&w, (uint16_t[]){1}, 1, &err) && strstr(err.text, "smaller shards"),
               "%s", err.text);
    token_file_writer_abort(&w);
    TEST_CHECK(!file_exists(in_folder("b.bin")) && !file_exists(w.file.aside), "an aborted file stays");
    TEST_CHECK(!token_file_writer_open(&w, "/nonexistent/b.bin", 1, 0, &err) &&
                   strstr(err.text, "/nonexistent/b.bin"),
               "%s", err.text);
    token_file_writer_abort(&w);
}

/* Writes `bytes` bytes and opens them as a token file: the error must have the phrase. */
static void expect(const char *phrase, const void *content, size_t bytes) {
    const char *path = in_folder("bad.bin");
    TokenFileInfo info;
    int fd = 0;
    TEST_CHECK(file_write(path, content, bytes, &err), "%s", err.text);
    err.text[0] = 0;
    TEST_CHECK(!token_file_open(path, &fd, &info, &err) && fd == -1, "accepted: %s", phrase);
    TEST_CHECK(strstr(err.text, phrase) && strstr(err.text, path) && strchr(err.text, '('), "%s, not: %s",
               err.text, phrase);
}

static void put(unsigned char *header, int index, uint32_t value) {
    for (int i = 0; i < 4; i++) header[4 * index + i] = (unsigned char)(value >> (8 * i));
}

static void test_damage(void) {
    static unsigned char good[1024 + 2 * 50], bad[sizeof good + 1];
    TokenFileInfo info;
    put(good, 0, TOKEN_FILE_MAGIC);
    put(good, 1, 1);
    put(good, 2, 50);
    TEST_CHECK(token_file_check(good, 1024, sizeof good, "x", &info, &err), "%s", err.text);
    TEST_CHECK(info.tokens == 50 && !info.vocab_size && !info.fingerprint, "llm.c's own header");
    expect("it is empty", good, 0);
    expect("it is a text file", "Hello, this is text.\n", 21);
    expect("it is a gzip", "\x1f\x8b\x08\x00\x00\x00", 6);
    expect("it is a parquet", "PAR1\x15\x00", 6);
    expect("safetensors", "\x40\0\0\0\0\0\0\0{\"a\":", 14);
    expect("something else", "\x01\x02\x03\x04\x05", 5);
    for (size_t bytes = 4; bytes < 1024; bytes += 255) expect("truncated inside its header", good, bytes);
    for (size_t bytes = 1024; bytes < sizeof good; bytes += 25)
        expect("truncated: its header says 50", good, bytes);
    memcpy(bad, good, sizeof good);
    expect("too long", bad, sizeof good + 1);
    static const struct {
        int index;
        uint32_t value;
        const char *phrase;
    } headers[] = {{0, 20240326, "model file of llm.c"},
                   {0, 20240801, "Llama 3"},
                   {0, 20240522, "HellaSwag"},
                   {0, __builtin_bswap32(TOKEN_FILE_MAGIC), "big-endian"},
                   {1, 2, "version 2"},
                   {1, 0, "version 0"},
                   {2, 51, "truncated"},
                   {2, 49, "too long"},
                   {2, 0x80000000u, "damaged header"},
                   {2, 0xffffffffu, "damaged header"},
                   {3, 65536, "damaged header"}};
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        memcpy(bad, good, sizeof good);
        put(bad, headers[i].index, headers[i].value);
        expect(headers[i].phrase, bad, sizeof good);
    }
    for (int bit = 0; bit < 96; bit++) { /* any flipped bit of magic, version or count */
        memcpy(bad, good, sizeof good);
        bad[bit / 8] ^= (unsigned char)(1 << bit % 8);
        TEST_CHECK(!token_file_check(bad, 1024, sizeof good, "x", &info, &err), "bit %d", bit);
    }
    int fd;
    TEST_CHECK(!token_file_open(folder, &fd, &info, &err) && strstr(err.text, "a folder"), "%s", err.text);
    TEST_CHECK(!token_file_open(in_folder("none"), &fd, &info, &err) && strstr(err.text, "none"), "%s",
               err.text);
    TEST_CHECK(mkfifo(in_folder("pipe"), 0600) == 0 && !token_file_open(in_folder("pipe"), &fd, &info, &err),
               "a pipe is waited for or accepted");
}

int main(void) {
    const char *temporary = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/test_token_file.XXXXXX", temporary ? temporary : "/tmp");
    if (!mkdtemp(folder)) return 1;
    test_round_trip();
    test_writer();
    test_damage();
    static const char *const names[] = {"a.bin", "b.bin", "bad.bin", "pipe"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(in_folder(names[i]));
    TEST_CHECK(rmdir(folder) == 0, "something is left in %s", folder);
    return test_end("token_file");
}
