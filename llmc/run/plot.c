/* plot.c: see plot.h. One Plot holds the scales; every function below draws one thing into plot->out. */
#define _POSIX_C_SOURCE 200809L
#include "run/plot.h"
#include "base/check.h"
#include "base/file.h"
#include "base/log.h"
#include "run/plot_data.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 960, HEIGHT = 540, LEFT = 64, RIGHT = 24, TOP = 64, BOTTOM = 56 };
enum { COLUMNS = WIDTH - LEFT - RIGHT, ROWS = HEIGHT - TOP - BOTTOM, NUM_COLORS = 8, LEGEND_COLUMN = 68 };

typedef struct {
    const PlotConfig *config;
    FILE *out;
    PlotRun runs[PLOT_RUNS_MAX];
    double *smooth[PLOT_RUNS_MAX]; /* of each run's train curve */
    double x0, x1, y0, y1;         /* ends of the axes; x as log10 if config->log_x */
} Plot;

/* Eight hues that stay apart for colour-blind readers, each in a step for light and one for dark ground. */
static const char *const colors[NUM_COLORS][2] = {
    {"#2a78d6", "#5598e7"}, {"#eb6834", "#f2875b"}, {"#1baf7a", "#3cc795"}, {"#c98500", "#eda100"},
    {"#d6558c", "#e87ba4"}, {"#008300", "#35a835"}, {"#4a3aa7", "#9085e9"}, {"#d03b3b", "#e66767"}};

/* ---- scales ---- */

static double scale_x(const Plot *p, double x) {
    double at = p->config->log_x ? log10(x) : x;
    return LEFT + COLUMNS * (at - p->x0) / (p->x1 - p->x0);
}

static double scale_y(const Plot *p, double y) {
    double at = TOP + ROWS * (p->y1 - y) / (p->y1 - p->y0);
    return fmin(fmax(at, TOP - 1000), TOP + ROWS + 1000); /* what is far outside is clipped anyway */
}

static void widen(double value, double *low, double *high) {
    if (isnan(value)) return;
    if (!(*low <= value)) *low = value;
    if (!(*high >= value)) *high = value;
}

/* The y axis holds the averaged and the validation curves, and all but the outermost hundredth of the raw one. */
static bool find_scales(Plot *p, Error *err) {
    double x0 = NAN, x1 = NAN, y0 = NAN, y1 = NAN;
    for (int r = 0; r < p->config->num_runs; r++) {
        const PlotCurve *curves[] = {&p->runs[r].train, &p->runs[r].val};
        for (int c = 0; c < 2; c++) {
            if (!curves[c]->count) continue;
            widen(curves[c]->x[0], &x0, &x1);
            widen(curves[c]->x[curves[c]->count - 1], &x0, &x1);
        }
        const PlotCurve *train = curves[0], *val = curves[1];
        double *scratch = malloc((train->count + 1) * sizeof *scratch);
        if (!scratch) return error_set(err, "no memory for %zu points", train->count);
        widen(plot_quantile(train->y, train->count, 0.01, scratch), &y0, &y1);
        widen(plot_quantile(train->y, train->count, 0.99, scratch), &y0, &y1);
        free(scratch);
        for (size_t i = 0; i < train->count; i++) widen(p->smooth[r][i], &y0, &y1);
        for (size_t i = 0; i < val->count; i++) widen(val->y[i], &y0, &y1);
    }
    CHECK(!isnan(x0) && !isnan(y0));
    if (!p->config->log_x && x0 > 0 && x0 < 0.1 * x1) x0 = 0;
    p->x0 = p->config->log_x ? log10(x0) : x0;
    p->x1 = p->config->log_x ? log10(x1) : x1;
    if (!(p->x1 - p->x0 > 1e-9 * fabs(p->x1))) p->x0 -= 0.5, p->x1 += 0.5;
    double margin = y1 - y0 > 1e-9 * fabs(y1) ? 0.05 * (y1 - y0) : 0.5;
    p->y0 = y0 - margin, p->y1 = y1 + margin;
    return true;
}

/* ---- frame ---- */

static void draw_text(Plot *p, double x, double y, const char *style, const char *text) {
    fprintf(p->out, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">", x, y, style);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '&' || c == '<' || c == '>')
            fputs(c == '&' ? "&amp;" : c == '<' ? "&lt;" : "&gt;", p->out);
        else
            fputc(c < 0x20 || c > 0x7e ? '?' : c, p->out);
    }
    fputs("</text>\n", p->out);
}

static void draw_head(Plot *p) {
    fprintf(
        p->out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "
        "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\">\n<style>\n"
        ".ground { fill: #fcfcfb } .grid { stroke: #e1e0d9 } .axis { stroke: #a5a49c }\n"
        "text { fill: #52514e; font-size: 13px; font-variant-numeric: tabular-nums }\n"
        ".title { fill: #0b0b0b; font-size: 18px; font-weight: 600 } .strong { fill: #0b0b0b }\n"
        ".mid { text-anchor: middle } .end { text-anchor: end } .nan { stroke: #d03b3b; stroke-width: 2 }\n"
        ".raw { fill: none; stroke-width: 1; stroke-opacity: 0.32; stroke-linejoin: round }\n"
        ".bold { fill: none; stroke-width: 2.25; stroke-linejoin: round; stroke-linecap: round }\n"
        ".val { fill: none; stroke-width: 1.25; stroke-dasharray: 2 3 } .dot { stroke: #fcfcfb; "
        "stroke-width: 1.5 }\n",
        WIDTH, HEIGHT, WIDTH, HEIGHT);
    for (int dark = 0; dark < 2; dark++) {
        if (dark)
            fputs(
                "@media (prefers-color-scheme: dark) {\n.ground { fill: #1a1a19 } .grid { stroke: #32322f } "
                ".axis { stroke: #6b6a64 } .dot { stroke: #1a1a19 }\n"
                "text { fill: #c3c2b7 } .title, .strong { fill: #ffffff }\n",
                p->out);
        for (int c = 0; c < NUM_COLORS && c < p->config->num_runs; c++)
            fprintf(p->out, ".s%d { stroke: %s } .f%d { fill: %s }\n", c, colors[c][dark], c,
                    colors[c][dark]);
        if (dark) fputs("}\n", p->out);
    }
    fprintf(p->out,
            "</style>\n<rect width=\"%d\" height=\"%d\" class=\"ground\"/>\n"
            "<clipPath id=\"area\"><rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/></clipPath>\n",
            WIDTH, HEIGHT, LEFT - 6, TOP, COLUMNS + 12, ROWS);
    draw_text(p, LEFT, 28, "title", "Loss");
    size_t num_nan = 0;
    for (int r = 0; r < p->config->num_runs; r++) num_nan += p->runs[r].num_nan;
    draw_text(p, LEFT, 48, "",
              num_nan ? "nats per token; a red cross where it was not a number" : "nats per token");
}

/* A tick label: seconds in the largest unit that keeps `step` whole, other numbers with k, M, G. */
static void tick_label(const Plot *p, double value, double step, char label[32]) {
    static const struct {
        double seconds;
        const char *name;
    } units[] = {{86400, "d"}, {3600, "h"}, {60, "m"}, {1, "s"}};
    if (!strcmp(p->config->x, "seconds") && value > 0) {
        int u = 0;
        while (u < 3 && fmod(step, units[u].seconds) > 0) u++;
        snprintf(label, 32, "%.4g %s", value / units[u].seconds, units[u].name);
    } else if (value >= 1000) {
        double unit = value >= 1e9 ? 1e9 : value >= 1e6 ? 1e6 : 1e3;
        snprintf(label, 32, "%.4g%s", value / unit, value >= 1e9 ? "G" : value >= 1e6 ? "M" : "k");
    } else {
        snprintf(label, 32, "%.4g", value);
    }
}

static void draw_x_tick(Plot *p, double value, double step) {
    char label[32];
    double x = scale_x(p, value);
    tick_label(p, value, step, label);
    fprintf(p->out, "<path d=\"M%.1f %dv%d\" class=\"grid\"/>\n", x, TOP, ROWS);
    draw_text(p, x, TOP + ROWS + 20, "mid", label);
}

static void draw_log_ticks(Plot *p) {
    int fine = p->x1 - p->x0 <= 2.5 ? 3 : 1; /* few decades: also at 2 and 5 */
    for (int decade = (int)floor(p->x0); decade <= (int)ceil(p->x1); decade++)
        for (int i = 0; i < fine; i++) {
            double value = pow(10, decade) * (i == 0 ? 1 : i == 1 ? 2 : 5), at = log10(value);
            if (at >= p->x0 - 1e-9 && at <= p->x1 + 1e-9) draw_x_tick(p, value, value);
        }
}

static void draw_axes(Plot *p) {
    char label[32];
    double step = plot_tick_step(p->y1 - p->y0, 8);
    int decimals = step >= 1 ? 0 : (int)ceil(-log10(step) - 1e-9);
    for (double i = ceil(p->y0 / step); i * step <= p->y1 && i < ceil(p->y0 / step) + 100; i++) {
        double y = scale_y(p, i * step);
        fprintf(p->out, "<path d=\"M%d %.1fh%d\" class=\"grid\"/>\n", LEFT, y, COLUMNS);
        snprintf(label, sizeof label, "%.*f", decimals, i * step + 0.0);
        draw_text(p, LEFT - 10, y + 4.5, "end", label);
    }
    bool seconds = !strcmp(p->config->x, "seconds");
    step = seconds ? plot_time_step(p->x1 - p->x0, 8) : plot_tick_step(p->x1 - p->x0, 8);
    if (!seconds && step < 1) step = 1; /* there is no half step */
    if (p->config->log_x)
        draw_log_ticks(p);
    else
        for (double i = ceil(p->x0 / step); i * step <= p->x1 && i < ceil(p->x0 / step) + 100; i++)
            draw_x_tick(p, i * step, step);
    fprintf(p->out, "<path d=\"M%d %dh%d\" class=\"axis\"/>\n", LEFT, TOP + ROWS, COLUMNS);
    const char *name = seconds ? "training time" : !strcmp(p->config->x, "tokens") ? "tokens" : "step";
    draw_text(p, LEFT + COLUMNS / 2.0, HEIGHT - 14, "mid", name);
}

/* ---- curves ---- */

/* A line through n points, with a gap at NaN. Where several share a column of pixels it goes through their mean, or
 * with `spread` through the least and the largest of them. */
static void draw_line(Plot *p, const double *x, const double *y, size_t n, const char *style, int color,
                      bool spread) {
    bool down = false; /* is the pen on the paper? */
    fprintf(p->out, "<path class=\"%s s%d\" d=\"", style, color);
    for (size_t i = 0, end; i < n; i = end) {
        double column = floor(scale_x(p, x[i])), low = y[i], high = y[i], sum = y[i];
        end = i + 1;
        if (isnan(y[i])) {
            down = false;
            continue;
        }
        for (; end < n && !isnan(y[end]) && floor(scale_x(p, x[end])) == column; end++)
            low = fmin(low, y[end]), high = fmax(high, y[end]), sum += y[end];
        double middle = 0.5 * (scale_x(p, x[i]) + scale_x(p, x[end - 1]));
        bool rises = y[end - 1] > y[i], stroke = spread && end - i > 1;
        double at = !stroke ? sum / (double)(end - i) : rises ? low : high;
        fprintf(p->out, "%c%.1f %.1f", down ? 'L' : 'M', middle, scale_y(p, at));
        if (stroke) fprintf(p->out, "V%.1f", scale_y(p, rises ? high : low));
        if (!down && (end == n || isnan(y[end])) && !stroke) fputs("h0.1", p->out); /* alone: a dot */
        down = true;
    }
    fputs("\"/>\n", p->out);
}

static void draw_dot(Plot *p, double x, double y, int color) {
    fprintf(
        p->out,
        "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" class=\"dot f%d\"><title>%s %.10g: %.4f</title></circle>\n",
        scale_x(p, x), scale_y(p, y), color, p->config->x, x, y);
}

/* A cross at the upper edge where a stretch of NaN begins; at most one a column of pixels. */
static void draw_nans(Plot *p, const PlotCurve *c) {
    double last = -1;
    for (size_t i = 0; i < c->count; i++) {
        double x = floor(scale_x(p, c->x[i]));
        if (!isnan(c->y[i]) || (i && isnan(c->y[i - 1])) || x == last) continue;
        fprintf(p->out,
                "<path class=\"nan\" d=\"M%.1f %dl8 8m0 -8l-8 8\"><title>not a number from %s "
                "%.10g</title></path>\n",
                x - 4, TOP + 4, p->config->x, c->x[i]);
        last = x;
    }
}

/* Points a few pixels apart; always the last one. */
static void draw_val(Plot *p, const PlotCurve *c, int color) {
    double last = -INFINITY;
    draw_line(p, c->x, c->y, c->count, "val", color, false);
    for (size_t i = 0; i < c->count; i++) {
        double x = scale_x(p, c->x[i]);
        if (isnan(c->y[i]) || (x - last < 14 && i + 1 < c->count)) continue;
        draw_dot(p, c->x[i], c->y[i], color);
        last = x;
    }
}

static double last_finite(const double *y, size_t n) {
    while (n && isnan(y[n - 1])) n--;
    return n ? y[n - 1] : NAN;
}

static void draw_legend_row(Plot *p, int r, double left, double right, double y) {
    const PlotRun *run = &p->runs[r];
    char name[48], note[64];
    double train = last_finite(p->smooth[r], run->train.count), val = last_finite(run->val.y, run->val.count);
    snprintf(name, sizeof name, "%.36s%s", run->name, strlen(run->name) > 36 ? "..." : "");
    fprintf(p->out, "<path class=\"bold s%d\" d=\"M%.1f %.1fh24\"/>", r % NUM_COLORS, left, y - 4);
    fprintf(p->out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" class=\"dot f%d\"/>\n", left + 12, y - 4,
            r % NUM_COLORS);
    draw_text(p, left + 34, y, "strong", name);
    double const values[] = {train, val, run->best_val};
    for (int i = 0; i < 3; i++) {
        snprintf(note, sizeof note, isnan(values[i]) ? "-" : "%.4f", values[i]);
        draw_text(p, right - LEGEND_COLUMN * (2 - i), y, "strong end", note);
    }
}

/* A table in the upper right corner, which falling curves leave free. */
static void draw_legend(Plot *p) {
    static const char *const titles[] = {"train", "val", "best val"};
    double right = LEFT + COLUMNS - 14, y = TOP + 24;
    size_t longest = 4;
    for (int r = 0; r < p->config->num_runs; r++) {
        size_t n = strlen(p->runs[r].name);
        if (n > longest) longest = n < 39 ? n : 39;
    }
    double left = right - 3 * LEGEND_COLUMN - 34 - 8.0 * (double)longest;
    fprintf(p->out,
            "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" rx=\"4\" class=\"ground\" "
            "opacity=\"0.85\"/>\n",
            left - 12, TOP + 6, right - left + 24, 20 * p->config->num_runs + 28);
    for (int i = 0; i < 3; i++) draw_text(p, right - LEGEND_COLUMN * (2 - i), y, "end", titles[i]);
    for (int r = 0; r < p->config->num_runs; r++) draw_legend_row(p, r, left, right, y + 20 * (r + 1));
}

static void draw(Plot *p) {
    draw_head(p);
    draw_axes(p);
    fputs("<g clip-path=\"url(#area)\">\n", p->out);
    bool smooth = p->config->smooth > 0;
    for (int r = 0; r < p->config->num_runs; r++) {
        const PlotCurve *c = &p->runs[r].train;
        draw_line(p, c->x, c->y, c->count, smooth ? "raw" : "bold", r % NUM_COLORS, true);
    }
    for (int r = 0; r < p->config->num_runs; r++) {
        const PlotRun *run = &p->runs[r];
        if (smooth) draw_line(p, run->train.x, p->smooth[r], run->train.count, "bold", r % NUM_COLORS, false);
        if (run->train.count == 1) draw_dot(p, run->train.x[0], run->train.y[0], r % NUM_COLORS);
    }
    for (int r = 0; r < p->config->num_runs; r++) {
        draw_val(p, &p->runs[r].val, r % NUM_COLORS);
        draw_nans(p, &p->runs[r].train);
        draw_nans(p, &p->runs[r].val);
    }
    fputs("</g>\n", p->out);
    draw_legend(p);
    fputs("</svg>\n", p->out);
}

/* ---- all of it ---- */

static bool read_runs(Plot *p, Error *err) {
    const PlotConfig *c = p->config;
    if (c->num_runs > PLOT_RUNS_MAX)
        return error_set(err, "plot: %d runs are more than the %d that one plot can show", c->num_runs,
                         PLOT_RUNS_MAX);
    for (int r = 0; r < c->num_runs; r++) {
        if (!plot_run_read(&p->runs[r], c->runs[r], c->x, c->log_x, err)) return false;
        size_t n = p->runs[r].train.count;
        if (!(p->smooth[r] = malloc((n + 1) * sizeof *p->smooth[r])))
            return error_set(err, "%s: no memory for %zu points", c->runs[r], n);
        plot_smooth(p->runs[r].train.y, n, (size_t)(0.5 * c->smooth * (double)n), p->smooth[r]);
    }
    return true;
}

bool plot_write(const PlotConfig *config, Error *err) {
    CHECK(config->num_runs >= 1);
    bool ok = false;
    char *text = NULL;
    size_t bytes = 0;
    Plot *p = calloc(1, sizeof *p);
    if (!p) return error_set(err, "plot: no memory");
    p->config = config;
    if (!read_runs(p, err) || !find_scales(p, err)) goto out;
    p->out = open_memstream(&text, &bytes);
    if (!p->out) {
        error_set_errno(err, "plot: no memory");
        goto out;
    }
    draw(p);
    bool drawn = !ferror(p->out);
    if (fclose(p->out) != 0 || !drawn) {
        error_set(err, "plot: no memory for the picture");
        goto out;
    }
    if (strcmp(config->output, "-"))
        ok = file_write(config->output, text, bytes, err);
    else
        ok = (fwrite(text, 1, bytes, stdout) == bytes && fflush(stdout) == 0) ||
             file_error(err, "stdout", "write");
out:
    for (int r = 0; r < PLOT_RUNS_MAX; r++) {
        plot_run_free(&p->runs[r]);
        free(p->smooth[r]);
    }
    free(text);
    free(p);
    return ok;
}

bool plot_run(const Options *o, Error *err) {
    const PlotConfig config = {o->arguments, o->num_arguments, o->output, o->x, o->log_x, o->smooth};
    if (!plot_write(&config, err)) return false;
    if (strcmp(o->output, "-")) log_info("wrote %s", o->output);
    return true;
}
