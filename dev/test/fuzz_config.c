/* fuzz_config.c: any bytes as a configuration file: one line of error, or options that print and read back the same.
 * Run by test_options.c and by libFuzzer; see fuzz.h. */
#define _POSIX_C_SOURCE 200809L
#include "base/check.h"
#include "base/options.h"
#include "fuzz.h"

/* What options_print gives, in an allocation. */
static char *config_text(const Options *o, size_t *bytes) {
    char *text = NULL;
    FILE *out = open_memstream(&text, bytes);
    CHECK(out != NULL);
    options_print(o, true, out);
    CHECK(fclose(out) == 0);
    return text;
}

/* The same values, whatever their sources? */
static bool same_values(const Options *a, const Options *b) {
#define SAME_BOOL(f)   (a->f == b->f)
#define SAME_INT(f)    (a->f == b->f)
#define SAME_INT64(f)  (a->f == b->f)
#define SAME_DOUBLE(f) (a->f == b->f)
#define SAME_STRING(f) (!strcmp(a->f, b->f))
#define SAME_CHOICE(f) (!strcmp(a->f, b->f))
#define X(type, field, ...)                                                                                  \
    if (!SAME_##type(field)) return false;
    OPTION_TABLE(X)
#undef X
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static Options a, b;
    Error err = {""};
    if (bytes == 0) return 0;
    Command command = (Command)(data[bytes - 1] % NUM_COMMANDS);
    options_default(&a, command);
    if (!options_read_config(&a, "fuzz.txt", (const char *)data, bytes, &err)) {
        CHECK(!strncmp(err.text, "fuzz.txt:", 9) && !strchr(err.text, '\n'));
        return 0;
    }
    size_t text_bytes;
    char *text = config_text(&a, &text_bytes);
    options_default(&b, command);
    CHECK(options_read_config(&b, "again.txt", text, text_bytes, &err));
    CHECK(same_values(&a, &b));
    free(text);
    return 0;
}
