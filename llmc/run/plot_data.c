/* plot_data.c: see plot_data.h. */
#define _POSIX_C_SOURCE 200809L
#include "run/plot_data.h"
#include "base/json.h"
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_BYTES_MAX = 1 << 16 };

static bool curve_add(PlotCurve *c, double x, double y) {
    if (c->count && x < c->x[c->count - 1]) return true; /* written by something else: passed over */
    if (c->count == c->size) {
        size_t size = c->size ? 2 * c->size : 1024;
        double *grown_x = size < SIZE_MAX / 16 ? realloc(c->x, size * sizeof *c->x) : NULL;
        if (grown_x) c->x = grown_x;
        double *grown_y = grown_x ? realloc(c->y, size * sizeof *c->y) : NULL;
        if (!grown_y) return false;
        c->y = grown_y, c->size = size;
    }
    c->x[c->count] = x;
    c->y[c->count++] = y;
    return true;
}

/* Adds node's number, NaN for null; false: no memory. */
static bool add_value(PlotRun *run, PlotCurve *curve, double x, const JsonNode *node) {
    if (!node || (node->type != JSON_NUMBER && node->type != JSON_NULL)) return true;
    double y = node->type == JSON_NUMBER && isfinite(node->number) ? node->number : NAN;
    if (isnan(y)) run->num_nan++;
    if (curve == &run->val && !isnan(y) && !(run->best_val <= y)) run->best_val = y;
    return curve_add(curve, x, y);
}

static bool read_line(PlotRun *run, JsonDocument *d, const char *line, size_t bytes, const char *x_name,
                      bool positive_only) {
    Error ignored;
    if (!json_parse(d, line, bytes, &ignored)) return true;
    const JsonNode *root = d->nodes, *x = json_get(d, root, x_name);
    if (!x || x->type != JSON_NUMBER || !isfinite(x->number) || (positive_only && x->number <= 0))
        return true;
    return add_value(run, &run->train, x->number, json_get(d, root, "loss")) &&
           add_value(run, &run->val, x->number, json_get(d, root, "val_loss"));
}

static void name_of(const char *path, char out[256]) {
    size_t end = strlen(path);
    const char *suffix = "/metrics.jsonl";
    if (end > strlen(suffix) && !strcmp(path + end - strlen(suffix), suffix)) end -= strlen(suffix);
    while (end > 1 && path[end - 1] == '/') end--;
    size_t start = end;
    while (start > 0 && path[start - 1] != '/') start--;
    size_t n = end - start < 255 ? end - start : 255;
    memcpy(out, path + start, n);
    out[n] = 0;
}

static bool has_finite(const PlotCurve *c) {
    for (size_t i = 0; i < c->count; i++)
        if (!isnan(c->y[i])) return true;
    return false;
}

bool plot_run_read(PlotRun *run, const char *path, const char *x_name, bool positive_only, Error *err) {
    char file[FILE_PATH_BYTES];
    JsonDocument document = {0};
    bool ok = false, whole = true;
    memset(run, 0, sizeof *run);
    run->best_val = NAN;
    name_of(path, run->name);
    bool folder = file_is_directory(path);
    if (!file_join(file, folder ? path : "", folder ? "metrics.jsonl" : path, err)) return false;
    FILE *in = fopen(file, "r");
    char *line = malloc(LINE_BYTES_MAX);
    if (!in || !line) {
        file_error(err, file, "open");
        goto out;
    }
    while (fgets(line, LINE_BYTES_MAX, in)) {
        size_t bytes = strlen(line);
        bool ends = bytes && line[bytes - 1] == '\n';
        if (whole && !read_line(run, &document, line, bytes, x_name, positive_only)) {
            error_set(err, "%s: no memory for its curves", file);
            goto out;
        }
        whole = ends; /* the rest of a line that is too long is no line */
    }
    if (ferror(in)) {
        file_error(err, file, "read");
        goto out;
    }
    if (!has_finite(&run->train) && !has_finite(&run->val)) {
        if (run->num_nan)
            error_set(err, "%s: every loss in it is NaN, there is nothing to draw", file);
        else
            error_set(err, "%s: no loss with a %s in it (has the run done a step?)", file, x_name);
        goto out;
    }
    ok = true;
out:
    if (in) fclose(in);
    free(line);
    json_free(&document);
    if (!ok) plot_run_free(run);
    return ok;
}

void plot_run_free(PlotRun *run) {
    free(run->train.x);
    free(run->train.y);
    free(run->val.x);
    free(run->val.y);
    memset(run, 0, sizeof *run);
}

void plot_smooth(const double *y, size_t n, size_t radius, double *out) {
    double sum = 0; /* of y[first] to y[last - 1]; its drift is far below a pixel */
    size_t first = 0, last = 0, finite = 0;
    for (size_t i = 0; i < n; i++) {
        size_t r = i / 8 < radius ? i / 8 : radius, right = n - 1 - i < r ? n - 1 - i : r;
        for (; last < i + right + 1; last++)
            if (!isnan(y[last])) sum += y[last], finite++;
        for (; first < i - r; first++)
            if (!isnan(y[first])) sum -= y[first], finite--;
        out[i] = isnan(y[i]) ? NAN : r == 0 ? y[i] : sum / (double)finite;
    }
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double plot_quantile(const double *y, size_t n, double q, double *scratch) {
    size_t finite = 0;
    for (size_t i = 0; i < n; i++)
        if (!isnan(y[i])) scratch[finite++] = y[i];
    if (!finite) return NAN;
    qsort(scratch, finite, sizeof *scratch, compare);
    return scratch[(size_t)(q * (double)(finite - 1) + 0.5)];
}

double plot_tick_step(double span, int max_ticks) {
    double raw = span / max_ticks;
    if (!(raw > 0) || !isfinite(raw)) return 1;
    double power = pow(10, floor(log10(raw)));
    for (int i = 0; i < 3; i++) {
        double step = power * (i == 0 ? 1 : i == 1 ? 2 : 5);
        if (step >= raw * (1 - 1e-9)) return step;
    }
    return power * 10;
}

double plot_time_step(double span, int max_ticks) {
    static const int steps[] = {1,   2,   5,    10,   15,   30,    60,    120,   300,
                                600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400};
    if (span < max_ticks) return plot_tick_step(span, max_ticks);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        if (span / steps[i] <= max_ticks) return steps[i];
    return 86400 * plot_tick_step(span / 86400, max_ticks);
}
