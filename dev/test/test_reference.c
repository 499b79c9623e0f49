/* test_reference.c: test_gpt2.c itself: what it reads is checked, it can fail, and llm.c's own form of the
 * files works. */
#define _XOPEN_SOURCE 700
#define main          test_gpt2_main
#include "../../test_gpt2.c"
#undef main
#include "test.h"
#include "test_folder.h"
#include <fcntl.h>

static const char golden[] = "dev/reference/golden";
enum { LLMC_BYTES = 1024 + 8 * 51 + 4 * 51 * 67 + 4 + 4 * 13100 };

/* The verdict on the pair x.bin, x_debug_state.bin in the test's folder; -1: an error. Its table is not
 * shown. */
static int verdict(Error *err) {
    bool ok = false;
    fflush(stdout);
    int out = dup(STDOUT_FILENO), nowhere = open("/dev/null", O_WRONLY);
    CHECK(out >= 0 && nowhere >= 0 && dup2(nowhere, STDOUT_FILENO) >= 0);
    bool done = test_state(test_path("x_debug_state.bin").path, PRECISION_FP32, &ok, err);
    fflush(stdout);
    CHECK(dup2(out, STDOUT_FILENO) >= 0 && close(out) == 0 && close(nowhere) == 0);
    return done ? ok : -1;
}

static void write_pair(const uint8_t *weights, size_t weights_bytes, const uint8_t *state,
                       size_t state_bytes) {
    test_file_write(test_path("x.bin").path, weights, weights_bytes);
    test_file_write(test_path("x_debug_state.bin").path, state, state_bytes);
}

int main(void) {
    Error err = {""};
    DeviceConfig device = {.threads = 1};
    char path[64];
    size_t weights_bytes, bytes;
    CHECK(device_open(&device, &err));
    test_folder_open();
    snprintf(path, sizeof path, "%s.bin", golden);
    uint8_t *weights = test_file_read(path, &weights_bytes);
    snprintf(path, sizeof path, "%s_debug_state.bin", golden);
    uint8_t *state = test_file_read(path, &bytes);
    CHECK(weights && state && bytes > LLMC_BYTES);
    uint8_t *copy = malloc(bytes);

    write_pair(weights, weights_bytes, state, bytes);
    int whole = verdict(&err);
    TEST_CHECK(whole == 1, "%d: %s", whole, err.text);

    memcpy(copy, state, bytes);
    memset(copy + 16, 0, 16); /* llm.c's own file says nothing more */
    write_pair(weights, weights_bytes, copy, LLMC_BYTES);
    int plain = verdict(&err);
    TEST_CHECK(plain == 1, "%d: %s", plain, err.text);

    /* one number a little off, anywhere behind the tokens, must not pass */
    const size_t places[] = {1024 + 8 * 51 + 4 * 100, LLMC_BYTES - 4, LLMC_BYTES - 4 * 3000,
                             LLMC_BYTES + 40 + 8 * 9};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        memcpy(copy, state, bytes);
        copy[places[i] + (i == 3 ? 5 : 2)] ^= 0x40;
        write_pair(weights, weights_bytes, copy, bytes);
        int wrong = verdict(&err);
        TEST_CHECK(wrong == 0, "a changed number at %zu: %d", places[i], wrong);
    }
    int errors = 0;
    for (uint64_t round = 0; round < 200; round++) {
        memcpy(copy, state, bytes);
        write_pair(weights, weights_bytes, copy,
                   test_mutate(copy, bytes, round % 2 ? 32 : 1024 + 8 * 51, round));
        err.text[0] = 0;
        int any = verdict(&err);
        errors += any < 0;
        CHECK(!strchr(err.text, '\n') && (any >= 0) == !err.text[0]);
    }
    TEST_CHECK(errors > 50 && errors < 200, "%d of 200 refused", errors);
    free(weights), free(state), free(copy);
    test_folder_close();
    return test_end("reference");
}
