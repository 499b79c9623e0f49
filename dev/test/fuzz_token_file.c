/* fuzz_token_file.c: headers of token files. The input is read as edits of a good header (place, change) and
 * of the file's size, or taken as it is. Run by test_fuzz_data.c and by libFuzzer; see fuzz.h. */
#include "base/check.h"
#include "data/token_file.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const uint32_t good[] = {TOKEN_FILE_MAGIC, TOKEN_FILE_VERSION, 100, 257};
    uint8_t header[TOKEN_FILE_HEADER_BYTES] = {0};
    Error err = {""};
    TokenFileInfo info;
    token_file_check(data, bytes, bytes, "fuzz", &info, &err); /* as it is */
    for (size_t i = 0; i < sizeof good; i++) header[i] = (uint8_t)(good[i / 4] >> (8 * (i % 4)));
    uint64_t size = TOKEN_FILE_HEADER_BYTES + 200;
    CHECK(token_file_check(header, sizeof header, size, "fuzz", &info, &err) && info.tokens == 100);
    for (size_t i = 0; i + 1 < bytes; i += 2) {
        if (data[i] % 8 == 7)
            size = size * 3 + data[i + 1];
        else
            header[data[i] % 24] ^= data[i + 1];
    }
    size_t given = size < sizeof header ? (size_t)size : sizeof header;
    if (!token_file_check(header, given, size, "fuzz", &info, &err)) {
        CHECK(!strncmp(err.text, "fuzz: ", 6));
        return 0;
    }
    CHECK(size == TOKEN_FILE_HEADER_BYTES + 2 * info.tokens);
    CHECK(info.vocab_size >= 0 && info.vocab_size <= TOKEN_FILE_VOCAB_MAX);
    return 0;
}
