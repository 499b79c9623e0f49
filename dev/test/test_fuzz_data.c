/* test_fuzz_data.c: the fuzz targets of data/, each for a while; failures repeat, see fuzz.h. */
#include "fuzz.h"
#define LLVMFuzzerTestOneInput fuzz_merges
#include "fuzz_merges.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_token_file
#include "fuzz_token_file.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_encoder
#include "fuzz_encoder.c"
#undef LLVMFuzzerTestOneInput
#include "test.h"

int main(void) {
    static const char *const merges[] = {
        "#version: 0.2\nt h\nth e\n\xC4\xA0 a\n\xC4\xA0 the\n\xC3\x86 \xC2\xA1\n",
        "a b\r\nab c\r\nabc abc\r\n", "byte\n", "{\"a\": 1}"};
    static const char *const edits[] = {"\x07\x01\x08\x02", "\x01\x02\x03\x04\x05\x06\x07\x08", "x"};
    static const char *const texts[] = {
        "It's the cat's  hat;\n\n the 12 hats we'll  see \xC3\xA9\xE2\x82\xAC.\r\n",
        "aaaaaaaa aaaa aaaaaa   \t\n aaa''s", "\xF0\x9F\x98\x80\xED\xA0\x80\xC0\xAF \xE3\x80\x80x",
        "the the the them then theme 1 11 111 1111"};
    test_checks += fuzz_run(fuzz_merges, merges, 4, 10000);
    test_checks += fuzz_run(fuzz_token_file, edits, 3, 50000);
    test_checks += fuzz_run(fuzz_encoder, texts, 4, 2500);
    return test_end("fuzz_data");
}
