/* test_json.c: what is written reads back; what is not JSON is refused with the place; fuzzed by fuzz_json.c. */
#include "base/json.h"
#include "fuzz_json.c"
#include "test.h"

static bool parses(const char *text) {
    JsonDocument d = {0};
    Error err;
    bool ok = json_parse(&d, text, strlen(text), &err);
    json_free(&d);
    return ok;
}

static void test_round_trip(void) {
    char buffer[4096];
    JsonWriter w;
    json_writer_open(&w, buffer, sizeof buffer);
    json_object_begin(&w, NULL);
    json_int(&w, "least", INT64_MIN);
    json_double(&w, "third", 1.0 / 3);
    json_float(&w, "tenth", 0.1f);
    json_double(&w, "nan", NAN);
    json_string_bytes(&w, "te\"xt", "a\0b\n\\\"\x01\xC3\xA9\xF0\x9F\x98\x80", 14);
    json_string(&w, "broken", "x\xFFy\xC3");
    json_array_begin(&w, "list");
    json_bool(&w, NULL, true);
    json_null(&w, NULL);
    json_object_begin(&w, NULL);
    json_object_end(&w);
    json_array_end(&w);
    json_int(&w, "last", 7);
    json_object_end(&w);
    TEST_CHECK(json_writer_done(&w), "%s", buffer);

    JsonDocument d = {0};
    Error err = {""};
    TEST_CHECK(json_parse(&d, buffer, strlen(buffer), &err), "%s: %s", err.text, buffer);
    const JsonNode *root = d.nodes, *n = json_get(&d, root, "least");
    TEST_CHECK(root->count == 8, "%zu", root->count);
    TEST_CHECK(n && n->is_int && n->integer == INT64_MIN, "least");
    n = json_get(&d, root, "third");
    TEST_CHECK(n && n->number == 1.0 / 3 && !n->is_int, "third");
    n = json_get(&d, root, "tenth");
    TEST_CHECK(n && (float)n->number == 0.1f && strstr(buffer, "\"tenth\": 0.1,"), "%s", buffer);
    n = json_get(&d, root, "nan");
    TEST_CHECK(n && n->type == JSON_NULL, "nan");
    n = json_get(&d, root, "te\"xt");
    TEST_CHECK(n && n->bytes == 14 && !memcmp(n->text, "a\0b\n\\\"\x01\xC3\xA9\xF0\x9F\x98\x80", 14), "text");
    n = json_get(&d, root, "broken");
    TEST_CHECK(n && !strcmp(n->text, "x\xEF\xBF\xBDy\xEF\xBF\xBD"), "%s", n ? n->text : "");
    const JsonNode *list = json_get(&d, root, "list");
    TEST_CHECK(list && list->count == 3, "list");
    n = json_first(&d, list);
    TEST_CHECK(n && n->type == JSON_BOOL && n->boolean, "true");
    n = json_next(&d, list, n);
    TEST_CHECK(n && n->type == JSON_NULL, "null");
    n = json_next(&d, list, n);
    TEST_CHECK(n && n->type == JSON_OBJECT && !json_first(&d, n) && !json_next(&d, list, n), "{}");
    n = json_get(&d, root, "last");
    TEST_CHECK(n && n->integer == 7 && !json_get(&d, root, "absent") && !json_get(&d, list, "x"), "last");
    json_free(&d);
}

static void test_writer_overflow(void) {
    char buffer[64];
    for (size_t size = 1; size <= sizeof buffer; size++) {
        memset(buffer, '#', sizeof buffer);
        JsonWriter w;
        json_writer_open(&w, buffer, size);
        json_object_begin(&w, NULL);
        json_string(&w, "key", "a \"value\"");
        json_object_end(&w);
        size_t need = strlen("{\"key\": \"a \\\"value\\\"\"}") + 1;
        TEST_CHECK(json_writer_done(&w) == (size >= need), "size %zu of %zu: %s", size, need, buffer);
        TEST_CHECK(size == sizeof buffer || buffer[size] == '#', "wrote behind %zu bytes", size);
    }
}

static void test_escapes(void) {
    JsonDocument d = {0};
    Error err;
    const char *text =
        " [ \"\\u0041\\ud83d\\ude00\\/\\ud800x\\b\" , -0 , 9223372036854775808, 1e400, 1E-2 ] \n";
    TEST_CHECK(json_parse(&d, text, strlen(text), &err), "%s", err.text);
    const JsonNode *n = json_first(&d, d.nodes);
    TEST_CHECK(!strcmp(n->text, "A\xF0\x9F\x98\x80/\xEF\xBF\xBDx\b"), "%s", n->text);
    n = json_next(&d, d.nodes, n);
    TEST_CHECK(n->is_int && n->integer == 0, "-0");
    n = json_next(&d, d.nodes, n);
    TEST_CHECK(!n->is_int && n->number == 9223372036854775808.0, "2^63 fits no int64");
    n = json_next(&d, d.nodes, n);
    TEST_CHECK(isinf(n->number), "1e400");
    n = json_next(&d, d.nodes, n);
    TEST_CHECK(n->number == 0.01 && !n->is_int, "1E-2");
    json_free(&d);
}

static void test_refused(void) {
    static const char *const bad[] = {"",
                                      " ",
                                      "{",
                                      "[",
                                      "]",
                                      "}",
                                      "[1",
                                      "[1,",
                                      "[1,]",
                                      "[,1]",
                                      "[1 2]",
                                      "{\"a\"}",
                                      "{\"a\":}",
                                      "{\"a\":1,}",
                                      "{a:1}",
                                      "{1:1}",
                                      "{\"a\" 1}",
                                      "[}",
                                      "{]",
                                      "01",
                                      "-",
                                      "+1",
                                      "1.",
                                      ".5",
                                      "1e",
                                      "1e+",
                                      "0x10",
                                      "NaN",
                                      "nul",
                                      "truefalse",
                                      "\"",
                                      "\"\\\"",
                                      "\"\\x\"",
                                      "\"\\u12\"",
                                      "\"\\u12g4\"",
                                      "\"\n\"",
                                      "\"\xFF\"",
                                      "\"\xC0\x80\"",
                                      "\"\xED\xA0\x80\"",
                                      "\"\xF4\x90\x80\x80\"",
                                      "\"\xE2\x82\"",
                                      "1 2",
                                      "[] []",
                                      "'a'",
                                      "Infinity",
                                      "{} x"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) TEST_CHECK(!parses(bad[i]), "accepted: %s", bad[i]);
    static const char *const good[] = {"0",  "-0.0e+1", "null",    "\"\"",
                                       "[]", "{}",      "[[],{}]", "{\"a\":{\"a\":[]}}"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        TEST_CHECK(parses(good[i]), "refused: %s", good[i]);

    char deep[2 * (JSON_DEPTH_MAX + 1) + 1];
    for (int depth = JSON_DEPTH_MAX; depth <= JSON_DEPTH_MAX + 1; depth++) {
        for (int i = 0; i < depth; i++) deep[i] = '[', deep[2 * depth - 1 - i] = ']';
        deep[2 * depth] = 0;
        TEST_CHECK(parses(deep) == (depth <= JSON_DEPTH_MAX), "depth %d", depth);
    }
    Error err = {""};
    JsonDocument d = {0};
    TEST_CHECK(!json_parse(&d, "{\"a\": flase}", 12, &err), "flase");
    TEST_CHECK(!strcmp(err.text, "byte 6: expected a value"), "%s", err.text);
    json_free(&d);
}

int main(void) {
    test_round_trip();
    test_writer_overflow();
    test_escapes();
    test_refused();
    static const char *const seeds[] = {
        "{\"__metadata__\": {\"format\": \"pt\"}, \"wte\": {\"dtype\": \"F32\", \"shape\": [50257, 768], "
        "\"data_offsets\": [0, 154389504]}}",
        "{\"step\": 12, \"loss\": 3.25e-1, \"val_loss\": null, \"ok\": [true, false, {}], \"t\": "
        "\"\\u00e9\\ud83d\\ude00\"}",
        "[[[[-0.5, \"\xC3\xA9\\n\"]]]]"};
    test_checks += fuzz_run(LLVMFuzzerTestOneInput, seeds, 3, 100000);
    return test_end("json");
}
