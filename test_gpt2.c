/* test_gpt2.c: is this GPT-2 the same as PyTorch's? Logits, loss, every gradient, and the losses of AdamW
 * steps against reference files.
 *
 *   ./test_gpt2 [--precision fp32|bf16] [--threads N] [--isa NAME] [folder | NAME_debug_state.bin] ...
 *
 * A folder stands for every NAME_debug_state.bin in it; each goes with NAME.bin, the weights. Without
 * arguments the golden files in dev/reference. The format is llm.c's, so its gpt2_124M_debug_state.bin works
 * too, and some more (dev/reference/gpt2.py, which makes ours in float64). Prints a table, ends with "overall
 * okay: 1" and exit 0, or with 0 and 1. */
#define _POSIX_C_SOURCE 200809L
#include "base/error.h"
#include "base/file.h"
#include "model/adamw.h"
#include "model/gpt2.h"
#include "run/model_file.h"
#include <glob.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STATE_MAGIC = 20240327, STATE_VERSION = 2, STATE_HEADER_INTS = 256, STEPS_MAX = 1000 };
#define STATE_SUFFIX "_debug_state.bin"

/* The reference: x, y (B,T); logits (B,T,V); gradients and final weights in llm.c's order. */
typedef struct {
    size_t B, T;
    int steps, bits; /* bits: of the arithmetic behind it; 0: llm.c's own file, which does not say */
    bool has_final;
    int32_t *x, *y;
    float *logits, loss, *grads, *final;
    double rates[5]; /* learning rate, beta1, beta2, epsilon, weight decay */
    double *losses;
} Reference;

/* What is still right: relative L2 of logits and gradients, absolute loss, relative L2 of weights after the
 * steps. */
typedef struct {
    double tensor, loss, weights;
} Tolerance;

/* --- reading the reference --- */

static void reference_free(Reference *r) {
    free(r->x), free(r->y), free(r->logits), free(r->grads), free(r->final), free(r->losses);
    memset(r, 0, sizeof *r);
}

/* n elements of `size` bytes from *at on; NULL with err set on failure. */
static void *read_array(const TensorFile *file, uint64_t *at, size_t n, size_t size, Error *err) {
    void *memory = malloc(n * size + 1);
    if (!memory) {
        error_set(err, "%s: no memory for %zu bytes of it", file->path, n * size);
        return NULL;
    }
    if (!tensor_file_read(file, *at, memory, n * size, err)) {
        free(memory);
        return NULL;
    }
    *at += n * size;
    return memory;
}

static bool check_tokens(const TensorFile *file, const int32_t *tokens, size_t n, int vocab, Error *err) {
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= vocab)
            return error_set(err, "%s: token %zu is %d, outside the vocabulary of %d", file->path, i,
                             tokens[i], vocab);
    return true;
}

static bool read_header(Reference *r, const TensorFile *file, const GPT2Config *c, Error *err) {
    int32_t header[STATE_HEADER_INTS];
    if (!tensor_file_read(file, 0, header, sizeof header, err)) return false;
    if (header[0] != STATE_MAGIC || header[1] != STATE_VERSION)
        return error_set(err, "%s: not a debug state of version %d (magic %d, version %d)", file->path,
                         STATE_VERSION, header[0], header[1]);
    if (header[2] < 1 || header[2] > 65536 || header[3] < 1 || header[3] > c->context)
        return error_set(err, "%s: batch of %d x %d tokens is not possible with a context of %d", file->path,
                         header[2], header[3], c->context);
    if (header[4] < 0 || header[5] < 0 || header[5] > STEPS_MAX || header[6] < 0 || header[6] > 1)
        return error_set(err, "%s: its header is damaged", file->path);
    r->B = (size_t)header[2], r->T = (size_t)header[3];
    r->steps = header[5], r->has_final = header[6], r->bits = header[7];
    uint64_t N = r->B * r->T, P = gpt2_param_count(c);
    uint64_t bytes = sizeof header + 8 * N + 4 * N * (uint64_t)c->vocab + 4 + 4 * P;
    if (r->bits) bytes += sizeof r->rates + 8 * (uint64_t)r->steps + (r->has_final ? 4 * P : 0);
    if (bytes != file->bytes)
        return error_set(err, "%s: has %llu bytes; with these sizes it should have %llu", file->path,
                         (unsigned long long)file->bytes, (unsigned long long)bytes);
    return true;
}

/* The losses that llm.c's test expects of its own 124M file, which are not in the file. */
static const double llmc_losses[] = {
    5.270007133483887,  4.059706687927246,  3.3751230239868164, 2.8007826805114746, 2.315382242202759,
    1.8490285873413086, 1.3946564197540283, 0.9991465210914612, 0.6240804195404053, 0.37651097774505615};

static bool read_steps(Reference *r, const TensorFile *file, uint64_t at, size_t params, Error *err) {
    if (!r->bits) {
        const double rates[] = {1e-4, 0.9, 0.999, 1e-8, 0.01};
        memcpy(r->rates, rates, sizeof rates);
        if (fabs((double)r->loss - llmc_losses[0]) > 1e-3) return true;
        r->steps = sizeof llmc_losses / sizeof *llmc_losses;
        r->losses = malloc(sizeof llmc_losses);
        if (!r->losses) return error_set(err, "no memory");
        memcpy(r->losses, llmc_losses, sizeof llmc_losses);
        return true;
    }
    if (!tensor_file_read(file, at, r->rates, sizeof r->rates, err)) return false;
    at += sizeof r->rates;
    r->losses = read_array(file, &at, (size_t)r->steps, sizeof *r->losses, err);
    if (r->losses && r->has_final) r->final = read_array(file, &at, params, sizeof *r->final, err);
    return r->losses && (r->final || !r->has_final);
}

/* On failure r may be partly filled: reference_free it. c: of the weights; the file sets its window. */
static bool reference_read(Reference *r, const char *path, GPT2Config *c, Error *err) {
    TensorFile file;
    bool ok = false;
    int32_t window;
    size_t params = gpt2_param_count(c);
    memset(r, 0, sizeof *r);
    if (!tensor_file_open(&file, path, err)) return false;
    if (!read_header(r, &file, c, err)) goto out;
    if (!tensor_file_read(&file, 4 * sizeof(int32_t), &window, sizeof window, err)) goto out;
    c->window = window;
    size_t N = r->B * r->T;
    uint64_t at = STATE_HEADER_INTS * sizeof(int32_t);
    if (!(r->x = read_array(&file, &at, N, sizeof *r->x, err))) goto out;
    if (!(r->y = read_array(&file, &at, N, sizeof *r->y, err))) goto out;
    if (!check_tokens(&file, r->x, N, c->vocab, err) || !check_tokens(&file, r->y, N, c->vocab, err))
        goto out;
    if (!(r->logits = read_array(&file, &at, N * (size_t)c->vocab, sizeof *r->logits, err))) goto out;
    if (!tensor_file_read(&file, at, &r->loss, sizeof r->loss, err)) goto out;
    at += sizeof r->loss;
    if (!(r->grads = read_array(&file, &at, params, sizeof *r->grads, err))) goto out;
    ok = read_steps(r, &file, at, params, err);
out:
    tensor_file_close(&file);
    return ok;
}

/* --- comparing --- */

/* Squared distance to the reference and the reference's square, summed over pieces. */
typedef struct {
    double error, square, largest;
    size_t n;
} Distance;

static void distance_add(Distance *d, const float *ours, const float *reference, size_t n) {
    for (size_t i = 0; i < n; i++) {
        double e = (double)ours[i] - (double)reference[i];
        d->error += e * e;
        d->square += (double)reference[i] * (double)reference[i];
        if (!(fabs(e) <= d->largest)) d->largest = fabs(e);
    }
    d->n += n;
}

/* Prints the line of a tensor; NaN is never right. */
static bool distance_print(const char *name, Distance d, double tolerance) {
    double relative = d.square > 0 ? sqrt(d.error / d.square) : sqrt(d.error);
    bool ok = relative <= tolerance;
    printf("  %-10s %12zu  %9.2e  %9.2e  %s\n", name, d.n, relative, d.largest, ok ? "OK" : "NOT OK");
    return ok;
}

static bool compare_logits(GPT2 *m, const Reference *r, double tolerance, float *logits) {
    Distance d = {0};
    size_t V = (size_t)m->config.vocab, Vp = (size_t)m->config.vocab_padded, N = r->B * r->T;
    for (size_t at = 0; at < N; at += m->head_rows) {
        size_t rows = N - at < m->head_rows ? N - at : m->head_rows;
        gpt2_read_logits(m, at, rows, logits);
        for (size_t i = 0; i < rows; i++) distance_add(&d, logits + i * Vp, r->logits + (at + i) * V, V);
    }
    return distance_print("logits", d, tolerance);
}

/* All tensors of one of m's arenas against an array in llm.c's order; prefix "d" for gradients. host: room
 * for the largest tensor. */
static bool compare_tensors(const GPT2 *m, const floatX *arena, const float *reference, const char *prefix,
                            double tolerance, float *host) {
    bool ok = true;
    for (int t = 0; t < NUM_PARAM_TENSORS; t++) {
        TensorInfo info = gpt2_tensor(&m->config, t);
        size_t n = info.rows * info.cols;
        char name[32];
        Distance d = {0};
        for (int l = 0; l < (info.scope == LAYER ? m->config.layers : 1); l++, reference += n) {
            device_read_floats(host, arena + gpt2_tensor_offset(&m->config, t, l), n);
            distance_add(&d, host, reference, n);
        }
        snprintf(name, sizeof name, "%s%s", prefix, info.name);
        ok &= distance_print(name, d, tolerance);
    }
    return ok;
}

static bool compare_loss(int step, double loss, double reference, double tolerance) {
    bool ok = fabs(loss - reference) <= tolerance;
    printf("  step %2d  loss %.7f  reference %.7f  difference %8.1e  %s\n", step, loss, reference,
           fabs(loss - reference), ok ? "OK" : "NOT OK");
    return ok;
}

/* --- one reference --- */

static Tolerance tolerance_of(Precision precision, const Reference *r) {
    if (sizeof(floatX) == 2) /* stored in bf16 too: a rounding of 2^-9 at every operation of the walk */
        return (Tolerance){2e-2, 1e-2, 1e-2};
    if (precision == PRECISION_BF16) return (Tolerance){1e-2, 1e-2, 1e-2};
    if (!r->bits)
        return (Tolerance){1e-2, 1e-2, 0}; /* fp32 or TF32 by a GPU: as far as llm.c's own test goes */
    return (Tolerance){5e-6, 1e-5, 1e-5};
}

static double loss_of(GPT2 *m, const Reference *r, const int32_t *x, const int32_t *y) {
    double rows = (double)(r->B * r->T);
    gpt2_forward(m, x);
    gpt2_loss(m, y, (float)(1 / rows));
    return gpt2_loss_sum(m) / rows;
}

/* x, y: device memory. host: room for the largest tensor and for the logits of a block. */
static bool compare(GPT2 *m, AdamW *optimizer, const Reference *r, const int32_t *x, const int32_t *y,
                    Tolerance most, float *host) {
    printf("  %-10s %12s  %9s  %9s\n", "tensor", "elements", "rel. L2", "largest");
    double loss = loss_of(m, r, x, y);
    gpt2_backward(m, x);
    bool ok = compare_logits(m, r, most.tensor, host);
    ok &= compare_tensors(m, m->grads, r->grads, "d", most.tensor, host);
    ok &= compare_loss(0, loss, r->steps ? r->losses[0] : (double)r->loss, most.loss);
    for (int step = 1; step < r->steps; step++) {
        adamw_update(optimizer, m, r->rates[0], 1);
        loss = loss_of(m, r, x, y);
        gpt2_backward(m, x);
        ok &= compare_loss(step, loss, r->losses[step], most.loss);
    }
    if (r->final) {
        printf("  after %d steps\n", r->steps);
        adamw_update(optimizer, m, r->rates[0], 1);
        ok &= compare_tensors(m, m->params, r->final, "", most.weights, host);
    }
    return ok;
}

/* dir/NAME_debug_state.bin -> dir/NAME.bin */
static bool weights_path(char out[FILE_PATH_BYTES], const char *state, Error *err) {
    size_t length = strlen(state), suffix = strlen(STATE_SUFFIX);
    if (length < suffix || length >= FILE_PATH_BYTES || strcmp(state + length - suffix, STATE_SUFFIX) != 0)
        return error_set(err, "%.300s: not named NAME%s", state, STATE_SUFFIX);
    snprintf(out, FILE_PATH_BYTES, "%.*s.bin", (int)(length - suffix), state);
    return true;
}

/* Sets *ok to the verdict; false: it could not be tested. */
static bool test_state(const char *state, Precision precision, bool *ok, Error *err) {
    bool done = false;
    char weights[FILE_PATH_BYTES];
    ModelSource source = {0};
    Reference r = {0};
    GPT2 m = {0};
    AdamW optimizer = {0};
    float *host = NULL;
    int32_t *x = NULL, *y = NULL;
    size_t tokens = 0;
    if (!weights_path(weights, state, err)) return false;
    if (!model_source_open(&source, weights, err)) return false;
    GPT2Config *c = &source.config;
    if (!reference_read(&r, state, c, err)) goto out;
    printf("%s: %d layers, %d heads, %d channels, vocabulary %d, window %d, batch %zu x %zu\n", state,
           c->layers, c->heads, c->channels, c->vocab, c->window, r.B, r.T);
    /* an odd number of rows at a time, so that the head works in blocks with a smaller last one */
    if (!gpt2_init(&m, c, r.B, r.T, r.B * r.T < 128 ? 7 : 101, GPT2_TRAINING, err)) goto out;
    if (!model_source_load(&source, &m, err)) goto out;
    AdamWConfig config = {(float)r.rates[1], (float)r.rates[2], (float)r.rates[3], (float)r.rates[4], 0};
    if (!adamw_init(&optimizer, &config, &(AdamWRange){0, m.param_count}, 1, err)) goto out;
    size_t largest = 128 * (size_t)c->vocab_padded;
    for (int t = 0; t < NUM_PARAM_TENSORS; t++) {
        TensorInfo info = gpt2_tensor(c, t);
        if (info.rows * info.cols > largest) largest = info.rows * info.cols;
    }
    tokens = r.B * r.T * sizeof *x;
    host = malloc(largest * sizeof *host);
    x = device_alloc(tokens), y = device_alloc(tokens);
    if (!host || !x || !y) {
        error_set(err, "%s: no memory to compare", state);
        goto out;
    }
    device_write(x, r.x, tokens), device_write(y, r.y, tokens);
    *ok = compare(&m, &optimizer, &r, x, y, tolerance_of(precision, &r), host);
    done = true;
out:
    if (x) device_free(x, tokens);
    if (y) device_free(y, tokens);
    free(host);
    if (optimizer.m) adamw_free(&optimizer);
    if (m.params) gpt2_free(&m);
    reference_free(&r);
    model_source_close(&source);
    return done;
}

/* --- arguments --- */

static bool test_argument(const char *path, Precision precision, bool *ok, Error *err) {
    if (!file_is_directory(path)) {
        bool this = false, done = test_state(path, precision, &this, err);
        *ok &= this;
        return done;
    }
    char pattern[FILE_PATH_BYTES];
    glob_t found;
    if (!file_join(pattern, path, "*" STATE_SUFFIX, err)) return false;
    if (glob(pattern, 0, NULL, &found) != 0)
        return error_set(err, "%s: no NAME%s in it (python3 dev/reference/gpt2.py makes some)", path,
                         STATE_SUFFIX);
    bool done = true;
    for (size_t i = 0; i < found.gl_pathc && done; i++) {
        bool this = false;
        done = test_state(found.gl_pathv[i], precision, &this, err);
        *ok &= this;
    }
    globfree(&found);
    return done;
}

static int usage(const char *what) {
    fprintf(stderr,
            "%s\nusage: test_gpt2 [--precision fp32|bf16] [--threads N] [--isa NAME] [folder | NAME%s] ...\n",
            what, STATE_SUFFIX);
    return EXIT_USAGE;
}

/* The value of --name=value or --name value, or NULL; *i is the last argument used. */
static const char *option(char **argv, int *i, const char *name) {
    size_t length = strlen(name);
    if (strncmp(argv[*i], name, length) != 0) return NULL;
    if (argv[*i][length] == '=') return argv[*i] + length + 1;
    return argv[*i][length] == 0 && argv[*i + 1] ? argv[++*i] : NULL;
}

int main(int argc, char **argv) {
    Error err;
    DeviceConfig device = {0};
    int paths = 0;
    for (int i = 1; i < argc; i++) {
        const char *value;
        if ((value = option(argv, &i, "--precision"))) {
            if (strcmp(value, "fp32") != 0 && strcmp(value, "bf16") != 0)
                return usage("--precision: fp32 or bf16");
            device.precision = !strcmp(value, "bf16") ? PRECISION_BF16 : PRECISION_FP32;
        } else if ((value = option(argv, &i, "--threads"))) {
            char *end;
            long threads = strtol(value, &end, 10);
            if (*end || end == value || threads < 0 || threads > 4096)
                return usage("--threads: a number up to 4096");
            device.threads = (int)threads;
        } else if ((value = option(argv, &i, "--isa"))) {
            device.isa = value;
        } else if (argv[i][0] == '-') {
            return usage("unknown option, or one without its value");
        } else {
            argv[paths++] = argv[i];
        }
    }
    if (!paths) argv[paths++] = "dev/reference";
    if (!device_open(&device, &err)) {
        fprintf(stderr, "error: %s\n", err.text);
        return EXIT_USAGE;
    }
    printf("%s\n", device_describe());
    bool ok = true;
    for (int i = 0; i < paths; i++) {
        if (!test_argument(argv[i], device.precision, &ok, &err)) {
            fflush(stdout);
            fprintf(stderr, "error: %s\n", err.text);
            ok = false;
        }
    }
    printf("overall okay: %d\n", ok);
    return ok ? EXIT_DONE : EXIT_FAILED;
}
