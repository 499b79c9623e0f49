/* test_ckpt_io.c: one list of tests for all bodies of ckpt_io.h (pwrite, io_uring, simulator): what is written is read
 * back, whatever the sizes, alignments and signals; errors carry the path, the reason and a hint; a full disk leaves the
 * file as it was; where io_uring is forbidden, that is said and pwrite takes over. */
#define _GNU_SOURCE
#include "ckpt_io_sim.h"
#include "test.h"
#include "test_folder.h"
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

enum { BLOCK = CKPT_IO_ALIGN, BIG = 1 << 20 };

static Error err;
static CkptIo io;
static const char *kind;
static TestPath folder;

static const char *in_folder(const char *name) {
    static char paths[4][600];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder.path, name);
    return path;
}

static uint8_t *block_new(size_t bytes) {
    void *p;
    CHECK(posix_memalign(&p, BLOCK, bytes) == 0);
    return p;
}

static void fill(uint8_t *data, size_t bytes, uint32_t seed) {
    for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)((i * 2654435761u + seed * 40503u) >> 13);
}

#define HAS(part) (strstr(err.text, part) != NULL)

/* Reads to back + at, which then holds those bytes of the file and no others. */
static void read_to(CkptFile *file, uint8_t *back, const uint8_t *data, size_t room, size_t at, size_t bytes,
                    size_t from) {
    test_poison(back, room + BLOCK);
    bool ok = io.body->read(&io, file, back + at, bytes, from, &err);
    TEST_CHECK(ok && !memcmp(back + at, data + from, bytes), "%s: %zu bytes at %zu", kind, bytes, from);
    for (size_t i = 0; i < room + BLOCK; i++) ok = ok && (back[i] == 0xff || (i >= at && i < at + bytes));
    TEST_CHECK(ok, "%s: %zu bytes at %zu: others were written too", kind, bytes, from);
}

/* Writes of many sizes, all under way at once, then all of it back by reads that are not aligned. */
static void test_write_read(int flags) {
    enum { BYTES = 40 * BLOCK };
    uint8_t *data = block_new(BYTES), *back = block_new(BYTES + BLOCK);
    CkptFile *file =
        io.body->open(&io, in_folder("segment"), CKPT_IO_READ | CKPT_IO_WRITE | CKPT_IO_CREATE | flags, &err);
    TEST_CHECK(file != NULL, "%s: %s", kind, err.text);
    if (!file) return;
    fill(data, BYTES, (uint32_t)flags);
    size_t at = 0;
    for (size_t blocks = 1; at < BYTES; blocks = blocks % 3 + 1) {
        size_t bytes = blocks * BLOCK < BYTES - at ? blocks * BLOCK : BYTES - at;
        TEST_CHECK(io.body->write(&io, file, data + at, bytes, at, &err), "%s: %s", kind, err.text);
        at += bytes;
        if (blocks == 2) TEST_CHECK(io.body->wait(&io, 2, &err), "%s: %s", kind, err.text);
    }
    TEST_CHECK(io.body->sync(&io, file, &err), "%s: %s", kind, err.text);
    uint64_t size = 0;
    TEST_CHECK(io.body->size(&io, file, &size, &err) && size == BYTES, "%s: %llu bytes", kind,
               (unsigned long long)size);
    for (size_t from = 0; from < BYTES; from += 5003)
        for (size_t bytes = 1; bytes <= BYTES - from; bytes = 3 * bytes + 1) {
            read_to(file, back, data, BYTES, 0, bytes, from);
            read_to(file, back, data, BYTES, from % BLOCK, bytes, from); /* aligned as the file is */
        }
    TEST_CHECK(!io.body->read(&io, file, back, 2 * BLOCK, BYTES - BLOCK, &err) && HAS("segment: ends at") &&
                   HAS("cut off"),
               "%s: %s", kind, err.text);
    TEST_CHECK(!io.body->read(&io, file, back + 9, 4 * BLOCK, BYTES - 3 * BLOCK + 9, &err) &&
                   HAS("segment: ends at") && HAS("cut off"),
               "%s: %s", kind, err.text);
    TEST_CHECK(!io.body->read(&io, file, back, 3, BYTES - 2, &err) && HAS("segment: ends at"), "%s: %s", kind,
               err.text);
    io.body->close_file(&io, file);
    file = io.body->open(&io, in_folder("segment"), CKPT_IO_READ, &err);
    test_poison(back, BYTES);
    TEST_CHECK(file && io.body->read(&io, file, back, BYTES, 0, &err) && !memcmp(back, data, BYTES), "%s: %s",
               kind, err.text);
    if (file) io.body->close_file(&io, file);
    free(data);
    free(back);
}

static void test_allocate(void) {
    uint8_t *data = block_new(BLOCK), *back = block_new(4 * BLOCK);
    CkptFile *file = io.body->open(&io, in_folder("room"),
                                   CKPT_IO_READ | CKPT_IO_WRITE | CKPT_IO_CREATE | CKPT_IO_DIRECT, &err);
    CHECK(file != NULL);
    uint64_t size = 0;
    fill(data, BLOCK, 5);
    TEST_CHECK(io.body->allocate(&io, file, 4 * BLOCK, &err), "%s: %s", kind, err.text);
    TEST_CHECK(io.body->size(&io, file, &size, &err) && size == 4 * BLOCK, "%s", kind);
    TEST_CHECK(io.body->write(&io, file, data, BLOCK, BLOCK, &err) && io.body->sync(&io, file, &err),
               "%s: %s", kind, err.text);
    TEST_CHECK(io.body->allocate(&io, file, 3 * BLOCK, &err), "%s: less than there is", kind);
    TEST_CHECK(io.body->size(&io, file, &size, &err) && size == 4 * BLOCK, "%s", kind);
    test_poison(back, 4 * BLOCK);
    bool same = io.body->read(&io, file, back, 4 * BLOCK, 0, &err) && !memcmp(back + BLOCK, data, BLOCK);
    for (size_t i = 0; i < BLOCK; i++)
        same = same && !back[i] && !back[2 * BLOCK + i] && !back[3 * BLOCK + i];
    TEST_CHECK(same, "%s: zeros around what was written", kind);
    io.body->close_file(&io, file);
    free(data);
    free(back);
}

static char listed[256];
static void add_listed(void *ctx, const char *name) {
    (void)ctx;
    size_t n = strlen(listed);
    snprintf(listed + n, sizeof listed - n, "%s ", name);
}

static void test_names(void) {
    TEST_CHECK(io.body->make_directory(&io, in_folder("a/b"), &err) &&
                   io.body->make_directory(&io, in_folder("a/b"), &err),
               "%s: %s", kind, err.text);
    static const char *const made[] = {"a/b/n10", "a/b/n9", "a/b/B", "a/b/c"};
    for (int i = 0; i < 4; i++) {
        CkptFile *file = io.body->open(&io, in_folder(made[i]), CKPT_IO_WRITE | CKPT_IO_CREATE, &err);
        TEST_CHECK(file && io.body->write(&io, file, made[i], strlen(made[i]), 7, &err) &&
                       io.body->sync(&io, file, &err),
                   "%s: %s", kind, err.text);
        if (file) io.body->close_file(&io, file);
    }
    *listed = 0;
    TEST_CHECK(io.body->list(&io, in_folder("a/b"), add_listed, NULL, &err) && !strcmp(listed, "B c n10 n9 "),
               "%s: %s", kind, listed);
    TEST_CHECK(io.body->rename(&io, in_folder("a/b/c"), in_folder("a/b/B"), &err) &&
                   io.body->remove(&io, in_folder("a/b/n9"), &err) &&
                   io.body->remove(&io, in_folder("a/b/n9"), &err) &&
                   io.body->sync_directory(&io, in_folder("a/b"), &err),
               "%s: %s", kind, err.text);
    *listed = 0;
    TEST_CHECK(io.body->list(&io, in_folder("a/b"), add_listed, NULL, &err) && !strcmp(listed, "B n10 "),
               "%s: %s", kind, listed);
    char back[8] = {0};
    CkptFile *file = io.body->open(&io, in_folder("a/b/B"), CKPT_IO_READ, &err);
    TEST_CHECK(file && io.body->read(&io, file, back, 5, 7, &err) && !strcmp(back, "a/b/c"), "%s: %s", kind,
               back);
    if (file) io.body->close_file(&io, file);
    *listed = 0;
    TEST_CHECK(io.body->list(&io, in_folder("none"), add_listed, NULL, &err) && !*listed, "%s: %s", kind,
               listed);
    uint64_t bytes = 0;
    TEST_CHECK(io.body->free_bytes(&io, folder.path, &bytes, &err) && bytes > 0, "%s: %s", kind, err.text);
}

static void test_errors(void) {
    TEST_CHECK(!io.body->open(&io, in_folder("none/x"), CKPT_IO_WRITE | CKPT_IO_CREATE, &err) &&
                   HAS("none/x: cannot ") && HAS("No such file"),
               "%s: %s", kind, err.text);
    TEST_CHECK(!io.body->open(&io, in_folder("missing"), CKPT_IO_READ, &err) && HAS("missing: cannot "),
               "%s: %s", kind, err.text);
    TEST_CHECK(!io.body->rename(&io, in_folder("missing"), in_folder("x"), &err) &&
                   HAS("missing: cannot rename"),
               "%s: %s", kind, err.text);
    TEST_CHECK(!io.body->sync_directory(&io, in_folder("missing"), &err) && HAS("missing: cannot "), "%s: %s",
               kind, err.text);
}

/* Writes until one fails or all are waited for; the failure must name the file and end up in err. */
static bool write_big(CkptFile *file, const uint8_t *data, int count) {
    bool ok = true;
    for (int i = 0; ok && i < count; i++) ok = io.body->write(&io, file, data, BIG, (uint64_t)i * BIG, &err);
    Error second;
    bool waited = io.body->wait(&io, 0, ok ? &err : &second);
    return ok && waited;
}

/* A limit in the way: by ulimit -f, and by a file system of 2 MiB where one may be mounted. */
static void test_full(const char *hint) {
    uint8_t *data = block_new(BIG);
    uint64_t size = 1;
    fill(data, BIG, 1);
    CkptFile *file = io.body->open(&io, in_folder("full"),
                                   CKPT_IO_READ | CKPT_IO_WRITE | CKPT_IO_CREATE | CKPT_IO_DIRECT, &err);
    TEST_CHECK(file != NULL, "%s: %s", kind, err.text);
    if (!file) return;
    TEST_CHECK(!io.body->allocate(&io, file, 16 * BIG, &err) && HAS("full: cannot allocate 16777216 bytes") &&
                   HAS("("),
               "%s: %s", kind, err.text);
    TEST_CHECK(io.body->size(&io, file, &size, &err) && size == 0, "%s: %llu bytes", kind,
               (unsigned long long)size);
    TEST_CHECK(io.body->allocate(&io, file, BIG, &err), "%s: what fits afterwards: %s", kind, err.text);
    TEST_CHECK(!write_big(file, data, 12) && HAS("full: cannot write") && HAS(hint), "%s: %s", kind,
               err.text);
    TEST_CHECK(write_big(file, data, 1) && io.body->sync(&io, file, &err), "%s: afterwards: %s", kind,
               err.text);
    io.body->close_file(&io, file);
    TEST_CHECK(io.body->remove(&io, in_folder("full"), &err), "%s", err.text);
    free(data);
}

static void test_limits(void) {
    struct rlimit before, low;
    getrlimit(RLIMIT_FSIZE, &before);
    low = before;
    low.rlim_cur = 2 * BIG + BIG / 2;
    signal(SIGXFSZ, SIG_IGN);
    CHECK(setrlimit(RLIMIT_FSIZE, &low) == 0);
    test_full("ulimit -f");
    setrlimit(RLIMIT_FSIZE, &before);
    TestPath outside = folder;
    snprintf(folder.path, sizeof folder.path, "%.400s/small", outside.path);
    mkdir(folder.path, 0777);
    if (mount("none", folder.path, "tmpfs", 0, "size=2m") == 0) {
        test_full("free some space");
        umount(folder.path);
    } else {
        printf("%s: no small file system to fill: %s\n", kind, strerror(errno));
    }
    folder = outside;
}

static void on_alarm(int number) {
    (void)number;
}

static void test_signals(void) {
    struct sigaction action = {.sa_handler = on_alarm};
    struct itimerval often = {{0, 200}, {0, 200}}, never = {{0, 0}, {0, 0}};
    uint8_t *data = block_new(BIG), *back = block_new(BIG);
    CkptFile *file = io.body->open(&io, in_folder("signals"),
                                   CKPT_IO_READ | CKPT_IO_WRITE | CKPT_IO_CREATE | CKPT_IO_DIRECT, &err);
    CHECK(file != NULL);
    fill(data, BIG, 3);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    TEST_CHECK(io.body->allocate(&io, file, 16 * BIG, &err) && write_big(file, data, 16) &&
                   io.body->sync(&io, file, &err),
               "%s: %s", kind, err.text);
    for (int i = 0; i < 16; i++)
        TEST_CHECK(io.body->read(&io, file, back, BIG, (uint64_t)i * BIG, &err) && !memcmp(back, data, BIG),
                   "%s: %s", kind, err.text);
    setitimer(ITIMER_REAL, &never, NULL);
    io.body->close_file(&io, file);
    free(data);
    free(back);
}

/* io_uring_setup answers `error`, as a container's seccomp profile makes it. */
static void forbid_uring(int error) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 425 /* io_uring_setup, on every architecture */, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void test_forbidden(int error, const char *reason) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CkptIo forbidden;
        const char *why = NULL;
        forbid_uring(error);
        bool refused = !ckpt_io_open(&forbidden, "uring", &why, &err) && HAS("io_uring") && HAS("(");
        bool ok = ckpt_io_open(&forbidden, "auto", &why, &err) && !strcmp(forbidden.body->name, "pwrite");
        bool said = ok && (strstr(why, reason) || strstr(why, "not in this build"));
        if (!refused || !said) printf("%s; %s\n", err.text, why ? why : "");
        fflush(stdout);
        _exit(refused && said ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    TEST_CHECK(status == 0, "io_uring answers %s", strerror(error));
}

static void test_body(bool real) {
    kind = io.body->name;
    test_write_read(0);
    test_write_read(CKPT_IO_DIRECT);
    test_allocate();
    test_names();
    test_errors();
    if (real) {
        test_limits();
        test_signals();
    }
    ckpt_io_close(&io);
}

int main(void) {
    const char *why;
    static Sim sim;
    test_folder_open();
    folder = test_path("");
    if (ckpt_io_open(&io, "plain", &why, &err)) test_body(true);
    test_folder_remove(folder.path);
    mkdir(folder.path, 0777);
    if (ckpt_io_open(&io, "uring", &why, &err))
        test_body(true);
    else
        printf("not tested: %s\n", err.text);
    test_folder_close();
    if (access("/dev/shm", W_OK) == 0) { /* a file system that may refuse O_DIRECT */
        snprintf(folder.path, sizeof folder.path, "/dev/shm/toroid_test_%d", (int)getpid());
        TEST_CHECK(ckpt_io_open(&io, "auto", &why, &err) && io.body->make_directory(&io, folder.path, &err),
                   "%s", err.text);
        test_body(false);
        test_folder_remove(folder.path);
    }
    sim_open(&sim, NULL, true, 1);
    sim_use(&sim);
    snprintf(folder.path, sizeof folder.path, SIM_ROOT);
    if (ckpt_io_sim_open(&io, &err)) test_body(false);
    sim_close(&sim);
    TEST_CHECK(!ckpt_io_open(&io, "fast", &why, &err) && HAS("fast") && HAS("uring"), "%s", err.text);
    test_forbidden(EPERM, "forbidden");
    test_forbidden(ENOSYS, "kernel");
    return test_end("ckpt_io");
}
