/* test_checkpoint.c: when checkpoints are due: the forms of --checkpoint-every, and the interval that loses the least. */
#include "run/checkpoint.h"
#include "test.h"
#include <math.h>
#include <string.h>

typedef struct {
    const char *text;
    CheckpointKind kind;
    int64_t steps;
    double seconds;
} Form;

static void test_forms(void) {
    static const Form forms[] = {
        {"0", CHECKPOINT_AT_END, 0, 0},         {"1", CHECKPOINT_STEPS, 1, 0},
        {"100", CHECKPOINT_STEPS, 100, 0},      {"1000000000", CHECKPOINT_STEPS, 1000000000, 0},
        {"30s", CHECKPOINT_SECONDS, 0, 30},     {"10m", CHECKPOINT_SECONDS, 0, 600},
        {"1h", CHECKPOINT_SECONDS, 0, 3600},    {"0.5h", CHECKPOINT_SECONDS, 0, 1800},
        {"0.25s", CHECKPOINT_SECONDS, 0, 0.25}, {"auto", CHECKPOINT_AUTO, 0, 0},
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        CheckpointEvery every;
        Error err;
        memset(&every, 0x5a, sizeof every);
        TEST_CHECK(checkpoint_every_parse(forms[i].text, &every, &err), "'%s'", forms[i].text);
        TEST_CHECK(every.kind == forms[i].kind && every.steps == forms[i].steps, "'%s': %d, %lld",
                   forms[i].text, (int)every.kind, (long long)every.steps);
        TEST_CHECK(fabs(every.seconds - forms[i].seconds) < 1e-12, "'%s': %g s", forms[i].text,
                   every.seconds);
    }
}

static void test_bad_forms(void) {
    static const char *const bad[] = {"",     "x",           "-1",   "+1",    " 1",   "1.5",  "1 ",
                                      "10d",  "10 s",        "s",    "0s",    "-1s",  "1ss",  "nan",
                                      "nans", "inf",         "infs", "auto1", "AUTO", "1e10", "1e10s",
                                      "ten",  "99999999999", "5m5",  "1h30m"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CheckpointEvery every;
        Error err = {""};
        TEST_CHECK(!checkpoint_every_parse(bad[i], &every, &err), "'%s' was taken", bad[i]);
        TEST_CHECK(strstr(err.text, "--checkpoint-every") != NULL, "'%s': %s", bad[i], err.text);
    }
}

/* A failure every 6000 s, 600 s to start again, 10 s a checkpoint, 15 s a step: every 24 steps (arXiv 2410.18124). */
static void test_interval(void) {
    double seconds = checkpoint_auto_seconds(10, 6000, 600, 0, 0);
    TEST_CHECK(fabs(seconds - (10 + sqrt(2 * 6600.0 * 10 + 100))) < 1e-9, "%g s", seconds);
    TEST_CHECK((int)(seconds / 15) == 24, "%g s", seconds);
    /* it loses less than twice or half of it: cost of saving, and half an interval for each failure */
    double loss[3], factor[3] = {0.5, 1, 2};
    for (int i = 0; i < 3; i++) {
        double t = seconds * factor[i];
        loss[i] = 10 / t + t / (2 * 6600.0);
    }
    TEST_CHECK(loss[1] < loss[0] && loss[1] < loss[2], "%g s", seconds);
    /* grows with the cost and with the time between failures */
    TEST_CHECK(checkpoint_auto_seconds(20, 6000, 600, 0, 0) > seconds, "%g s", seconds);
    TEST_CHECK(checkpoint_auto_seconds(10, 60000, 600, 0, 0) > seconds, "%g s", seconds);
    TEST_CHECK(fabs(checkpoint_auto_seconds(0, 6000, 600, 0, 0)) < 1e-12, "%g s", seconds);
}

/* 1.5 GB at 10 TB a day: not oftener than every 12.96 s, whatever a checkpoint costs. */
static void test_wear(void) {
    double seconds = checkpoint_auto_seconds(0, 6000, 600, 1.5e9, 10);
    TEST_CHECK(fabs(seconds - 12.96) < 1e-9, "%g s", seconds);
    TEST_CHECK(fabs(checkpoint_auto_seconds(10, 6000, 600, 1.5e9, 10) -
                    checkpoint_auto_seconds(10, 6000, 600, 0, 0)) < 1e-9,
               "%g s", seconds);
    TEST_CHECK(fabs(checkpoint_auto_seconds(0, 6000, 600, 1.5e9, 0)) < 1e-12, "%g s", seconds);
}

int main(void) {
    test_forms();
    test_bad_forms();
    test_interval();
    test_wear();
    return test_end("checkpoint");
}
