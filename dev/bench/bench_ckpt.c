/* bench_ckpt.c: what it costs to save and to restore a checkpoint, beside what the disk can do.
 *
 *   build/bench/bench_ckpt [--parameters=124475904] [--directory=build/bench_ckpt] [--rounds=5] [--steps=100]
 *                          [--step-seconds=1] [--io=auto|uring|plain]
 * Each round does all of these one after the other, on the same memory (parameters and both moments, 12 bytes each):
 *   save       the store: checksums, index, SHARD and COMMIT records, all durable, in recycled segments
 *   raw        the same bytes by the same file operations into a preallocated file, synced: no checksums, no commit
 *   fwrite     a new file by fwrite, then fsync
 *   restore    every byte read from the store, checked, by all threads; raw read: the bytes alone
 * Then `steps` steps of idle waiting with a checkpoint in each: how long training would have waited for it.
 * Prints a line of medians for each. bench_ckpt_peers.py puts PyTorch beside it. */
#define _GNU_SOURCE
#include "base/file.h"
#include "base/log.h"
#include "bench.h"
#include "ckpt/ckpt_reader.h"
#include <fcntl.h>
#include <math.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { TENSORS = 148, KINDS = 3, ROUNDS_MAX = 100, STEPS_MAX = 10000 };
static const size_t CHUNK_BYTES = 8 << 20;

typedef struct {
    char *memory;
    size_t bytes, count;
    TensorView views[TENSORS * KINDS];
    char staging[FILE_PATH_BYTES], raw[FILE_PATH_BYTES], plain[FILE_PATH_BYTES];
    const char *io;
    Ckpt *ckpt;
    uint64_t step;
} Bench;

static void fail(const char *text) {
    fprintf(stderr, "bench_ckpt: %s\n", text);
    exit(1);
}

static double cpu_seconds(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
           1e-6 * (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

/* Three arrays of `parameters` floats in a row, each cut into tensors of uneven sizes. */
static void make_views(Bench *b, size_t parameters) {
    b->bytes = KINDS * parameters * sizeof(float);
    b->memory =
        device_alloc(b->bytes + CKPT_IO_ALIGN); /* as the trainer's tensors; the raw writer ends a block */
    if (!b->memory) fail("no memory for the state");
    uint32_t *words = (uint32_t *)(void *)b->memory;
    for (size_t i = 0; i < b->bytes / 4; i++) words[i] = (uint32_t)i * 2654435761u;
    for (size_t k = 0; k < KINDS; k++)
        for (size_t t = 0; t < TENSORS; t++) {
            size_t begin = parameters * t / TENSORS, end = parameters * (t + 1) / TENSORS;
            TensorView *v = &b->views[b->count++];
            *v = (TensorView){.type = CKPT_FP32,
                              .dims = 1,
                              .shape = {end - begin},
                              .end = end - begin,
                              .data = b->memory + (k * parameters + begin) * sizeof(float)};
            snprintf(v->name, sizeof v->name, "%s/t%03zu", k == 0 ? "params" : k == 1 ? "m" : "v", t);
        }
}

static void open_store(Bench *b) {
    Error err;
    CkptReader *reader;
    CkptConfig config = {.directory = b->staging,
                         .node = "bench",
                         .io = b->io,
                         .size = 1,
                         .node_first = true,
                         .run = "bench_ckpt",
                         .payload_bytes = b->bytes,
                         .views_max = (int)b->count,
                         .keep = 1,
                         .policy = CKPT_POLICY_LAZY};
    if (!file_make_directory(b->staging, &err) || !ckpt_reader_open(&reader, b->staging, &err))
        fail(err.text);
    config.attempt = ckpt_reader_attempt(reader) + 1;
    ckpt_reader_close(reader);
    if (!ckpt_open(&b->ckpt, &config, &err)) fail(err.text);
}

static void save(Bench *b, char *unused) {
    (void)unused;
    Error err;
    if (!ckpt_begin(b->ckpt, ++b->step, b->views, b->count, &err)) fail(err.text);
    ckpt_fence(b->ckpt);
    if (!ckpt_wait(b->ckpt, 600)) fail(ckpt_status(b->ckpt).error.text);
    ckpt_commit(b->ckpt, b->step, false);
    if (!ckpt_wait(b->ckpt, 600)) fail(ckpt_status(b->ckpt).error.text);
}

static void write_raw(Bench *b, char *unused) {
    (void)unused;
    Error err;
    CkptIo io;
    const char *why;
    if (!ckpt_io_open(&io, b->io, &why, &err)) fail(err.text);
    CkptFile *file =
        io.body->open(&io, b->raw, CKPT_IO_READ | CKPT_IO_WRITE | CKPT_IO_CREATE | CKPT_IO_DIRECT, &err);
    size_t whole = (b->bytes + CKPT_IO_ALIGN - 1) / CKPT_IO_ALIGN * CKPT_IO_ALIGN;
    if (!file || !io.body->allocate(&io, file, whole, &err)) fail(err.text);
    for (size_t at = 0; at < whole; at += CHUNK_BYTES) {
        size_t n = whole - at < CHUNK_BYTES ? whole - at : CHUNK_BYTES;
        if (!io.body->write(&io, file, b->memory + at, n, at, &err)) fail(err.text);
    }
    if (!io.body->sync(&io, file, &err)) fail(err.text);
    io.body->close_file(&io, file);
    ckpt_io_close(&io);
}

static void write_plain(Bench *b, char *unused) {
    (void)unused;
    unlink(b->plain);
    FILE *file = fopen(b->plain, "wb");
    if (!file || fwrite(b->memory, 1, b->bytes, file) != b->bytes || fflush(file) || fsync(fileno(file)) ||
        fclose(file))
        fail("fwrite failed");
}

/* The page cache holds nothing of these files: what is read comes from the disk. */
static void drop_caches(const Bench *b) {
    int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
    if (fd < 0) return;
    sync();
    if (write(fd, "1", 1) != 1) fprintf(stderr, "the page cache stays: %s may be in memory\n", b->staging);
    close(fd);
}

static void restore(Bench *b, char *into) {
    Error err;
    CkptReader *reader;
    const CkptInfo *list;
    if (!ckpt_reader_open(&reader, b->staging, &err)) fail(err.text);
    if (!ckpt_reader_list(reader, &list)) fail("nothing to restore");
    static CkptWanted wanted[TENSORS * KINDS];
    for (size_t i = 0; i < b->count; i++) {
        const TensorView *v = &b->views[i];
        wanted[i] = (CkptWanted){v->name, v->type, 0, v->end, into + ((const char *)v->data - b->memory)};
    }
    if (!ckpt_reader_read_all(reader, list[0].id, wanted, b->count, 0, &err)) fail(err.text);
    ckpt_reader_close(reader);
}

static void read_raw(Bench *b, char *into) {
    bool ok = true;
    int fd = open(b->raw, O_RDONLY | O_DIRECT);
    if (fd < 0) fd = open(b->raw, O_RDONLY);
    if (fd < 0) fail("raw file is gone");
#pragma omp parallel for schedule(dynamic)
    for (size_t at = 0; at < b->bytes; at += CHUNK_BYTES) {
        size_t n = b->bytes - at < CHUNK_BYTES ? b->bytes - at : CHUNK_BYTES;
        size_t whole = (n + CKPT_IO_ALIGN - 1) / CKPT_IO_ALIGN * CKPT_IO_ALIGN;
        if (pread(fd, into + at, whole, (off_t)at) < (ssize_t)n) ok = false;
    }
    if (!ok) fail("raw file cannot be read");
    close(fd);
}

/* --- rounds --- */

typedef struct {
    const char *name;
    void (*run)(Bench *b, char *into);
    double seconds[ROUNDS_MAX], cpu[ROUNDS_MAX];
} Row;
enum { SAVE, RAW, FWRITE, RESTORE, READ, NUM_ROWS };

static void measure(Bench *b, Row *row, int round, char *into) {
    double start = log_seconds(), cpu = cpu_seconds();
    row->run(b, into);
    if (round < 0) return; /* warms up */
    row->seconds[round] = log_seconds() - start;
    row->cpu[round] = cpu_seconds() - cpu;
}

static void run_rounds(Bench *b, int rounds) {
    static Row rows[NUM_ROWS] = {{.name = "save", .run = save},
                                 {.name = "raw", .run = write_raw},
                                 {.name = "fwrite", .run = write_plain},
                                 {.name = "restore", .run = restore},
                                 {.name = "raw read", .run = read_raw}};
    char *into = device_alloc(b->bytes + CHUNK_BYTES);
    if (!into) fail("no memory to restore into");
    memset(into, 0, b->bytes + CHUNK_BYTES);
    for (int i = 0; i < 4; i++) save(b, NULL); /* every segment has been written once */
    double share[ROUNDS_MAX], faster[ROUNDS_MAX], read[ROUNDS_MAX];
    for (int r = -1; r < rounds; r++)
        for (int i = 0; i < NUM_ROWS; i++) {
            if (i >= RESTORE) drop_caches(b);
            memset(into, 0xAA, i == RESTORE ? b->bytes : 0);
            measure(b, &rows[i], r, into);
            if (i == RESTORE && memcmp(into, b->memory, b->bytes) != 0)
                fail("restored other bytes than were saved");
        }
    for (int r = 0; r < rounds; r++) {
        share[r] = rows[RAW].seconds[r] / rows[SAVE].seconds[r];
        faster[r] = rows[FWRITE].seconds[r] / rows[SAVE].seconds[r];
        read[r] = rows[READ].seconds[r] / rows[RESTORE].seconds[r];
    }
    printf("%-10s %9s %8s %9s\n", "", "seconds", "GB/s", "CPU s/GB");
    for (int i = 0; i < NUM_ROWS; i++) {
        double s = bench_median(rows[i].seconds, rounds), c = bench_median(rows[i].cpu, rounds);
        printf("%-10s %9.3f %8.2f %9.3f\n", rows[i].name, s, 1e-9 * (double)b->bytes / s,
               c / (1e-9 * (double)b->bytes));
    }
    printf("save: %.1f%% of the raw writer's bandwidth, %.2fx fwrite + fsync (medians of %d rounds)\n",
           100 * bench_median(share, rounds), bench_median(faster, rounds), rounds);
    printf("restore: %.1f%% of the raw reader's bandwidth\n", 100 * bench_median(read, rounds));
    device_free(into, b->bytes + CHUNK_BYTES);
}

static void run_steps(Bench *b, int steps, double step_seconds) {
    static double stalls[STEPS_MAX];
    Error err;
    int begun = 0;
    for (int i = 0; i < steps; i++) {
        double start = log_seconds();
        CkptStatus s = ckpt_status(b->ckpt);
        if (!s.writing) {
            if (b->step && s.newest_committed.step != b->step) ckpt_commit(b->ckpt, b->step, false);
            if (!ckpt_begin(b->ckpt, ++b->step, b->views, b->count, &err)) fail(err.text);
            begun++;
        }
        double stall = log_seconds() - start;
        usleep((useconds_t)(1e6 * step_seconds));
        start = log_seconds();
        ckpt_fence(b->ckpt);
        stalls[i] = 1e3 * (stall + log_seconds() - start);
    }
    ckpt_wait(b->ckpt, 600);
    double median = bench_median(stalls, steps);
    int p99 = (int)ceil(0.99 * steps) - 1;
    printf("a checkpoint in each of %d steps of %.2f s: %d saved; training waits %.2f ms (median), %.2f ms "
           "(p99), %.2f ms "
           "(most)\n",
           steps, step_seconds, begun, median, stalls[p99], stalls[steps - 1]);
}

int main(int argc, char **argv) {
    static Bench b;
    Error err;
    size_t parameters = (size_t)strtoull(bench_option(argc, argv, "--parameters", "124475904"), NULL, 10);
    const char *directory = bench_option(argc, argv, "--directory", "build/bench_ckpt");
    int rounds = atoi(bench_option(argc, argv, "--rounds", "5")),
        steps = atoi(bench_option(argc, argv, "--steps", "100"));
    double step_seconds = atof(bench_option(argc, argv, "--step-seconds", "1"));
    b.io = bench_option(argc, argv, "--io", "auto");
    if (parameters < TENSORS || rounds < 0 || rounds > ROUNDS_MAX || steps < 0 || steps > STEPS_MAX ||
        !(step_seconds >= 0))
        fail("bad option (the head of bench_ckpt.c lists them)");
    DeviceConfig device = {0, PRECISION_FP32, "auto"};
    log_open(0, true);
    if (!device_open(&device, &err) || !file_make_directory(directory, &err) ||
        !file_join(b.staging, directory, "staging", &err) || !file_join(b.raw, directory, "raw", &err) ||
        !file_join(b.plain, directory, "plain", &err))
        fail(err.text);
    make_views(&b, parameters);
    open_store(&b);
    printf("%.3f GB in %zu tensors, %s, through %s\n", 1e-9 * (double)b.bytes, b.count, directory,
           ckpt_status(b.ckpt).io);
    if (rounds) run_rounds(&b, rounds);
    if (steps) run_steps(&b, steps, step_seconds);
    ckpt_close(b.ckpt);
    return 0;
}
