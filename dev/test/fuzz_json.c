/* fuzz_json.c: any bytes into the parser. What it accepts must be consistent, and written again it must parse to the
 * same nodes. Run by test_json.c and by libFuzzer; see fuzz.h. */
#include "base/check.h"
#include "base/json.h"
#include "fuzz.h"

static void write_again(const JsonDocument *d, JsonWriter *w) {
    size_t open[JSON_DEPTH_MAX];
    int depth = 0;
    for (size_t i = 0; i <= d->count; i++) {
        while (depth && d->nodes[open[depth - 1]].end == i) {
            if (d->nodes[open[--depth]].type == JSON_OBJECT)
                json_object_end(w);
            else
                json_array_end(w);
        }
        if (i == d->count) break;
        const JsonNode *n = &d->nodes[i];
        CHECK(n->end > i && n->end <= d->count);
        if (n->key && strlen(n->key) != n->key_bytes) { /* the writer's keys are C strings */
            w->overflow = true;
            return;
        }
        switch (n->type) {
        case JSON_NULL: json_null(w, n->key); break;
        case JSON_BOOL: json_bool(w, n->key, n->boolean); break;
        case JSON_STRING: json_string_bytes(w, n->key, n->text, n->bytes); break;
        case JSON_ARRAY: json_array_begin(w, n->key); break;
        case JSON_OBJECT: json_object_begin(w, n->key); break;
        case JSON_NUMBER:
            if (n->is_int)
                json_int(w, n->key, n->integer);
            else
                json_double(w, n->key, n->number);
        }
        if (n->type >= JSON_ARRAY) open[depth++] = i;
    }
    CHECK(depth == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static char buffer[1 << 16];
    static JsonDocument a, b;
    Error err;
    if (!json_parse(&a, (const char *)data, bytes, &err)) {
        CHECK(err.text[0] && a.count == 0);
        return 0;
    }
    CHECK(a.count > 0 && a.nodes[0].end == a.count);
    JsonWriter w;
    json_writer_open(&w, buffer, sizeof buffer);
    write_again(&a, &w);
    if (!json_writer_done(&w)) return 0;
    CHECK(json_parse(&b, buffer, w.used, &err) && b.count == a.count);
    for (size_t i = 0; i < a.count; i++) {
        const JsonNode *m = &a.nodes[i], *n = &b.nodes[i];
        bool infinite = m->type == JSON_NUMBER && n->type == JSON_NULL; /* 1e999 is written as null */
        CHECK(infinite || (m->type == n->type && m->boolean == n->boolean && m->number == n->number));
        CHECK(m->end == n->end && m->count == n->count && m->bytes == n->bytes);
        CHECK(m->type != JSON_STRING || !memcmp(m->text, n->text, m->bytes));
        CHECK(!m->key || (m->key_bytes == n->key_bytes && !memcmp(m->key, n->key, m->key_bytes)));
    }
    return 0;
}
