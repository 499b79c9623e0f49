/* test_tokenize.c: the tokenize command: files, folders and stdin to token files and back, splits, shards,
 * documents, what earlier runs and failures leave, and every refusal. */
#define _XOPEN_SOURCE 700
#include "base/crc32c.h"
#include "base/file.h"
#include "base/log.h"
#include "data/token_file.h"
#include "data/tokenizer.h"
#include "run/tokenize.h"
#include "test.h"
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static Error err;
static char folder[256];

static char *in_folder(const char *name) {
    static char paths[8][512];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static void write_text(const char *name, const char *text) {
    TEST_CHECK(file_write(in_folder(name), text, strlen(text), &err), "%s", err.text);
}

/* Tokenizes one input of the folder to "out/x" with further options. */
static bool run(TokenizeOptions options, const char *input) {
    char output[512];
    snprintf(output, sizeof output, "%s/out/x", folder);
    const char *path = strcmp(input, "-") ? in_folder(input) : input;
    options.inputs = &path;
    options.num_inputs = 1;
    if (!options.output) options.output = output;
    err.text[0] = 0;
    return tokenize_run(&options, &err);
}

/* The ids of out/NAME as letters, end of text as '|'; bytes only. "none": no such file. */
static const char *letters(const char *name) {
    static char text[300];
    uint16_t ids[256];
    TokenFileInfo info;
    int fd;
    if (!token_file_open(in_folder(name), &fd, &info, &err)) return "none";
    size_t count = info.tokens < 256 ? (size_t)info.tokens : 256;
    if (!token_file_read(fd, name, 0, count, ids, &err)) count = 0;
    close(fd);
    for (size_t i = 0; i < count; i++) text[i] = ids[i] == 256 ? '|' : (char)ids[i];
    text[count] = 0;
    return text;
}

static void expect_letters(const char *name, const char *expected) {
    const char *text = letters(name);
    TEST_CHECK(!strcmp(text, expected), "%s: '%s', not '%s'", name, text, expected);
}

static void test_splits(void) {
    write_text("t", "ab\n\ncd\n\n\nef");
    TEST_CHECK(run((TokenizeOptions){0}, "t"), "%s", err.text);
    expect_letters("out/x_train_000000.bin", "|ab\n\ncd\n\n\nef");
    expect_letters("out/x_val_000000.bin", "none");
    TEST_CHECK(run((TokenizeOptions){.blank_line_documents = true, .val_tokens = 3}, "t"), "%s", err.text);
    expect_letters("out/x_val_000000.bin", "|ab");
    expect_letters("out/x_train_000000.bin", "\n\n|cd\n\n|\nef");
    TEST_CHECK(run((TokenizeOptions){.val_fraction = 0.5, .shard_tokens = 4}, "t"), "%s",
               err.text); /* 5 of 11 bytes */
    expect_letters("out/x_val_000000.bin", "|ab\n");
    expect_letters("out/x_val_000001.bin", "\nc");
    expect_letters("out/x_train_000000.bin", "d\n\n\n");
    expect_letters("out/x_train_000001.bin", "ef");
    TEST_CHECK(run((TokenizeOptions){0}, "t"), "%s",
               err.text); /* the other files are of an earlier run now */
    expect_letters("out/x_train_000000.bin", "|ab\n\ncd\n\n\nef");
    expect_letters("out/x_train_000001.bin", "none");
    expect_letters("out/x_val_000000.bin", "none");
    expect_letters("out/x_val_000001.bin", "none");
    write_text("t", "a\r\n\r\nb");
    TEST_CHECK(run((TokenizeOptions){.blank_line_documents = true}, "t"), "%s", err.text);
    expect_letters("out/x_train_000000.bin", "|a\r\n\r\n|b");
    unlink(in_folder("t"));
}

/* Decodes to a file; whether it holds the text. */
static bool decodes_to(const char *const *inputs, size_t count, const char *spec, const char *text,
                       size_t bytes) {
    char *decoded = NULL;
    size_t decoded_bytes = 0;
    fflush(stdout);
    int saved = dup(STDOUT_FILENO), fd = open(in_folder("decoded"), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    dup2(fd, STDOUT_FILENO);
    close(fd);
    err.text[0] = 0;
    bool ok = tokenize_decode(inputs, count, spec, &err);
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    if (!ok || !file_read(in_folder("decoded"), 1 << 30, &decoded, &decoded_bytes, &err)) return false;
    ok = decoded_bytes == bytes && !memcmp(decoded, text, bytes);
    free(decoded);
    return ok;
}

/* More text than is read and written at once. */
static void test_large(void) {
    size_t bytes = 2500000;
    char *text = malloc(bytes);
    TokenFileInfo val = {0}, train = {0};
    int fd;
    for (size_t i = 0; i < bytes; i++) text[i] = (char)('a' + i % 7919 % 26);
    TEST_CHECK(file_write(in_folder("t"), text, bytes, &err), "%s", err.text);
    for (int by_fraction = 0; by_fraction < 2; by_fraction++) {
        TokenizeOptions options = {.val_tokens = by_fraction ? 0 : 1500001,
                                   .val_fraction = by_fraction ? 0.6 : 0};
        TEST_CHECK(run(options, "t"), "%s", err.text);
        if (token_file_open(in_folder("out/x_val_000000.bin"), &fd, &val, &err)) close(fd);
        if (token_file_open(in_folder("out/x_train_000000.bin"), &fd, &train, &err)) close(fd);
        TEST_CHECK(val.tokens == 1500001 && train.tokens == 1000000, "%llu %llu",
                   (unsigned long long)val.tokens, (unsigned long long)train.tokens);
        const char *files[] = {in_folder("out/x_val_000000.bin"), in_folder("out/x_train_000000.bin")};
        TEST_CHECK(decodes_to(files, 2, NULL, text, bytes), "%s", err.text);
    }
    free(text);
}

static void test_folder(void) {
    mkdir(in_folder("in"), 0700);
    mkdir(in_folder("in/b"), 0700);
    mkdir(in_folder("in/.git"), 0700);
    write_text("in/c", "third");
    write_text("in/b/x", "second");
    write_text("in/a", "first");
    write_text("in/.hidden", "no");
    write_text("in/.git/x", "no");
    write_text("in/empty", "");
    write_text("in/y.tokenizer", "no");
    TEST_CHECK(file_write(in_folder("in/binary"), "a\0b", 3, &err), "%s", err.text);
    TEST_CHECK(symlink("..", in_folder("in/loop")) == 0 && symlink("a", in_folder("in/z")) == 0, "symlink");
    TEST_CHECK(run((TokenizeOptions){.val_fraction = 0.25}, "in"), "%s",
               err.text); /* 5 of 21 bytes of text */
    expect_letters("out/x_val_000000.bin", "|first");
    expect_letters("out/x_train_000000.bin", "|second|third|first");
    TEST_CHECK(!run((TokenizeOptions){0}, "in/binary") && strstr(err.text, "not text"), "%s", err.text);
    TEST_CHECK(!run((TokenizeOptions){0}, "in/empty") && strstr(err.text, "no text in it"), "%s", err.text);
    mkdir(in_folder("nothing"), 0700);
    TEST_CHECK(!run((TokenizeOptions){0}, "nothing") && strstr(err.text, "no text file"), "%s", err.text);
    TEST_CHECK(!run((TokenizeOptions){0}, "none") && strstr(err.text, "none"), "%s", err.text);
    expect_letters("out/x_train_000000.bin", "|second|third|first"); /* what was there stays */
}

static void test_stdin(void) {
    int saved = dup(STDIN_FILENO);
    for (int spooled = 0; spooled < 2; spooled++) {
        write_text("t", "from stdin");
        TEST_CHECK(freopen(in_folder("t"), "rb", stdin), "freopen");
        TEST_CHECK(run((TokenizeOptions){.val_fraction = spooled ? 0.5 : 0}, "-"), "%s", err.text);
        expect_letters("out/x_train_000000.bin", spooled ? "stdin" : "|from stdin");
        expect_letters("out/x_val_000000.bin", spooled ? "|from " : "none");
    }
    dup2(saved, STDIN_FILENO);
    close(saved);
    unlink(in_folder("t"));
}

static void test_refused(void) {
    write_text("t", "some text\n");
    TEST_CHECK(!run((TokenizeOptions){.train_bpe = 256}, "t") && strstr(err.text, "257"), "%s", err.text);
    TEST_CHECK(!run((TokenizeOptions){.train_bpe = 65536}, "t") && strstr(err.text, "65535"), "%s", err.text);
    TEST_CHECK(!run((TokenizeOptions){.val_fraction = 1}, "t") && strstr(err.text, "below 1"), "%s",
               err.text);
    TEST_CHECK(!run((TokenizeOptions){.val_fraction = NAN}, "t"), "NaN");
    TEST_CHECK(!run((TokenizeOptions){.shard_tokens = (uint64_t)1 << 31}, "t"), "%s", err.text);
    TEST_CHECK(!run((TokenizeOptions){.val_tokens = 11}, "t") &&
                   strstr(err.text, "none is left for training"),
               "%s", err.text);
    TEST_CHECK(!run((TokenizeOptions){.tokenizer = "none"}, "t") && strstr(err.text, "none"), "%s", err.text);
    TEST_CHECK(!run((TokenizeOptions){.output = "/proc/x/y"}, "t") && strstr(err.text, "/proc/x"), "%s",
               err.text);
    TokenizeOptions nothing = {.output = "x"};
    TEST_CHECK(!tokenize_run(&nothing, &err) && strstr(err.text, "no input"), "%s", err.text);
}

static int count_files(const char *path) {
    char command[600];
    int count = -1;
    snprintf(command, sizeof command, "ls -A '%s' | wc -l", path);
    FILE *pipe = popen(command, "r");
    if (!pipe || fscanf(pipe, "%d", &count) != 1) count = -1;
    if (pipe) pclose(pipe);
    return count;
}

/* A disk that fills up (here: a limit on file size), or fails at the end, leaves nothing of the run. */
static void test_disk_full(void) {
    char *text = malloc(1 << 20);
    memset(text, 'x', 1 << 20);
    TEST_CHECK(file_write(in_folder("t"), text, 1 << 20, &err), "%s", err.text);
    free(text);
    struct rlimit old, low;
    getrlimit(RLIMIT_FSIZE, &old);
    low = (struct rlimit){1 << 20, old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    mkdir(in_folder("full"), 0700);
    TEST_CHECK(setrlimit(RLIMIT_FSIZE, &low) == 0, "setrlimit");
    /* the first file, of validation data, is complete when the second grows too large */
    bool ok = run(
        (TokenizeOptions){.output = in_folder("full/x"), .val_tokens = 100000, .shard_tokens = 600000}, "t");
    setrlimit(RLIMIT_FSIZE, &old);
    TEST_CHECK(!ok && strstr(err.text, "full/x_"), "%s", err.text);
    TEST_CHECK(count_files(in_folder("full")) == 0, "%d files are left", count_files(in_folder("full")));
    mkdir(in_folder("full/x.tokenizer"), 0700); /* the last file of the run cannot be written */
    ok = run((TokenizeOptions){.output = in_folder("full/x"), .val_tokens = 1000, .shard_tokens = 400000},
             "t");
    TEST_CHECK(!ok && strstr(err.text, "x.tokenizer"), "%s", err.text);
    TEST_CHECK(count_files(in_folder("full")) == 1, "%d files are left", count_files(in_folder("full")) - 1);
}

static void test_decode(void) {
    static const char text[] = "the cat and the hat and the bat\n\nthe end of the cat\n";
    write_text("t", text);
    TEST_CHECK(
        run((TokenizeOptions){.train_bpe = 270, .blank_line_documents = true, .val_fraction = 0.3}, "t"),
        "%s", err.text);
    const char *files[] = {in_folder("out/x_val_000000.bin"), in_folder("out/x_train_000000.bin")};
    TEST_CHECK(decodes_to(files, 2, NULL, text, strlen(text)), "%s", err.text);
    TEST_CHECK(!decodes_to(files, 2, "byte", text, strlen(text)) && strstr(err.text, "another tokenizer"),
               "%s", err.text);
    unlink(in_folder("out/x.tokenizer"));
    TEST_CHECK(!decodes_to(files, 2, "", text, strlen(text)) && strstr(err.text, "no tokenizer beside"), "%s",
               err.text);
    TokenFileWriter w; /* a file that does not say its tokenizer, with an id that bytes do not have */
    TEST_CHECK(token_file_writer_open(&w, files[0], 0, 0, &err) &&
                   token_file_writer_write(&w, (uint16_t[]){97, 98, 300}, 3, &err) &&
                   token_file_writer_commit(&w, &err),
               "%s", err.text);
    token_file_writer_abort(&w);
    TEST_CHECK(!decodes_to(files, 1, "byte", "", 0) && strstr(err.text, "token 2 has id 300"), "%s",
               err.text);
}

/* Finds a data file in $TOROID_DATA or data/. */
static bool find_data(const char *name, char path[512]) {
    const char *data = getenv("TOROID_DATA");
    if (data && snprintf(path, 512, "%s/%s", data, name) < 512 && file_exists(path)) return true;
    return snprintf(path, 512, "data/%s", name) < 512 && file_exists(path);
}

static uint32_t checksum_of_ids(const char *path) {
    char *data = NULL;
    size_t bytes = 0;
    if (!file_read(path, 1 << 24, &data, &bytes, &err) || bytes < TOKEN_FILE_HEADER_BYTES) return 0;
    uint32_t crc = crc32c(0, data + TOKEN_FILE_HEADER_BYTES, bytes - TOKEN_FILE_HEADER_BYTES);
    free(data);
    return crc;
}

/* The token files that llm.c's script makes of tiny Shakespeare with tiktoken: counts and checksums of the
 * ids. */
static void test_shakespeare(void) {
    char text[512], merges[512];
    if (!find_data("tinyshakespeare.txt", text) || !find_data("gpt2_vocab.bpe", merges)) {
        printf("tokenize: no tinyshakespeare.txt and gpt2_vocab.bpe in data/ or $TOROID_DATA: not compared "
               "with llm.c\n");
        return;
    }
    const char *path = text;
    const TokenizeOptions options = {.inputs = &path,
                                     .num_inputs = 1,
                                     .output = in_folder("out/s"),
                                     .tokenizer = merges,
                                     .blank_line_documents = true,
                                     .val_tokens = 32768};
    TEST_CHECK(tokenize_run(&options, &err), "%s", err.text);
    static const struct {
        const char *name;
        long bytes;
        uint32_t crc;
    } files[] = {{"out/s_val_000000.bin", 66560, 0x57f007ab}, {"out/s_train_000000.bin", 611544, 0xc6cf328d}};
    for (int i = 0; i < 2; i++) {
        struct stat s = {0};
        TEST_CHECK(stat(in_folder(files[i].name), &s) == 0 && (long)s.st_size == files[i].bytes, "%ld bytes",
                   (long)s.st_size);
        TEST_CHECK(checksum_of_ids(in_folder(files[i].name)) == files[i].crc, "%s", files[i].name);
    }
    char *original = NULL;
    size_t bytes = 0;
    const char *both[] = {in_folder(files[0].name), in_folder(files[1].name)};
    TEST_CHECK(file_read(text, 1 << 24, &original, &bytes, &err) &&
                   decodes_to(both, 2, NULL, original, bytes),
               "%s", err.text);
    free(original);
}

static int remove_entry(const char *path, const struct stat *s, int type, struct FTW *ftw) {
    (void)s, (void)type, (void)ftw;
    return remove(path);
}

int main(void) {
    const char *temporary = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/test_tokenize.XXXXXX", temporary ? temporary : "/tmp");
    if (!mkdtemp(folder)) return 1;
    log_open(0, true);
    test_splits();
    test_large();
    test_folder();
    test_stdin();
    test_refused();
    test_disk_full();
    test_decode();
    test_shakespeare();
    TEST_CHECK(nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS) == 0, "%s stays", folder);
    return test_end("tokenize");
}
