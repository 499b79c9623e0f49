/* test_metrics.c: metrics.jsonl through stops, tears and resumes; the progress line; numbers for people.
 * `test_metrics write FOLDER` writes the run that test_metrics.py reads with TensorBoard's own reader. */
#define _POSIX_C_SOURCE 200809L
#include "base/crc32c.h"
#include "base/json.h"
#include "run/event_file.h"
#include "run/metrics.h"
#include "test.h"
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

static Error err;

static ProgressStep step_at(int64_t i) {
    ProgressStep s = {.step = i, .steps = 1000, .tokens = 1024 * i, .has_loss = i > 0, .has_val = i % 5 == 0};
    s.loss = 10.0 / (double)(i + 1), s.val_loss = s.loss + 0.125;
    s.norm = 0.5 + 0.01 * (double)i, s.learning_rate = 6e-4;
    s.step_seconds = 0.31, s.seconds = 0.31 * (double)i, s.tokens_per_second = 3303.2, s.mfu = 0.712;
    s.memory_bytes = 1234567890, s.skipped = i == 7;
    return s;
}

static bool write_steps(const char *folder, int64_t resumed, int64_t last) {
    Metrics m;
    if (!metrics_open(&m, folder, resumed, &err)) return false;
    bool ok = true;
    for (int64_t i = resumed ? resumed + 1 : 0; ok && i <= last; i++) {
        ProgressStep s = step_at(i);
        ok = metrics_step(&m, &s, &err);
    }
    ok = ok && metrics_sync(&m, &err);
    metrics_close(&m);
    metrics_close(&m);
    return ok;
}

/* Checks that the file holds exactly steps 0 to last, each with its values. */
static void check_file(const char *path, int64_t last) {
    char *text = NULL;
    size_t bytes = 0;
    JsonDocument d = {0};
    int64_t step = 0;
    if (!file_read(path, 1 << 20, &text, &bytes, &err)) TEST_CHECK(false, "%s", err.text);
    for (char *p = text; p && p < text + bytes; step++) {
        size_t n = strcspn(p, "\n");
        TEST_CHECK(json_parse(&d, p, n, &err), "%s", err.text);
        ProgressStep s = step_at(step);
        const JsonNode *root = d.nodes, *at = json_get(&d, root, "step"), *loss = json_get(&d, root, "loss");
        const JsonNode *val = json_get(&d, root, "val_loss"), *tokens = json_get(&d, root, "tokens");
        TEST_CHECK(at && at->integer == step, "line %lld", (long long)step);
        TEST_CHECK(s.has_loss ? loss && loss->number == s.loss : !loss, "loss of step %lld", (long long)step);
        TEST_CHECK(s.has_val ? val && val->number == s.val_loss : !val, "val of step %lld", (long long)step);
        TEST_CHECK(tokens && tokens->integer == s.tokens, "tokens of step %lld", (long long)step);
        TEST_CHECK(!json_get(&d, root, "skipped") == !s.skipped, "skipped of step %lld", (long long)step);
        p += n + 1;
    }
    TEST_CHECK(step == last + 1, "%lld lines, %lld expected", (long long)step, (long long)last + 1);
    json_free(&d);
    free(text);
}

static void test_resume(const char *folder) {
    char path[600];
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    TEST_CHECK(write_steps(folder, 0, 20), "%s", err.text);
    check_file(path, 20);
    TEST_CHECK(write_steps(folder, 12, 15), "%s", err.text);
    check_file(path, 15);
    FILE *f = fopen(path, "a");
    if (f) fputs("{\"step\": 16, \"loss\": 1", f), fclose(f);
    TEST_CHECK(write_steps(folder, 15, 18), "%s", err.text);
    check_file(path, 18);
    f = fopen(path, "a"); /* a torn line that later lines follow, a step twice, and no JSON */
    if (f) fputs("{\"step\": 19, \"lo{\"step\": 3}\n{\"step\": 4, \"loss\": 1}\nrubbish\n\n", f), fclose(f);
    TEST_CHECK(write_steps(folder, 18, 19), "%s", err.text);
    check_file(path, 19);
    TEST_CHECK(write_steps(folder, 0, 3), "%s", err.text);
    check_file(path, 3);
    snprintf(path, sizeof path, "%s/metrics.jsonl.old", folder); /* the run before is not thrown away */
    check_file(path, 19);
    TEST_CHECK(!metrics_open(&(Metrics){0}, "/nonexistent/run", 0, &err), "no folder");
    TEST_CHECK(!strcmp(err.text, "/nonexistent/run/metrics.jsonl: cannot write: No such file or directory "
                                 "(check the spelling)"),
               "%s", err.text);
}

/* The disk fills up, as far as a test may have that happen: an error, and no torn line. */
static void test_full_disk(const char *folder) {
    char path[600];
    Metrics m;
    struct rlimit old, small;
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 1000;
    TEST_CHECK(metrics_open(&m, folder, 0, &err), "%s", err.text);
    setrlimit(RLIMIT_FSIZE, &small);
    int64_t step = 0;
    for (bool ok = true; ok && step < 100; step += ok) {
        ProgressStep s = step_at(step);
        ok = metrics_step(&m, &s, &err);
    }
    setrlimit(RLIMIT_FSIZE, &old);
    metrics_close(&m);
    TEST_CHECK(step > 2 && step < 10 && strstr(err.text, "metrics.jsonl: cannot write"), "step %lld: %s",
               (long long)step, err.text);
    check_file(path, step - 1);
}

static void test_line(void) {
    char line[1024];
    ProgressStep s = step_at(1);
    s.loss = NAN, s.mfu = NAN, s.norm = INFINITY, s.learning_rate = 0.1;
    TEST_CHECK(metrics_format(&s, line, sizeof line) == strlen(line), "length");
    TEST_CHECK(
        !strcmp(line,
                "{\"step\": 1, \"tokens\": 1024, \"loss\": null, \"norm\": null, \"lr\": 0.1, \"ms\": 310, "
                "\"tokens_per_second\": 3303.2, \"mfu\": null, \"memory_bytes\": 1234567890, "
                "\"seconds\": 0.31}\n"),
        "%s", line);
    TEST_CHECK(metrics_format(&s, line, 100) == 0, "does not fit");
}

static void test_event_record(void) {
    unsigned char out[EVENT_BYTES_MAX];
    size_t n = event_version(1.5, out);
    TEST_CHECK(n == 12 + 9 + 15 + 4 && out[0] == 24 && out[1] == 0, "%zu bytes", n);
    TEST_CHECK(!memcmp(out + 12,
                       "\x09\0\0\0\0\0\0\xf8\x3f\x1a\x0d"
                       "brain.Event:2",
                       24),
               "event");
    uint32_t crc = crc32c_mask(crc32c(0, out + 12, 24)), stored;
    memcpy(&stored, out + 36, 4);
    TEST_CHECK(stored == crc, "checksum");
}

static void test_progress_line(void) {
    char line[640];
    ProgressStep s = step_at(120);
    s.loss = 2.3456, s.norm = 0.98, s.learning_rate = 5.9e-4, s.has_val = false;
    progress_format(&s, 2.4012, 272, false, line, sizeof line);
    TEST_CHECK(!strcmp(line,
                       "step  120/1000   12.0%  loss 2.3456  val 2.4012  norm 0.98  lr 5.9e-04  310 ms  "
                       "3.3k tok/s  mfu 71.2%  mem 1.2 GB  eta 4m32s"),
               "%s", line);
    s.loss = NAN, s.mfu = NAN, s.memory_bytes = 0, s.skipped = true;
    progress_format(&s, NAN, NAN, false, line, sizeof line);
    TEST_CHECK(!strcmp(line,
                       "step  120/1000   12.0%  loss    nan  norm 0.98  lr 5.9e-04  310 ms  3.3k tok/s  "
                       "skipped (outlier)"),
               "%s", line);
    s = step_at(0);
    progress_format(&s, NAN, NAN, false, line, sizeof line);
    TEST_CHECK(!strcmp(line, "step    0/1000    0.0%  val 10.1250  mem 1.2 GB"), "%s", line);
    s = step_at(5);
    size_t n = progress_format(&s, NAN, 1, true, line, sizeof line);
    TEST_CHECK(n == strlen(line) && strstr(line, "\033[") && strstr(line, "\033[0m"), "%s", line);
    for (size_t size = 1; size < 200; size++) {
        memset(line, '#', sizeof line);
        n = progress_format(&s, 1, 1, true, line, size);
        TEST_CHECK(n < size && strlen(line) == n && line[size] == '#', "size %zu", size);
    }
}

static void test_numbers(void) {
    char b[PROGRESS_NUMBER_BYTES];
    static const struct {
        double seconds;
        const char *duration, *ms;
    } times[] = {{0, "0s", "0.00 ms"},          {0.0012, "0s", "1.20 ms"},    {59.4, "59s", "59.4 s"},
                 {59.6, "1m00s", "59.6 s"},     {3599.7, "1h00m", "3600 s"},  {0.310, "0s", "310 ms"},
                 {183600, "2d03h", "183600 s"}, {1e300, "?", "1000000000 s"}, {NAN, "?", "? ms"}};
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        TEST_CHECK(!strcmp(progress_duration(times[i].seconds, b), times[i].duration), "%g: %s",
                   times[i].seconds, b);
        TEST_CHECK(!strcmp(progress_milliseconds(times[i].seconds, b), times[i].ms), "%g: %s",
                   times[i].seconds, b);
    }
    TEST_CHECK(!strcmp(progress_count(999.4, b), "999"), "%s", b);
    TEST_CHECK(!strcmp(progress_count(999.6, b), "1.0k"), "%s", b);
    TEST_CHECK(!strcmp(progress_count(123456, b), "123k"), "%s", b);
    TEST_CHECK(!strcmp(progress_count(NAN, b), "?"), "%s", b);
    TEST_CHECK(!strcmp(progress_bytes(512, b), "512 B"), "%s", b);
    TEST_CHECK(!strcmp(progress_bytes(4400000000u, b), "4.4 GB"), "%s", b);
    TEST_CHECK(!strcmp(progress_bytes(UINT64_MAX, b), "18.4 EB"), "%s", b);
    char spark[64];
    progress_spark((double[]){3, 2, NAN, 1, 1}, 5, spark, sizeof spark);
    TEST_CHECK(!strcmp(spark, "█▄!▁▁"), "%s", spark);
    progress_spark((double[]){3, 2, 1}, 3, spark, 7);
    TEST_CHECK(!strcmp(spark, "█▄"), "%s", spark);
}

static void test_sparkline(void) {
    char *text = NULL;
    size_t bytes = 0;
    Progress p;
    FILE *out = tmpfile();
    if (!out) return;
    progress_open(&p, out, "auto");
    TEST_CHECK(!p.color, "a file has no colours");
    progress_open(&p, out, "always");
    for (int64_t i = 0; i <= 1000; i++) {
        ProgressStep s = step_at(i);
        s.loss = i <= 500 ? 4 : 2;
        s.has_val = i == 1000;
        progress_step(&p, &s, i == 1000);
        TEST_CHECK(p.num_buckets <= PROGRESS_BUCKETS, "%d", p.num_buckets);
    }
    TEST_CHECK(p.bucket_steps == 32 && p.num_buckets == 1000 / 32, "%d of %d", p.num_buckets, p.bucket_steps);
    TEST_CHECK(p.bucket[0] == 4 && p.bucket[p.num_buckets - 1] == 2, "means");
    fflush(out);
    rewind(out);
    char buffer[2048];
    bytes = fread(buffer, 1, sizeof buffer - 1, out);
    buffer[bytes] = 0;
    text = strchr(buffer, '\n');
    TEST_CHECK(text && strstr(text, "██▅▁▁") != NULL, "%s", buffer);
    fclose(out);
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "write")) {
        bool ok = write_steps(argv[2], 0, 20) && write_steps(argv[2], 12, 30);
        if (!ok) fprintf(stderr, "%s\n", err.text);
        return ok ? 0 : 1;
    }
    const char *tmp = getenv("TMPDIR");
    char folder[256], command[300];
    snprintf(folder, sizeof folder, "%s/test_metrics.XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(folder)) return 1;
    test_resume(folder);
    test_full_disk(folder);
    test_line();
    test_event_record();
    test_progress_line();
    test_numbers();
    test_sparkline();
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    return system(command) == 0 ? test_end("metrics") : 1;
}
