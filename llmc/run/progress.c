/* progress.c: see progress.h. */
#define _POSIX_C_SOURCE 200809L
#include "run/progress.h"
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RESET "\033[0m"
#define DIM   "\033[2m"
#define BOLD  "\033[1m"
#define RED   "\033[1;31m"
#define GREEN "\033[32m"
#define BLUE  "\033[34m"

/* ---- numbers for people ---- */

char *progress_duration(double seconds, char out[PROGRESS_NUMBER_BYTES]) {
    if (!(seconds >= 0) || seconds > 1e10) {
        snprintf(out, PROGRESS_NUMBER_BYTES, "?");
        return out;
    }
    long long s = (long long)(seconds + 0.5);
    if (s < 60)
        snprintf(out, PROGRESS_NUMBER_BYTES, "%llds", s);
    else if (s < 3600)
        snprintf(out, PROGRESS_NUMBER_BYTES, "%lldm%02llds", s / 60, s % 60);
    else if (s < 86400)
        snprintf(out, PROGRESS_NUMBER_BYTES, "%lldh%02lldm", s / 3600, s / 60 % 60);
    else
        snprintf(out, PROGRESS_NUMBER_BYTES, "%lldd%02lldh", s / 86400, s / 3600 % 24);
    return out;
}

/* Three figures. */
static int figures(double value) {
    return value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
}

char *progress_milliseconds(double seconds, char out[PROGRESS_NUMBER_BYTES]) {
    double ms = seconds * 1e3;
    if (!isfinite(ms) || ms < 0)
        snprintf(out, PROGRESS_NUMBER_BYTES, "? ms");
    else if (ms < 9999.5)
        snprintf(out, PROGRESS_NUMBER_BYTES, "%.*f ms", figures(ms), ms);
    else
        snprintf(out, PROGRESS_NUMBER_BYTES, "%.*f s", fmin(seconds, 1e9) < 99.95 ? 1 : 0,
                 fmin(seconds, 1e9));
    return out;
}

char *progress_count(double count, char out[PROGRESS_NUMBER_BYTES]) {
    static const char *const prefixes[] = {"", "k", "M", "G", "T", "P"};
    int i = 0;
    if (!isfinite(count) || count < 0 || count > 1e18) {
        snprintf(out, PROGRESS_NUMBER_BYTES, "?");
        return out;
    }
    while (count >= 999.5 && i < 5) count /= 1000, i++;
    snprintf(out, PROGRESS_NUMBER_BYTES, "%.*f%s", i && count < 99.95 ? 1 : 0, count, prefixes[i]);
    return out;
}

char *progress_bytes(uint64_t bytes, char out[PROGRESS_NUMBER_BYTES]) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
    double value = (double)bytes;
    int i = 0;
    while (value >= 999.5 && i < 6) value /= 1000, i++;
    snprintf(out, PROGRESS_NUMBER_BYTES, "%.*f %s", i && value < 99.95 ? 1 : 0, value, units[i]);
    return out;
}

/* ---- the line ---- */

typedef struct {
    char *out;
    size_t size, used;
    bool color;
} Line;

/* Appends; `style` is an escape sequence or NULL. */
__attribute__((format(printf, 3, 4))) static void put(Line *line, const char *style, const char *format,
                                                      ...) {
    char text[96];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    bool styled = style && line->color;
    int n = snprintf(line->out + line->used, line->size - line->used, "%s%s%s", styled ? style : "", text,
                     styled ? RESET : "");
    line->used += (size_t)n < line->size - line->used ? (size_t)n : line->size - line->used - 1;
}

static void put_loss(Line *line, const char *label, const char *style, double loss) {
    put(line, DIM, "  %s", label);
    if (!isfinite(loss))
        put(line, RED, " %6s", isnan(loss) ? "nan" : "inf");
    else
        put(line, style, " %6.4f", loss);
}

size_t progress_format(const ProgressStep *s, double val, double seconds_left, bool color, char *out,
                       size_t size) {
    char number[PROGRESS_NUMBER_BYTES];
    Line line = {out, size, 0, color};
    int width = snprintf(NULL, 0, "%lld", (long long)s->steps);
    put(&line, DIM, "step");
    put(&line, BOLD, " %*lld/%lld", width, (long long)s->step, (long long)s->steps);
    put(&line, NULL, "  %5.1f%%", s->steps > 0 ? 100.0 * (double)s->step / (double)s->steps : 100.0);
    if (s->has_loss) put_loss(&line, "loss", BOLD, s->loss);
    if (s->has_val || isfinite(val))
        put_loss(&line, "val", s->has_val ? GREEN : DIM, s->has_val ? s->val_loss : val);
    if (s->has_loss) {
        put(&line, DIM, "  norm");
        put(&line, isfinite(s->norm) ? NULL : RED, " %4.2f", s->norm);
        put(&line, DIM, "  lr");
        put(&line, NULL, " %.1e", s->learning_rate);
        put(&line, NULL, "  %s", progress_milliseconds(s->step_seconds, number));
        put(&line, NULL, "  %s tok/s", progress_count(s->tokens_per_second, number));
        if (isfinite(s->mfu)) put(&line, NULL, "  mfu %.1f%%", 100 * s->mfu);
    }
    if (s->memory_bytes) put(&line, NULL, "  mem %s", progress_bytes(s->memory_bytes, number));
    if (isfinite(seconds_left)) put(&line, BLUE, "  eta %s", progress_duration(seconds_left, number));
    if (s->skipped) put(&line, RED, "  skipped (outlier)");
    return line.used;
}

/* ---- the sparkline ---- */

void progress_spark(const double *values, int n, char *out, size_t size) {
    static const char *const blocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    double low = INFINITY, high = -INFINITY;
    size_t used = 0;
    out[0] = 0;
    for (int i = 0; i < n; i++)
        if (isfinite(values[i])) low = fmin(low, values[i]), high = fmax(high, values[i]);
    for (int i = 0; i < n; i++) {
        double height = high > low ? (values[i] - low) / (high - low) : 0;
        const char *block = isfinite(values[i]) ? blocks[(int)(height * 7.999)] : "!";
        if (used + strlen(block) >= size) break;
        used += (size_t)snprintf(out + used, size - used, "%s", block);
    }
}

static void add_to_buckets(Progress *p, double loss) {
    p->bucket_sum += loss;
    if (++p->in_bucket < p->bucket_steps) return;
    if (p->num_buckets == PROGRESS_BUCKETS) {
        for (int i = 0; i < PROGRESS_BUCKETS / 2; i++)
            p->bucket[i] = 0.5 * (p->bucket[2 * i] + p->bucket[2 * i + 1]);
        p->num_buckets /= 2;
        p->bucket_steps *= 2;
        if (p->in_bucket < p->bucket_steps) return; /* the open one now needs as many again */
    }
    p->bucket[p->num_buckets++] = p->bucket_sum / p->in_bucket;
    p->bucket_sum = 0;
    p->in_bucket = 0;
}

void progress_sparkline(Progress *p) {
    char spark[4 * PROGRESS_BUCKETS + 1];
    if (!p->color || !p->sparkline_due || p->num_buckets < 2) return;
    p->sparkline_due = false;
    progress_spark(p->bucket, p->num_buckets, spark, sizeof spark);
    fprintf(p->out, DIM "loss " RESET "%.4f " GREEN "%s" RESET " %.4f\n", p->bucket[0], spark,
            p->bucket[p->num_buckets - 1]);
    fflush(p->out);
}

void progress_open(Progress *p, FILE *out, const char *color) {
    memset(p, 0, sizeof *p);
    const char *term = getenv("TERM"), *no_color = getenv("NO_COLOR");
    bool terminal = isatty(fileno(out)) && term && strcmp(term, "dumb") && !(no_color && *no_color);
    p->out = out;
    p->color = !strcmp(color, "always") || (strcmp(color, "never") && terminal);
    p->last_val = NAN;
    p->bucket_steps = 1;
}

void progress_step(Progress *p, const ProgressStep *step, bool print) {
    char line[640];
    if (step->has_loss) {
        bool first = p->smoothed_seconds <= 0 || !isfinite(p->smoothed_seconds);
        p->smoothed_seconds =
            first ? step->step_seconds : 0.9 * p->smoothed_seconds + 0.1 * step->step_seconds;
        add_to_buckets(p, step->loss);
        p->sparkline_due = true;
    }
    if (step->has_val) p->last_val = step->val_loss;
    if (!print) return;
    double left = step->has_loss ? p->smoothed_seconds * (double)(step->steps - step->step) : NAN;
    progress_format(step, p->last_val, left, p->color, line, sizeof line);
    fprintf(p->out, "%s\n", line);
    if (step->has_val) progress_sparkline(p);
    fflush(p->out);
}
