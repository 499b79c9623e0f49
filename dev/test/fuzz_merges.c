/* fuzz_merges.c: any bytes into the parser of merges files. What it accepts must be consistent, and encode
 * and decode any text without loss. Run by test_fuzz_data.c and by libFuzzer; see fuzz.h. */
#include "base/check.h"
#include "data/tokenizer.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    Error err = {""};
    Tokens tokens = {0};
    size_t at = 0, length;
    Tokenizer *t = tokenizer_parse((const char *)data, bytes, "fuzz", &err);
    if (!t) {
        CHECK(!strncmp(err.text, "fuzz: ", 6));
        return 0;
    }
    CHECK(tokenizer_fingerprint(t) && tokenizer_end_of_text(t) == tokenizer_vocab_size(t) - 1);
    for (int id = 0; id < tokenizer_vocab_size(t); id++)
        CHECK(tokenizer_decode(t, id, &length) && length > 0);
    CHECK(!tokenizer_decode(t, -1, &length) && !tokenizer_decode(t, tokenizer_vocab_size(t), &length));
    CHECK(tokenizer_encode(t, data, bytes, &tokens, &err));
    for (size_t i = 0; i < tokens.count; i++) {
        const char *text = tokenizer_decode(t, tokens.ids[i], &length);
        CHECK(text && length <= bytes - at && !memcmp(text, data + at, length));
        at += length;
    }
    CHECK(at == bytes);
    free(tokens.ids);
    tokenizer_close(t);
    return 0;
}
