/* fuzz_model_file.c: any bytes as a model file (llm.c's or safetensors): one line of error, or a model that
 * loads. Run by test_model_file.c and test_safetensors.c, and by libFuzzer; see fuzz.h. */
#include "run/model_file.h"
#include "test_folder.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    if (!*test_folder.path) test_folder_open();
    TestPath path = test_path("fuzz");
    ModelSource source;
    Error err = {""};
    test_file_write(path.path, data, bytes);
    if (!model_source_open(&source, path.path, &err)) {
        CHECK(!strncmp(err.text, path.path, strlen(path.path)) && !strchr(err.text, '\n'));
        CHECK(!source.files && !source.places);
        return 0;
    }
    GPT2 m;
    if (gpt2_param_count(&source.config) < 1 << 22) {
        CHECK(gpt2_init(&m, &source.config, 1, 1, 1, GPT2_INFERENCE, &err));
        if (!model_source_load(&source, &m, &err)) CHECK(strstr(err.text, "not a finite number"));
        gpt2_free(&m);
    }
    model_source_close(&source);
    return 1;
}
