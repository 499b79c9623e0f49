/* test_plot.c: reading of metrics that are torn, empty or NaN; averages, ticks; a plot of bounded size.
 * `test_plot write FOLDER` writes the plots that test_plot.py reads as XML. */
#define _POSIX_C_SOURCE 200809L
#include "run/plot.h"
#include "run/plot_data.h"
#include "test.h"
#include <unistd.h>

static Error err;
static char folder[256];

static const char *in_folder(const char *name) {
    static char paths[64][512];
    static int next;
    char *path = paths[next++ % 64];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

/* A run of n steps with a validation every 10; NaN from step nan_from on (0: never), and a torn last line. */
static const char *make_run(const char *name, int n, int nan_from) {
    const char *path = in_folder(name);
    if (!file_make_directory(path, &err)) return path;
    FILE *f = fopen(in_folder(strcmp(name, "a & <b>") ? "run.jsonl" : "a & <b>/metrics.jsonl"), "w");
    for (int i = 1; f && i <= n; i++) {
        fprintf(f, "{\"step\": %d, \"tokens\": %d, \"seconds\": %g, \"loss\": ", i, 1024 * i, 0.5 * i);
        if (nan_from && i >= nan_from)
            fputs("null", f);
        else
            fprintf(f, "%g", 3 + 8.0 / i);
        if (i % 10 == 0) fprintf(f, ", \"val_loss\": %g", 3.1 + 8.0 / i);
        fputs("}\n", f);
    }
    if (f) fputs("{\"step\": 1000000, \"loss\": 9", f), fclose(f);
    return path;
}

static void test_read(void) {
    PlotRun run;
    const char *path = make_run("a & <b>", 100, 51);
    TEST_CHECK(plot_run_read(&run, path, "tokens", false, &err), "%s", err.text);
    TEST_CHECK(!strcmp(run.name, "a & <b>") && run.train.count == 100 && run.val.count == 10, "%zu %zu",
               run.train.count, run.val.count);
    TEST_CHECK(run.num_nan == 50 && isnan(run.train.y[50]) && run.train.y[49] == 3.16, "%zu", run.num_nan);
    TEST_CHECK(run.train.x[99] == 102400 && fabs(run.best_val - 3.18) < 1e-9, "%g", run.best_val);
    plot_run_free(&run);

    static const struct {
        const char *text, *message;
    } bad[] = {
        {"", "no loss with a step in it"},
        {"\n\n{}\n[]\n3\nrubbish\n{\"step\": 1}\n{\"loss\": 1}\n", "no loss with a step in it"},
        {"{\"step\": \"1\", \"loss\": 1}\n{\"step\": 1, \"loss\": \"x\"}\n", "no loss with a step in it"},
        {"{\"step\": 1, \"loss\": null}\n", "every loss in it is NaN"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        path = in_folder("bad.jsonl");
        TEST_CHECK(file_write(path, bad[i].text, strlen(bad[i].text), &err), "%s", err.text);
        TEST_CHECK(!plot_run_read(&run, path, "step", false, &err) && strstr(err.text, bad[i].message), "%s",
                   err.text);
    }
    TEST_CHECK(!plot_run_read(&run, in_folder("none"), "step", false, &err), "missing");
    const char *text =
        "{\"step\": 2, \"loss\": 2}\n{\"step\": 1, \"loss\": 9}\n{\"step\": 0, \"val_loss\": 5}\n";
    char *large = malloc(200001);
    memset(large, ' ', 200000), large[200000] = 0;
    memcpy(large, text, strlen(text));
    memcpy(large + 199970, "{\"step\": 7, \"loss\": 7}\n", 23); /* the end of a line that is too long */
    TEST_CHECK(file_write(path, large, 200000, &err) && plot_run_read(&run, path, "step", false, &err), "%s",
               err.text);
    TEST_CHECK(run.train.count == 1 && run.val.count == 1 && run.val.x[0] == 0, "%zu", run.train.count);
    plot_run_free(&run);
    TEST_CHECK(plot_run_read(&run, path, "step", true, &err) && !run.val.count, "step 0 has no logarithm");
    plot_run_free(&run);
    free(large);
}

static void test_smooth(void) {
    double y[100], out[100], scratch[100];
    for (int i = 0; i < 100; i++) y[i] = i;
    y[60] = NAN;
    plot_smooth(y, 100, 4, out);
    TEST_CHECK(out[0] == 0 && out[7] == 7 && fabs(out[40] - 40) < 1e-9, "%g", out[40]);
    TEST_CHECK(isnan(out[60]) && fabs(out[62] - (62.0 * 9 - 60) / 8) < 1e-9, "%g", out[62]);
    TEST_CHECK(fabs(out[99] - (95 + 96 + 97 + 98 + 99) / 5.0) < 1e-9, "%g", out[99]);
    plot_smooth(y, 0, 4, out);
    plot_smooth(y, 100, 0, out);
    TEST_CHECK(out[50] == 50, "no averaging");
    TEST_CHECK(plot_quantile(y, 100, 0, scratch) == 0 && plot_quantile(y, 100, 1, scratch) == 99, "ends");
    TEST_CHECK(plot_quantile(y, 60, 0.5, scratch) == 30 && isnan(plot_quantile(y + 60, 1, 0.5, scratch)),
               "middle");
}

static void test_ticks(void) {
    TEST_CHECK(plot_tick_step(10, 8) == 2 && plot_tick_step(8, 8) == 1 && plot_tick_step(1000, 8) == 200,
               "ticks");
    TEST_CHECK(fabs(plot_tick_step(0.3, 8) - 0.05) < 1e-12 && plot_tick_step(0, 8) == 1, "ticks");
    TEST_CHECK(plot_time_step(300, 8) == 60 && plot_time_step(100000, 8) == 21600 &&
                   plot_time_step(4, 8) == 0.5,
               "%g", plot_time_step(100000, 8));
    TEST_CHECK(plot_time_step(86400.0 * 100, 8) == 86400 * 20, "%g", plot_time_step(86400.0 * 100, 8));
}

/* Draws and returns the bytes of the plot, 0 if it failed. */
static size_t draw(const char *run, const char *second, const char *x, bool log_x, double smooth,
                   const char *name) {
    char *runs[] = {(char *)run, (char *)second}, *text = NULL;
    size_t bytes = 0;
    const char *output = in_folder(name);
    PlotConfig config = {runs, second ? 2 : 1, output, x, log_x, smooth};
    if (!plot_write(&config, &err) || !file_read(output, 1 << 20, &text, &bytes, &err)) return 0;
    bool whole = !strncmp(text, "<svg ", 5) && !strcmp(text + bytes - 7, "</svg>\n");
    bool numbers =
        !strstr(text, "inf") && !strstr(text, "-nan") && !strstr(text, "Mnan") && !strstr(text, " nan\"");
    TEST_CHECK(whole && numbers, "%s", name);
    free(text);
    return bytes;
}

static void test_draw(void) {
    const char *a = make_run("a & <b>", 100, 51), *b = make_run("run", 20000, 0);
    b = in_folder("run.jsonl");
    TEST_CHECK(draw(a, NULL, "step", false, 0.02, "1.svg"), "%s", err.text);
    TEST_CHECK(draw(a, b, "tokens", true, 0.02, "2.svg"), "%s", err.text);
    TEST_CHECK(draw(a, b, "seconds", false, 0, "3.svg"), "%s", err.text);
    size_t bytes = draw(b, NULL, "step", false, 1, "4.svg");
    TEST_CHECK(bytes > 1000 && bytes < 100000, "%zu bytes of 20000 steps", bytes);
    TEST_CHECK(!draw(a, in_folder("none"), "step", false, 0, "5.svg") && strstr(err.text, "none"), "%s",
               err.text);
    TEST_CHECK(!file_exists(in_folder("5.svg")), "a plot in spite of an error");

    static const char *const odd[] = {
        "{\"step\": 1, \"loss\": 2.5, \"seconds\": 0}\n", "{\"step\": 0, \"val_loss\": 11, \"seconds\": 0}\n",
        "{\"step\": 5, \"loss\": -1e308, \"seconds\": 1e300}\n{\"step\": 6, \"loss\": 1e308, "
        "\"seconds\": 1e305}\n",
        "{\"step\": 1e17, \"loss\": 3, \"seconds\": 1e-300}\n{\"step\": 2e17, \"loss\": 3, "
        "\"seconds\": 1e-299}\n"};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        const char *path = in_folder("odd.jsonl");
        TEST_CHECK(file_write(path, odd[i], strlen(odd[i]), &err), "%s", err.text);
        TEST_CHECK(draw(path, NULL, "step", false, 0.02, "6.svg"), "%zu: %s", i, err.text);
        TEST_CHECK(draw(path, NULL, "seconds", false, 0.02, "7.svg"), "%zu: %s", i, err.text);
        if (i >= 2) TEST_CHECK(draw(path, NULL, "seconds", true, 0.02, "8.svg"), "%zu: %s", i, err.text);
    }
    char *many[PLOT_RUNS_MAX + 1];
    for (int i = 0; i <= PLOT_RUNS_MAX; i++) many[i] = (char *)b;
    PlotConfig config = {many, PLOT_RUNS_MAX + 1, in_folder("9.svg"), "step", false, 0};
    TEST_CHECK(!plot_write(&config, &err) && strstr(err.text, "17 runs"), "%s", err.text);
    config.num_runs = PLOT_RUNS_MAX;
    TEST_CHECK(plot_write(&config, &err), "%s", err.text);
}

int main(int argc, char **argv) {
    bool keep = argc == 3 && !strcmp(argv[1], "write");
    const char *tmp = getenv("TMPDIR");
    char command[300];
    snprintf(folder, sizeof folder, "%s/test_plot.XXXXXX", tmp ? tmp : "/tmp");
    if (keep)
        snprintf(folder, sizeof folder, "%s", argv[2]);
    else if (!mkdtemp(folder))
        return 1;
    test_read();
    test_smooth();
    test_ticks();
    test_draw();
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    if (!keep && system(command) != 0) return 1;
    return test_end("plot");
}
