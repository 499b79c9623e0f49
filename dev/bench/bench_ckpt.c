/* bench_ckpt.c: what it costs to save and to restore a checkpoint, beside what the disk can do.
 *
 *   build/bench/bench_ckpt [--layers=12] [--directory=build/bench_ckpt] [--rounds=12] [--steps=100] [--step-seconds=1]
 *                          [--io=auto|uring|plain]
 * Each round does all of these one after the other, on the same memory (GPT-2's tensors and both moments, as the trainer
 * saves them):
 *   save       the store: checksums, index, SHARD and COMMIT records, all durable, in recycled segments
 *   raw        the same bytes by the same file operations into a free segment, synced: no checksums, no commit. A disk may be
 *              faster in one place than in another, so both write to all segments, each two rounds after the other
 *   fwrite     a new file by fwrite, then fsync
 *   restore    every byte read from the store, checked; raw read: the bytes alone, of the segment that raw wrote
 * Then `steps` steps of idle waiting with a checkpoint in each: how long training would have waited for it.
 * Prints a line of medians for each. bench_ckpt_peers.py puts PyTorch beside it. */
#define _GNU_SOURCE
#include "base/file.h"
#include "base/log.h"
#include "bench.h"
#include "ckpt/ckpt_reader.h"
#include "ckpt/ckpt_shard.h"
#include "run/checkpoint.h"
#include <fcntl.h>
#include <glob.h>
#include <math.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    LAYERS_MAX = 100,
    VIEWS_MAX = 3 * (LAYERS_MAX + 1) * NUM_PARAM_TENSORS,
    ROUNDS_MAX = 100,
    STEPS_MAX = 10000,
    KEEP = 2
};
static const size_t CHUNK_BYTES = CKPT_WRITE_BYTES; /* as the store writes */

typedef struct {
    char *memory;
    size_t bytes, count;
    TensorView views[VIEWS_MAX];
    char staging[FILE_PATH_BYTES], plain[FILE_PATH_BYTES];
    char raw[FILE_PATH_BYTES]; /* the segment that was written last without the store */
    const char *io;
    Ckpt *ckpt;
    uint64_t step;
} Bench;

_Noreturn static void fail(const char *text) {
    fprintf(stderr, "bench_ckpt: %s\n", text);
    exit(1);
}

static double cpu_seconds(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
           1e-6 * (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

static void add_views(Bench *b, const GPT2Config *config, const char *kind, char *base) {
    for (int layer = -1; layer < config->layers; layer++)
        for (int t = 0; t < NUM_PARAM_TENSORS; t++) {
            TensorInfo info = gpt2_tensor(config, t);
            if ((info.scope == MODEL) != (layer < 0)) continue;
            TensorView *v = &b->views[b->count++];
            *v = (TensorView){.type = CKPT_FP32,
                              .dims = 1,
                              .shape = {info.rows * info.cols},
                              .end = info.rows * info.cols,
                              .data = base + gpt2_tensor_offset(config, t, layer) * sizeof(float)};
            checkpoint_tensor_name(v->name, kind, &info, layer);
        }
}

/* Parameters and both moments in a row. */
static void make_views(Bench *b, int layers) {
    GPT2Config config = {.context = 1024,
                         .vocab = 50257,
                         .vocab_padded = 50304,
                         .layers = layers,
                         .heads = 12,
                         .channels = 768};
    size_t bytes = gpt2_param_count(&config) * sizeof(float);
    b->bytes = 3 * bytes;
    b->memory =
        device_alloc(b->bytes + CKPT_IO_ALIGN); /* as the trainer's tensors; the raw writer ends a block */
    if (!b->memory) fail("no memory for the state");
    uint32_t *words = (uint32_t *)(void *)b->memory;
    for (size_t i = 0; i < b->bytes / 4; i++) words[i] = (uint32_t)i * 2654435761u;
    add_views(b, &config, "params", b->memory);
    add_views(b, &config, "adamw_m", b->memory + bytes);
    add_views(b, &config, "adamw_v", b->memory + 2 * bytes);
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
                         .keep = KEEP,
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

/* The segment that was written longest ago: free, and the one after that which the store takes next. */
static void find_raw(Bench *b) {
    char pattern[FILE_PATH_BYTES];
    Error err;
    glob_t found;
    struct stat s;
    struct timespec oldest = {0};
    if (!file_join(pattern, b->staging, "seg/*.seg", &err)) fail(err.text);
    if (glob(pattern, 0, NULL, &found) || found.gl_pathc < KEEP + 2) fail("segments are missing");
    for (size_t i = 0; i < found.gl_pathc; i++) {
        if (stat(found.gl_pathv[i], &s)) fail("a segment is gone");
        bool older = s.st_mtim.tv_sec != oldest.tv_sec ? s.st_mtim.tv_sec < oldest.tv_sec
                                                       : s.st_mtim.tv_nsec < oldest.tv_nsec;
        if (i && !older) continue;
        oldest = s.st_mtim;
        snprintf(b->raw, sizeof b->raw, "%s", found.gl_pathv[i]);
    }
    globfree(&found);
}

static void write_raw(Bench *b, char *unused) {
    (void)unused;
    Error err;
    CkptIo io;
    const char *why;
    find_raw(b);
    if (!ckpt_io_open(&io, b->io, &why, &err)) fail(err.text);
    CkptFile *file = io.body->open(&io, b->raw, CKPT_IO_READ | CKPT_IO_WRITE | CKPT_IO_DIRECT, &err);
    size_t whole = (b->bytes + CKPT_IO_ALIGN - 1) / CKPT_IO_ALIGN * CKPT_IO_ALIGN;
    if (!file) fail(err.text);
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
    static CkptWanted wanted[VIEWS_MAX];
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
    if (fd < 0) fail("the raw segment is gone");
#pragma omp parallel for schedule(dynamic)
    for (size_t at = 0; at < b->bytes; at += CHUNK_BYTES) {
        size_t n = b->bytes - at < CHUNK_BYTES ? b->bytes - at : CHUNK_BYTES;
        size_t whole = (n + CKPT_IO_ALIGN - 1) / CKPT_IO_ALIGN * CKPT_IO_ALIGN;
        if (pread(fd, into + at, whole, (off_t)at) < (ssize_t)n) ok = false;
    }
    if (!ok) fail("the raw segment cannot be read");
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
    for (int i = 0; i < KEEP + 2; i++) save(b, NULL); /* every segment has been written once */
    for (int r = -1; r < rounds; r++)
        for (int i = 0; i < NUM_ROWS; i++) {
            if (i >= RESTORE) drop_caches(b);
            memset(into, 0xAA, i == RESTORE ? b->bytes : 0);
            measure(b, &rows[i], r, into);
            if (i == RESTORE && memcmp(into, b->memory, b->bytes) != 0)
                fail("restored other bytes than were saved");
        }
    printf("%-10s %9s %8s %9s\n", "", "seconds", "GB/s", "CPU s/GB");
    double median[NUM_ROWS];
    for (int i = 0; i < NUM_ROWS; i++) {
        double cpu = bench_median(rows[i].cpu, rounds);
        median[i] = bench_median(rows[i].seconds, rounds);
        printf("%-10s %9.3f %8.2f %9.3f\n", rows[i].name, median[i], 1e-9 * (double)b->bytes / median[i],
               cpu / (1e-9 * (double)b->bytes));
    }
    printf("save: %.1f%% of the raw writer's bandwidth, %.2fx fwrite + fsync; restore: %.1f%% of the raw "
           "reader's "
           "(medians of %d rounds)\n",
           100 * median[RAW] / median[SAVE], median[FWRITE] / median[SAVE],
           100 * median[READ] / median[RESTORE], rounds);
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
    const char *directory = bench_option(argc, argv, "--directory", "build/bench_ckpt");
    int layers = atoi(bench_option(argc, argv, "--layers", "12"));
    int rounds = atoi(bench_option(argc, argv, "--rounds", "12")),
        steps = atoi(bench_option(argc, argv, "--steps", "100"));
    double step_seconds = atof(bench_option(argc, argv, "--step-seconds", "1"));
    b.io = bench_option(argc, argv, "--io", "auto");
    bench_options_end(argc, argv);
    if (layers < 1 || layers > LAYERS_MAX || rounds < 0 || rounds > ROUNDS_MAX || steps < 0 ||
        steps > STEPS_MAX || !(step_seconds >= 0))
        fail("bad option (the head of bench_ckpt.c lists them)");
    DeviceConfig device = {0, PRECISION_FP32, "auto"};
    log_open(0, true);
    if (!device_open(&device, &err) || !file_make_directory(directory, &err) ||
        !file_join(b.staging, directory, "staging", &err) || !file_join(b.plain, directory, "plain", &err))
        fail(err.text);
    make_views(&b, layers);
    open_store(&b);
    printf("%.3f GB in %zu tensors, %s, through %s\n", 1e-9 * (double)b.bytes, b.count, directory,
           ckpt_status(b.ckpt).io);
    if (rounds) run_rounds(&b, rounds);
    if (steps) run_steps(&b, steps, step_seconds);
    ckpt_close(b.ckpt);
    return 0;
}
