/* bench_comm.c: comm_bench, the collective operations of llmc/comm measured: options and columns of nccl-tests, and what
 * they leave out: the share of what the wires allow, the bytes that crossed them, a hash of the result, and MPI's own
 * all-reduce measured alternately in the same run. See usage() for the options.
 *
 * A time is that of the slowest rank from a common barrier on; of several iterations the median and the least are shown.
 * The bound is topology_all_reduce_bound: no algorithm can be faster over these links. */
#define _POSIX_C_SOURCE 200809L
#include "base/crc32c.h"
#include "base/json.h"
#include "base/log.h"
#include "comm/comm.h"
#include "comm/probe.h"
#include "comm/topology.h"
#include "exact_all_reduce.h"
#include "peer_mpi.h"
#include "peer_own.h"
#include "wire_bytes.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ITERATIONS_MAX = 10000, WRONG_MAX = 1000000 };

typedef struct {
    size_t begin, end, factor, step;
    int iterations, warmup;
    const char *collective, *type_name, *op_name, *probe, *compare, *compare_own;
    bool json, check;
    CommConfig comm;
} Options;

static const char *const type_names[] = {"float", "bfloat16", "int32", "uint8", "exact"};
static const char *const op_names[] = {"sum", "max"};
static const char *const collectives[] = {"all_reduce", "reduce_scatter", "all_gather", "broadcast"};
enum { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST };

static void usage(FILE *out) {
    fputs("comm_bench: collective operations measured. Start it with mpirun, srun or TOROID_RANK and "
          "TOROID_SIZE.\n"
          "  -b, --minbytes=SIZE     smallest size (32M); sizes may end in K, M, G\n"
          "  -e, --maxbytes=SIZE     largest size (the smallest)\n"
          "  -f, --stepfactor=N      from size to size (2); -i, --stepbytes=SIZE: add instead\n"
          "  -n, --iters=N           iterations (20); -w, --warmup_iters=N: before them (5)\n"
          "  -d, --type=TYPE         float, bfloat16, int32, uint8; exact: floats as --reduce exact adds "
          "them,\n"
          "                          and alternately in the same run as float does\n"
          "  -o, --op=OP             sum or max\n"
          "  --collective=NAME       all_reduce, reduce_scatter, all_gather or broadcast\n"
          "  -c, --check=0|1         check the results (1)\n"
          "  --backend=NAME          self, mpi, shm, torus, hosts or auto\n"
          "  --algorithm=NAME        of the torus: auto, whole, split or rings (TOROID_TORUS_ALGORITHM)\n"
          "  --topology=SPEC         ring:8, torus:4x4x4, flat:64, file:PATH\n"
          "  --timeout=SECONDS       of every wait (60)\n"
          "  --compare-mpi[=all]     MPI_Allreduce alternately in the same run; all: every algorithm of Open "
          "MPI\n"
          "  --compare-algorithms=LIST   these algorithms of the torus (see above) alternately in the same "
          "run\n"
          "  --json                  one JSON object per line instead of the table\n"
          "  --probe=FILE            measure every wire of the topology at once and write it to FILE\n"
          "Columns: algorithm: what ran; time and min in us, of the slowest rank (median, least); algbw "
          "size/time; busbw as "
          "nccl-tests has it;\n"
          "share of what the links of --topology allow; most bytes that left over one wire, headers "
          "included.\n",
          out);
}

/* --- options --- */

static bool parse_size(const char *text, size_t *value) {
    char *end;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    int shift = *end == 'K' || *end == 'k'   ? 10
                : *end == 'M' || *end == 'm' ? 20
                : *end == 'G' || *end == 'g' ? 30
                                             : 0;
    if (end == text || *text == '-' || errno || end[shift > 0] || n > ((size_t)1 << 40) >> shift)
        return false;
    *value = (size_t)n << shift;
    return true;
}

static bool parse_count(const char *text, int least, int *value) {
    size_t n;
    if (!parse_size(text, &n) || n < (size_t)least || n > ITERATIONS_MAX) return false;
    *value = (int)n;
    return true;
}

static bool one_of(const char *text, const char *const *names, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!strcmp(text, names[i])) return true;
    return false;
}

static int index_of(const char *text, const char *const *names) {
    int i = 0;
    while (strcmp(text, names[i]) != 0) i++;
    return i;
}

/* name: without dashes; false if it is none or its value is not allowed. */
static bool set_option(Options *o, const char *name, const char *value) {
    char *end;
    if (!strcmp(name, "b") || !strcmp(name, "minbytes")) return parse_size(value, &o->begin);
    if (!strcmp(name, "e") || !strcmp(name, "maxbytes")) return parse_size(value, &o->end);
    if (!strcmp(name, "f") || !strcmp(name, "stepfactor"))
        return parse_size(value, &o->factor) && o->factor > 1;
    if (!strcmp(name, "i") || !strcmp(name, "stepbytes")) return parse_size(value, &o->step);
    if (!strcmp(name, "n") || !strcmp(name, "iters")) return parse_count(value, 1, &o->iterations);
    if (!strcmp(name, "w") || !strcmp(name, "warmup_iters")) return parse_count(value, 0, &o->warmup);
    if (!strcmp(name, "d") || !strcmp(name, "type"))
        return o->type_name = value, one_of(value, type_names, 5);
    if (!strcmp(name, "o") || !strcmp(name, "op")) return o->op_name = value, one_of(value, op_names, 2);
    if (!strcmp(name, "collective")) return o->collective = value, one_of(value, collectives, 4);
    if (!strcmp(name, "c") || !strcmp(name, "check")) return o->check = *value != '0', true;
    if (!strcmp(name, "backend")) return o->comm.backend = value, true;
    if (!strcmp(name, "algorithm")) return !setenv("TOROID_TORUS_ALGORITHM", value, 1);
    if (!strcmp(name, "compare-algorithms")) return o->compare_own = value, *value != 0;
    if (!strcmp(name, "topology")) return o->comm.topology = value, true;
    if (!strcmp(name, "probe")) return o->probe = value, *value != 0;
    if (!strcmp(name, "timeout"))
        return o->comm.timeout_seconds = strtod(value, &end), o->comm.timeout_seconds > 0;
    return false;
}

static bool parse_options(Options *o, int argc, char **argv, Error *err) {
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i], *equals = strchr(word, '=');
        char name[32];
        if (*word != '-') return error_set(err, "'%.100s' is no option (see --help)", word);
        while (*word == '-') word++;
        size_t n = equals ? (size_t)(equals - word) : strlen(word);
        if (n >= sizeof name) return error_set(err, "'%.100s' is no option (see --help)", argv[i]);
        memcpy(name, word, n);
        name[n] = 0;
        if (!strcmp(name, "json"))
            o->json = true;
        else if (!strcmp(name, "compare-mpi"))
            o->compare = equals ? equals + 1 : "";
        else if (!equals && i + 1 == argc)
            return error_set(err, "'%.100s' is no option, or lacks its value (see --help)", argv[i]);
        else if (!set_option(o, name, equals ? equals + 1 : argv[++i]))
            return error_set(err, "'%.100s': no such option or value (see --help)", argv[i]);
    }
    if (!o->end) o->end = o->begin;
    if (o->end < o->begin) return error_set(err, "-e is below -b (see --help)");
    if (!strcmp(o->type_name, "exact") &&
        (strcmp(o->collective, "all_reduce") != 0 || strcmp(o->op_name, "sum") != 0))
        return error_set(err, "--type=exact is for --collective=all_reduce --op=sum");
    if ((o->compare || o->compare_own) && strcmp(o->collective, "all_reduce") != 0)
        return error_set(err, "comparisons are for --collective=all_reduce");
    return true;
}

/* --- data: small whole numbers, so that sums are exact in every type and order --- */

static unsigned value_of(int rank, size_t i) {
    return (unsigned)((size_t)rank * 7 + i * 5 + i / 3) % 4;
}

static float as_float(uint16_t bf16) {
    uint32_t bits = (uint32_t)bf16 << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void store(void *data, size_t i, CommType type, unsigned value) {
    float x = (float)value;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    switch (type) {
    case COMM_FP32: ((float *)data)[i] = x; break;
    case COMM_BF16: ((uint16_t *)data)[i] = (uint16_t)(bits >> 16); break;
    case COMM_INT32: ((int32_t *)data)[i] = (int32_t)value; break;
    case COMM_UINT8: ((uint8_t *)data)[i] = (uint8_t)value; break;
    }
}

static double load(const void *data, size_t i, CommType type) {
    switch (type) {
    case COMM_FP32: return (double)((const float *)data)[i];
    case COMM_BF16: return (double)as_float(((const uint16_t *)data)[i]);
    case COMM_INT32: return ((const int32_t *)data)[i];
    case COMM_UINT8: return ((const uint8_t *)data)[i];
    }
    return 0;
}

typedef struct {
    const Options *options;
    Comm *comm;
    int rank, size, collective;
    CommType type;
    CommOp op;
    const Topology *topology;
    void *data;
    size_t *offsets; /* (size + 1) of the size that is measured */
    bool has_wires;  /* the topology has addresses */
    Wires wires;
    bool is_exact;          /* type exact; float is the last peer */
    float float_wire_bytes; /* of that peer, as Result.wire_bytes */
    ExactAllReduce exact;
    PeerMpi *mpi;    /* NULL: no comparison */
    PeerOwn own;     /* after those of mpi */
    float *times;    /* (1 + peers, iterations) us */
    float *in_order; /* (iterations) us, ours as they came */
    char *text;      /* for a line of JSON */
    size_t text_bytes;
} Bench;

typedef struct {
    size_t bytes, count;
    double median_us, min_us, algbw, busbw, share, wire_bytes;
    int wrong; /* -1: not checked */
    char algorithm[24];
    uint32_t hash;
} Result;

static int peer_count(const Bench *b) {
    return (b->mpi ? peer_mpi_count(b->mpi) : 0) + b->own.count + b->is_exact;
}

/* Is peer p one of MPI? *index: which of its kind. */
static bool peer_is_mpi(const Bench *b, int p, int *index) {
    int mpi = b->mpi ? peer_mpi_count(b->mpi) : 0;
    *index = p < mpi ? p : p - mpi;
    return p < mpi;
}

static const char *peer_name(const Bench *b, int p) {
    int i;
    if (peer_is_mpi(b, p, &i)) return peer_mpi_name(b->mpi, i);
    return i < b->own.count ? b->own.name[i] : "of float";
}

static unsigned expected_of(const Bench *b, size_t i, int owner) {
    unsigned value = 0;
    if (b->collective == ALL_GATHER || b->collective == BROADCAST) return value_of(owner, i);
    for (int r = 0; r < b->size; r++) {
        unsigned v = value_of(r, i);
        value = b->op == COMM_SUM ? value + v : v > value ? v : value;
    }
    return value;
}

static bool run_once(Bench *b, size_t count, Error *err) {
    CommRequest request = 0;
    if (b->is_exact) return exact_all_reduce(&b->exact, b->data, count, err);
    switch (b->collective) {
    case ALL_REDUCE: request = comm_all_reduce(b->comm, b->data, count, b->type, b->op); break;
    case REDUCE_SCATTER: request = comm_reduce_scatter(b->comm, b->data, b->offsets, b->type, b->op); break;
    case ALL_GATHER: request = comm_all_gather(b->comm, b->data, b->offsets, b->type); break;
    default: request = comm_broadcast(b->comm, b->data, count * comm_type_bytes(b->type), 0); break;
    }
    return comm_wait(b->comm, request, err);
}

/* One operation on known numbers; r->wrong grows by what is wrong on all ranks, a hash unlike rank 0's among it. */
static bool check(Bench *b, Result *r, Error *err) {
    size_t first = 0, last = r->count;
    int owner = 0;
    for (size_t i = 0; i < r->count; i++) store(b->data, i, b->type, value_of(b->rank, i));
    if (!run_once(b, r->count, err)) return false;
    if (b->collective == REDUCE_SCATTER) first = b->offsets[b->rank], last = b->offsets[b->rank + 1];
    int32_t wrong = 0;
    for (size_t i = first; i < last; i++) {
        while (b->collective == ALL_GATHER && i >= b->offsets[owner + 1]) owner++;
        if (load(b->data, i, b->type) != expected_of(b, i, owner) && wrong < WRONG_MAX) wrong++;
    }
    size_t element = comm_type_bytes(b->type);
    r->hash = crc32c(0, (const char *)b->data + first * element, (last - first) * element);
    uint8_t hash[4];
    memcpy(hash, &r->hash, sizeof hash);
    if (b->collective != REDUCE_SCATTER) {
        int32_t rank0[4] = {hash[0], hash[1], hash[2], hash[3]}, zero[4] = {0};
        memcpy(zero, b->rank == 0 ? rank0 : zero, sizeof zero);
        if (!comm_wait(b->comm, comm_all_reduce(b->comm, zero, 4, COMM_INT32, COMM_SUM), err)) return false;
        if (memcmp(zero, rank0, sizeof zero) != 0) wrong++;
    }
    if (!comm_wait(b->comm, comm_all_reduce(b->comm, &wrong, 1, COMM_INT32, COMM_SUM), err)) return false;
    r->wrong = wrong + (r->wrong > 0 ? r->wrong : 0);
    return true;
}

/* --- times --- */

static int compare(const void *x, const void *y) {
    float a = *(const float *)x, b = *(const float *)y;
    return (a > b) - (a < b);
}

/* Sorts the times (n) of the slowest rank; returns their median. */
static double median(float *times, int n) {
    qsort(times, (size_t)n, sizeof *times, compare);
    return n % 2 ? (double)times[n / 2] : 0.5 * ((double)times[n / 2 - 1] + (double)times[n / 2]);
}

/* While nothing is on the way. */
static bool count_wires(const Bench *b, WireBytes *out, Error *err) {
    if (b->has_wires && !comm_barrier(b->comm, err)) return false;
    wire_bytes_read(&b->wires, out);
    return true;
}

/* Seconds of peer p; negative with err if it failed. */
static double measure_peer(Bench *b, int p, size_t count, Error *err) {
    int i;
    if (peer_is_mpi(b, p, &i)) return peer_mpi_all_reduce(b->mpi, i, count, (int)b->type, (int)b->op);
    if (i < b->own.count) return peer_own_all_reduce(&b->own, i, b->data, count, b->type, b->op, err);
    if (!comm_barrier(b->comm, err)) return -1;
    double start = log_seconds();
    bool ok = comm_wait(b->comm, comm_all_reduce(b->comm, b->data, count, COMM_FP32, COMM_SUM), err);
    return ok ? log_seconds() - start : -1;
}

static bool measure(Bench *b, Result *r, Error *err) {
    int n = b->options->iterations, peers = peer_count(b);
    float wire[2] = {0}; /* ours, and that of float */
    WireBytes before, after;
    memset(b->data, 0, r->bytes);
    for (int i = -b->options->warmup; i < n; i++) {
        peer_own_pause(&b->own);
        if (!count_wires(b, &before, err) || !comm_barrier(b->comm, err)) return false;
        double start = log_seconds();
        if (!run_once(b, r->count, err)) return false;
        double took = log_seconds() - start;
        snprintf(r->algorithm, sizeof r->algorithm, "%s", comm_last_algorithm(b->comm));
        if (!count_wires(b, &after, err)) return false;
        if (i >= 0) {
            b->times[i] = (float)(1e6 * took);
            wire[0] += (float)wire_bytes_most(&b->wires, &before, &after) / (float)n;
        }
        for (int p = 0; p < peers; p++) {
            bool is_float = b->is_exact && p == peers - 1;
            if (is_float && !count_wires(b, &before, err)) return false;
            double seconds = measure_peer(b, p, r->count, err);
            if (seconds < 0 || (is_float && !count_wires(b, &after, err))) return false;
            if (i < 0) continue;
            b->times[(p + 1) * n + i] = (float)(1e6 * seconds);
            if (is_float) wire[1] += (float)wire_bytes_most(&b->wires, &before, &after) / (float)n;
        }
    }
    size_t total = (size_t)n * (size_t)(1 + peers);
    if (!comm_wait(b->comm, comm_all_reduce(b->comm, b->times, total, COMM_FP32, COMM_MAX), err))
        return false;
    if (!comm_wait(b->comm, comm_all_reduce(b->comm, wire, 2, COMM_FP32, COMM_MAX), err)) return false;
    memcpy(b->in_order, b->times, (size_t)n * sizeof *b->times);
    r->median_us = median(b->times, n);
    r->min_us = (double)b->times[0];
    r->wire_bytes = (double)wire[0];
    b->float_wire_bytes = wire[1];
    double size = b->size, factor = b->collective == ALL_REDUCE  ? 2 * (size - 1) / size
                                    : b->collective == BROADCAST ? 1
                                                                 : (size - 1) / size;
    r->algbw = (double)r->bytes / r->median_us * 1e-3;
    r->busbw = r->algbw * factor;
    double bound = b->collective == ALL_REDUCE ? topology_all_reduce_bound(b->topology, (double)r->bytes) : 0;
    r->share = 1e6 * bound / r->median_us;
    return true;
}

/* --- what is shown --- */

static void show_header(const Bench *b) {
    printf("# comm_bench: %s, %d ranks, %d iterations after %d; %s\n", b->options->collective, b->size,
           b->options->iterations, b->options->warmup, comm_describe(b->comm));
    printf("#%12s %12s %9s %5s %18s %11s %11s %8s %8s %7s %7s %11s %9s\n", "size", "count", "type", "redop",
           "algorithm", "time", "min", "algbw", "busbw", "#wrong", "share", "wire bytes", "hash");
    printf("#%12s %12s %9s %5s %18s %11s %11s %8s %8s %7s %7s %11s %9s\n", "(B)", "(elements)", "", "", "",
           "(us)", "(us)", "(GB/s)", "(GB/s)", "", "", "(B)", "");
}

static void show_text(const Bench *b, const Result *r) {
    char share[16] = "-", wire[24] = "-", wrong[16] = "-", hash[16] = "-";
    if (r->share > 0) snprintf(share, sizeof share, "%.1f%%", 100 * r->share);
    if (r->wire_bytes > 0) snprintf(wire, sizeof wire, "%.0f", r->wire_bytes);
    if (r->wrong >= 0) snprintf(wrong, sizeof wrong, "%d", r->wrong);
    if (r->wrong >= 0) snprintf(hash, sizeof hash, "%08x", (unsigned)r->hash);
    printf(" %12zu %12zu %9s %5s %18s %11.1f %11.1f %8.4f %8.4f %7s %7s %11s %9s\n", r->bytes, r->count,
           b->options->type_name, b->collective <= REDUCE_SCATTER ? b->options->op_name : "none",
           r->algorithm, r->median_us, r->min_us, r->algbw, r->busbw, wrong, share, wire, hash);
    int n = b->options->iterations;
    for (int p = 0, i; p < peer_count(b); p++) {
        float *times = b->times + (p + 1) * n;
        double us = median(times, n);
        printf("#%12s %-13s %-33s %11.1f %11.1f %8.4f   we are %.2fx as fast (least time: %.2fx)\n", "",
               peer_is_mpi(b, p, &i) ? "MPI_Allreduce" : "algorithm", peer_name(b, p), us, (double)times[0],
               (double)r->bytes / us * 1e-3, us / r->median_us, (double)times[0] / r->min_us);
    }
    fflush(stdout);
}

static void show_json_peers(const Bench *b, const Result *r, bool mpi, JsonWriter *w) {
    int n = b->options->iterations;
    json_array_begin(w, mpi ? "mpi" : "algorithms");
    for (int p = 0, i; p < peer_count(b); p++) {
        if (peer_is_mpi(b, p, &i) != mpi) continue;
        float *times = b->times + (p + 1) * n;
        json_object_begin(w, NULL);
        json_string(w, "algorithm", peer_name(b, p));
        double us = median(times, n);
        json_double(w, "median_us", us);
        json_double(w, "min_us", (double)times[0]);
        json_double(w, "ratio", us / r->median_us);
        if (!mpi && i == b->own.count) json_double(w, "wire_bytes", (double)b->float_wire_bytes);
        json_object_end(w);
    }
    json_array_end(w);
}

static void show_json(const Bench *b, const Result *r) {
    JsonWriter w;
    int n = b->options->iterations;
    json_writer_open(&w, b->text, b->text_bytes);
    json_object_begin(&w, NULL);
    json_string(&w, "collective", b->options->collective);
    json_string(&w, "comm", comm_describe(b->comm));
    json_int(&w, "ranks", b->size);
    json_int(&w, "bytes", (int64_t)r->bytes);
    json_int(&w, "count", (int64_t)r->count);
    json_string(&w, "type", b->options->type_name);
    json_string(&w, "op", b->options->op_name);
    json_string(&w, "algorithm", r->algorithm);
    json_int(&w, "iterations", n);
    json_double(&w, "median_us", r->median_us);
    json_double(&w, "min_us", r->min_us);
    json_double(&w, "algbw_gb_s", r->algbw);
    json_double(&w, "busbw_gb_s", r->busbw);
    if (r->share > 0) json_double(&w, "share_of_bound", r->share);
    if (r->wire_bytes > 0) json_double(&w, "wire_bytes", r->wire_bytes);
    if (r->wrong >= 0) json_int(&w, "wrong", r->wrong);
    if (r->wrong >= 0) json_int(&w, "hash", r->hash);
    json_array_begin(&w, "times_us");
    for (int i = 0; i < n; i++) json_float(&w, NULL, b->in_order[i]);
    json_array_end(&w);
    show_json_peers(b, r, true, &w);
    show_json_peers(b, r, false, &w);
    json_object_end(&w);
    if (json_writer_done(&w)) puts(b->text);
    fflush(stdout);
}

/* --- the whole --- */

static bool bench(Bench *b, Error *err) {
    const Options *o = b->options;
    size_t element = comm_type_bytes(b->type);
    bool show = b->rank == 0;
    int wrong = 0, peers = peer_count(b);
    b->data = comm_alloc(b->comm, o->end + element, err);
    if (!b->data) return false;
    b->times = calloc((size_t)o->iterations * (size_t)(1 + peers), sizeof *b->times);
    b->offsets = calloc((size_t)b->size + 1, sizeof *b->offsets);
    b->in_order = calloc((size_t)o->iterations, sizeof *b->in_order);
    b->text_bytes = 8192 + 32 * (size_t)o->iterations;
    b->text = calloc(b->text_bytes, 1);
    if (!b->times || !b->offsets || !b->in_order || !b->text)
        return error_set(err, "no memory for %d iterations", o->iterations);
    if (show && !o->json) show_header(b);
    for (size_t bytes = o->begin; bytes <= o->end; bytes = o->step ? bytes + o->step : bytes * o->factor) {
        Result r = {.count = bytes / element, .bytes = bytes / element * element, .wrong = -1};
        if (!r.count) continue;
        for (int i = 0; i <= b->size; i++)
            b->offsets[i] = (size_t)((double)r.count * i / b->size); /* uneven where it does not divide */
        b->offsets[b->size] = r.count;
        if (o->check && !check(b, &r, err)) return false;
        if (!measure(b, &r, err)) return false;
        if (o->check && !check(b, &r, err)) return false; /* also after all of them: a link may have died */
        if (show) (o->json ? show_json : show_text)(b, &r);
        if (r.wrong > 0) wrong += r.wrong;
        if (!bytes) break;
    }
    if (wrong) return error_set(err, "%d wrong elements", wrong);
    return true;
}

static bool probe(const Bench *b, Topology *topology, const char *path, Error *err) {
    if (topology->places != b->size)
        return error_set(err, "--probe: start one rank for each of the %d places", topology->places);
    if (!probe_links(b->comm, topology, PROBE_SECONDS, b->rank == 0 ? stdout : NULL, err)) return false;
    if (b->rank != 0) return true;
    topology_print(topology, stdout);
    if (!topology_write(topology, path, err)) return false;
    printf("written: %s (use --topology=file:%s)\n", path, path);
    return true;
}

int main(int argc, char **argv) {
    Options o = {.begin = 32 << 20,
                 .factor = 2,
                 .iterations = 20,
                 .warmup = 5,
                 .collective = "all_reduce",
                 .type_name = "float",
                 .op_name = "sum",
                 .check = true,
                 .comm = {.backend = "auto", .topology = "", .timeout_seconds = 60}};
    Topology topology = {0};
    Bench b = {.options = &o, .topology = &topology};
    Error err;
    bool ok = false;
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) return usage(stdout), EXIT_DONE;
    if (!parse_options(&o, argc, argv, &err)) {
        fprintf(stderr, "comm_bench: %s\n", err.text);
        return EXIT_USAGE;
    }
    b.is_exact = !strcmp(o.type_name, "exact");
    b.type = b.is_exact ? COMM_FP32 : (CommType)index_of(o.type_name, type_names);
    b.op = (CommOp)index_of(o.op_name, op_names);
    b.collective = index_of(o.collective, collectives);
    log_open(0, o.json);
    if (o.compare) peer_mpi_prepare();
    if (!comm_open(&b.comm, &o.comm, &err)) goto out;
    b.rank = comm_rank(b.comm);
    b.size = comm_size(b.comm);
    /* comm_open has compared it with the ranks: there is a place for each, or for each host */
    if (!topology_open(&topology, o.comm.topology, *o.comm.topology ? 0 : b.size, &err)) goto out;
    for (size_t i = 0; i < (size_t)topology.places * (size_t)topology.axes * 2; i++)
        b.has_wires = b.has_wires || topology.links[i].address[0];
    if (topology.places == b.size) wires_open(&b.wires, &topology, b.rank);
    if (b.is_exact && !exact_all_reduce_open(&b.exact, b.comm, o.end / sizeof(float), &err)) goto out;
    if (o.compare && !peer_mpi_open(&b.mpi, !strcmp(o.compare, "all"), o.end, &err)) goto out;
    if (o.compare_own && !peer_own_open(&b.own, b.comm, o.compare_own, &err)) goto out;
    ok = o.probe ? probe(&b, &topology, o.probe, &err) : bench(&b, &err);
out:
    if (!ok) fprintf(stderr, "comm_bench: rank %d: %s\n", b.rank, err.text);
    peer_own_close(&b.own);
    comm_close(b.comm);
    peer_mpi_close(b.mpi);
    exact_all_reduce_close(&b.exact);
    topology_close(&topology);
    free(b.times);
    free(b.in_order);
    free(b.text);
    free(b.offsets);
    return ok ? EXIT_DONE : EXIT_FAILED;
}
