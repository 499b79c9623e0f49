/* fuzz_encoder.c: any bytes as text: a tokenizer is trained on them, and must give the same ids however the
 * text is cut into feeds, and decode to the text. Run by test_fuzz_data.c and by libFuzzer; see fuzz.h. */
#include "base/check.h"
#include "data/bpe_train.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    Error err = {""};
    Tokens whole = {0}, pieces = {0};
    BpeTrainer *trainer = bpe_train_open(1 + bytes / 2, &err);
    CHECK(trainer && bpe_train_feed(trainer, data, bytes, &err) && bpe_train_end_document(trainer, &err));
    Tokenizer *t = bpe_train_finish(trainer, 300, &err);
    CHECK(t && tokenizer_vocab_size(t) >= 257 && tokenizer_vocab_size(t) <= 300);
    TokenEncoder *encoder = token_encoder_open(t, &err);
    CHECK(encoder && token_encoder_feed(encoder, data, bytes, &whole, &err));
    CHECK(token_encoder_finish(encoder, &whole, &err));
    for (size_t at = 0, n; at < bytes; at += n) {
        n = 1 + data[at] % 5;
        if (n > bytes - at) n = bytes - at;
        CHECK(token_encoder_feed(encoder, data + at, n, &pieces, &err));
    }
    CHECK(token_encoder_finish(encoder, &pieces, &err));
    CHECK(pieces.count == whole.count && (!whole.count || !memcmp(pieces.ids, whole.ids, 2 * whole.count)));
    size_t at = 0, length;
    for (size_t i = 0; i < whole.count; i++, at += length) {
        const char *text = tokenizer_decode(t, whole.ids[i], &length);
        CHECK(text && length <= bytes - at && !memcmp(text, data + at, length));
    }
    CHECK(at == bytes);
    free(whole.ids);
    free(pieces.ids);
    token_encoder_close(encoder);
    tokenizer_close(t);
    bpe_train_close(trainer);
    return 0;
}
