/* json.c: see json.h. The parser is a loop over one stack of open containers; every string is unescaped into
 * one array that is as large as the text, since unescaping never makes a string longer. */
#include "base/json.h"
#include "base/check.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Length of the valid UTF-8 sequence at p (1 to 4), or 0: overlong forms, surrogates and values above
 * U+10FFFF are not valid. */
static size_t utf8_length(const unsigned char *p, size_t bytes) {
    unsigned c = p[0];
    if (c < 0x80) return 1;
    size_t n = c >= 0xC2 && c <= 0xDF ? 2 : (c & 0xF0) == 0xE0 ? 3 : c >= 0xF0 && c <= 0xF4 ? 4 : 0;
    if (!n || n > bytes) return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xC0) != 0x80) return 0;
    if (c == 0xE0 && p[1] < 0xA0) return 0;
    if (c == 0xED && p[1] > 0x9F) return 0;
    if (c == 0xF0 && p[1] < 0x90) return 0;
    if (c == 0xF4 && p[1] > 0x8F) return 0;
    return n;
}

/* ---- writer ---- */

static void put(JsonWriter *w, const char *text, size_t bytes) {
    if (w->overflow || bytes >= w->size - w->used) {
        w->overflow = true;
        return;
    }
    memcpy(w->buffer + w->used, text, bytes);
    w->used += bytes;
    w->buffer[w->used] = 0;
}

static void put_string(JsonWriter *w, const char *text, size_t bytes) {
    put(w, "\"", 1);
    for (size_t i = 0; i < bytes;) {
        unsigned char c = (unsigned char)text[i];
        size_t n = utf8_length((const unsigned char *)text + i, bytes - i);
        char escape[8];
        if (c == '"' || c == '\\')
            put(w, (char[]){'\\', (char)c}, 2);
        else if (c == '\n' || c == '\t' || c == '\r')
            put(w, c == '\n' ? "\\n" : c == '\t' ? "\\t" : "\\r", 2);
        else if (c < 0x20 || c == 0x7f)
            put(w, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", c));
        else if (n == 0)
            put(w, "\xEF\xBF\xBD", 3);
        else
            put(w, text + i, n);
        i += n ? n : 1;
    }
    put(w, "\"", 1);
}

static void put_key(JsonWriter *w, const char *key) {
    if (w->comma[w->depth]) put(w, ", ", 2);
    w->comma[w->depth] = true;
    if (!key) return;
    put_string(w, key, strlen(key));
    put(w, ": ", 2);
}

static void put_begin(JsonWriter *w, const char *key, const char *bracket) {
    put_key(w, key);
    put(w, bracket, 1);
    CHECK_OP(w->depth, <, JSON_DEPTH_MAX);
    w->comma[++w->depth] = false;
}

static void put_end(JsonWriter *w, const char *bracket) {
    CHECK_OP(w->depth, >, 0);
    w->depth--;
    put(w, bracket, 1);
}

void json_writer_open(JsonWriter *w, char *buffer, size_t size) {
    CHECK(size > 0);
    memset(w, 0, sizeof *w);
    w->buffer = buffer;
    w->size = size;
    buffer[0] = 0;
}

void json_object_begin(JsonWriter *w, const char *key) {
    put_begin(w, key, "{");
}
void json_object_end(JsonWriter *w) {
    put_end(w, "}");
}
void json_array_begin(JsonWriter *w, const char *key) {
    put_begin(w, key, "[");
}
void json_array_end(JsonWriter *w) {
    put_end(w, "]");
}

void json_string_bytes(JsonWriter *w, const char *key, const char *value, size_t bytes) {
    put_key(w, key);
    put_string(w, value, bytes);
}

void json_string(JsonWriter *w, const char *key, const char *value) {
    json_string_bytes(w, key, value, strlen(value));
}

void json_double(JsonWriter *w, const char *key, double value) {
    char number[40];
    if (!isfinite(value)) {
        json_null(w, key);
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(number, sizeof number, "%.*g", digits, value);
        if (strtod(number, NULL) == value) break;
    }
    put_key(w, key);
    put(w, number, strlen(number));
}

void json_float(JsonWriter *w, const char *key, float value) {
    char number[40];
    if (!isfinite(value)) {
        json_null(w, key);
        return;
    }
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(number, sizeof number, "%.*g", digits, (double)value);
        if (strtof(number, NULL) == value) break;
    }
    put_key(w, key);
    put(w, number, strlen(number));
}

void json_int(JsonWriter *w, const char *key, int64_t value) {
    char number[32];
    put_key(w, key);
    put(w, number, (size_t)snprintf(number, sizeof number, "%lld", (long long)value));
}

void json_bool(JsonWriter *w, const char *key, bool value) {
    put_key(w, key);
    put(w, value ? "true" : "false", value ? 4 : 5);
}

void json_null(JsonWriter *w, const char *key) {
    put_key(w, key);
    put(w, "null", 4);
}

bool json_writer_done(const JsonWriter *w) {
    return !w->overflow && w->depth == 0 && w->used > 0;
}

/* ---- parser ---- */

typedef struct {
    const unsigned char *text;
    size_t bytes, at;
    JsonDocument *document;
    size_t strings_used;
    Error *err;
} Parser;

static bool fail(const Parser *p, const char *what) {
    return error_set(p->err, "byte %zu: %s", p->at, what);
}

static int peek(Parser *p) {
    while (p->at < p->bytes) {
        unsigned char c = p->text[p->at];
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r') return c;
        p->at++;
    }
    return -1;
}

static bool hex4(const Parser *p, size_t at, unsigned *value) {
    *value = 0;
    if (at > p->bytes || p->bytes - at < 4) return false;
    for (size_t i = 0; i < 4; i++) {
        unsigned c = p->text[at + i], lower = c | 0x20;
        unsigned digit = c >= '0' && c <= '9'           ? c - '0'
                         : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10
                                                        : 16;
        if (digit == 16) return false;
        *value = *value * 16 + digit;
    }
    return true;
}

static char *put_utf8(char *out, unsigned c) {
    if (c < 0x80) {
        *out++ = (char)c;
    } else if (c < 0x800) {
        *out++ = (char)(0xC0 | c >> 6);
        *out++ = (char)(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        *out++ = (char)(0xE0 | c >> 12);
        *out++ = (char)(0x80 | (c >> 6 & 0x3F));
        *out++ = (char)(0x80 | (c & 0x3F));
    } else {
        *out++ = (char)(0xF0 | c >> 18);
        *out++ = (char)(0x80 | (c >> 12 & 0x3F));
        *out++ = (char)(0x80 | (c >> 6 & 0x3F));
        *out++ = (char)(0x80 | (c & 0x3F));
    }
    return out;
}

/* An escape, with p->at on its backslash. Half a surrogate pair becomes U+FFFD, as most readers do. */
static bool parse_escape(Parser *p, char **out) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    int c = p->at + 1 < p->bytes ? p->text[p->at + 1] : 0;
    const char *name = c ? strchr(names, c) : NULL;
    if (name) {
        *(*out)++ = values[name - names];
        p->at += 2;
        return true;
    }
    unsigned high, low;
    if (c != 'u' || !hex4(p, p->at + 2, &high)) return fail(p, "bad escape in a string");
    p->at += 6;
    if (high >= 0xD800 && high <= 0xDBFF && p->at + 1 < p->bytes && p->text[p->at] == '\\' &&
        p->text[p->at + 1] == 'u' && hex4(p, p->at + 2, &low) && low >= 0xDC00 && low <= 0xDFFF) {
        p->at += 6;
        high = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
    } else if (high >= 0xD800 && high <= 0xDFFF) {
        high = 0xFFFD;
    }
    *out = put_utf8(*out, high);
    return true;
}

/* A string, with p->at on its opening quote. Its bytes and NUL take no more room than it and its quotes do.
 */
static bool parse_string(Parser *p, const char **text, size_t *bytes) {
    char *start = p->document->strings + p->strings_used, *out = start;
    p->at++;
    for (;;) {
        if (p->at >= p->bytes) return fail(p, "the text ends inside a string");
        unsigned char c = p->text[p->at];
        if (c == '"') break;
        if (c < 0x20) return fail(p, "control character in a string");
        if (c == '\\') {
            if (!parse_escape(p, &out)) return false;
            continue;
        }
        size_t n = utf8_length(p->text + p->at, p->bytes - p->at);
        if (!n) return fail(p, "not UTF-8");
        memcpy(out, p->text + p->at, n);
        out += n, p->at += n;
    }
    p->at++;
    *out = 0;
    *text = start;
    *bytes = (size_t)(out - start);
    p->strings_used += *bytes + 1;
    CHECK_OP(p->strings_used, <=, p->document->strings_size);
    return true;
}

static size_t digits(const Parser *p, size_t at) {
    size_t n = 0;
    while (at + n < p->bytes && p->text[at + n] >= '0' && p->text[at + n] <= '9') n++;
    return n;
}

static bool parse_number(Parser *p, JsonNode *node) {
    char copy[128];
    size_t at = p->at, n;
    bool whole = true;
    if (p->text[at] == '-') at++;
    n = digits(p, at);
    if (!n || (n > 1 && p->text[at] == '0')) return fail(p, "bad number");
    at += n;
    if (at < p->bytes && p->text[at] == '.') {
        whole = false;
        if (!(n = digits(p, ++at))) return fail(p, "bad number");
        at += n;
    }
    if (at < p->bytes && (p->text[at] | 0x20) == 'e') {
        whole = false;
        at++;
        if (at < p->bytes && (p->text[at] == '+' || p->text[at] == '-')) at++;
        if (!(n = digits(p, at))) return fail(p, "bad number");
        at += n;
    }
    if (at - p->at >= sizeof copy) return fail(p, "a number of more than 127 characters");
    memcpy(copy, p->text + p->at, at - p->at);
    copy[at - p->at] = 0;
    node->type = JSON_NUMBER;
    node->number = strtod(copy, NULL);
    errno = 0;
    long long integer = whole ? strtoll(copy, NULL, 10) : 0;
    node->is_int = whole && errno == 0;
    node->integer = node->is_int ? integer : 0;
    p->at = at;
    return true;
}

static bool parse_word(Parser *p, JsonNode *node) {
    static const struct {
        const char *word;
        JsonType type;
        bool value;
    } words[] = {{"null", JSON_NULL, false}, {"true", JSON_BOOL, true}, {"false", JSON_BOOL, false}};
    for (int i = 0; i < 3; i++) {
        size_t n = strlen(words[i].word);
        if (p->bytes - p->at < n || memcmp(p->text + p->at, words[i].word, n)) continue;
        node->type = words[i].type;
        node->boolean = words[i].value;
        p->at += n;
        return true;
    }
    return fail(p, "expected a value");
}

/* A new node at the end of the array; NULL with err set if there is no memory. */
static JsonNode *node_add(Parser *p) {
    JsonDocument *d = p->document;
    if (d->count == d->nodes_size) {
        size_t size = d->nodes_size ? d->nodes_size * 2 : 64;
        JsonNode *grown = size <= SIZE_MAX / sizeof *grown ? realloc(d->nodes, size * sizeof *grown) : NULL;
        if (!grown) {
            fail(p, "no memory for so many values");
            return NULL;
        }
        d->nodes = grown, d->nodes_size = size;
    }
    JsonNode *node = &d->nodes[d->count++];
    memset(node, 0, sizeof *node);
    return node;
}

/* One value with its key if it has one; a container is only opened. */
static bool parse_value(Parser *p, bool in_object) {
    JsonNode *node = node_add(p);
    if (!node) return false;
    if (in_object) {
        if (peek(p) != '"') return fail(p, "expected a name in quotes");
        if (!parse_string(p, &node->key, &node->key_bytes)) return false;
        if (peek(p) != ':') return fail(p, "expected ':'");
        p->at++;
    }
    int c = peek(p);
    if (c == '{' || c == '[') {
        node->type = c == '{' ? JSON_OBJECT : JSON_ARRAY;
        p->at++;
        return true;
    }
    if (c == '"') {
        node->type = JSON_STRING;
        return parse_string(p, &node->text, &node->bytes);
    }
    if (c == '-' || (c >= '0' && c <= '9')) return parse_number(p, node);
    if (c < 0) return fail(p, "the text ends where a value should be");
    return parse_word(p, node);
}

static bool parse_all(Parser *p) {
    size_t open[JSON_DEPTH_MAX]; /* node indices of the containers around p->at */
    int depth = 0;
    JsonDocument *d = p->document;
    do {
        size_t parent = depth ? open[depth - 1] : 0;
        bool in_object = depth && d->nodes[parent].type == JSON_OBJECT, closes = false;
        if (depth) {
            int c = peek(p);
            closes = c == (in_object ? '}' : ']');
            if (!closes && d->nodes[parent].count) {
                if (c != ',') return fail(p, in_object ? "expected ',' or '}'" : "expected ',' or ']'");
                p->at++;
            }
        }
        if (closes) {
            p->at++;
            d->nodes[parent].end = d->count;
            depth--;
            continue;
        }
        if (!parse_value(p, in_object)) return false;
        size_t index = d->count - 1;
        d->nodes[index].end = d->count;
        if (depth) d->nodes[parent].count++;
        if (d->nodes[index].type < JSON_ARRAY) continue;
        if (depth == JSON_DEPTH_MAX) return fail(p, "nested too deep");
        open[depth++] = index;
    } while (depth);
    return peek(p) < 0 || fail(p, "something stands behind the value");
}

bool json_parse(JsonDocument *document, const char *text, size_t bytes, Error *err) {
    Parser p = {(const unsigned char *)text, bytes, 0, document, 0, err};
    document->count = 0;
    if (bytes >= SIZE_MAX / 2) return error_set(err, "too large");
    if (document->strings_size < bytes + 1) {
        char *grown = realloc(document->strings, bytes + 1);
        if (!grown) return error_set(err, "no memory for %zu bytes", bytes);
        document->strings = grown, document->strings_size = bytes + 1;
    }
    bool ok = parse_all(&p);
    if (!ok) document->count = 0;
    return ok;
}

void json_free(JsonDocument *document) {
    free(document->nodes);
    free(document->strings);
    memset(document, 0, sizeof *document);
}

const JsonNode *json_first(const JsonDocument *document, const JsonNode *parent) {
    CHECK(parent >= document->nodes && parent < document->nodes + document->count);
    return parent->type >= JSON_ARRAY && parent->count ? parent + 1 : NULL;
}

const JsonNode *json_next(const JsonDocument *document, const JsonNode *parent, const JsonNode *child) {
    CHECK(child > parent && child->end <= parent->end);
    return child->end < parent->end ? document->nodes + child->end : NULL;
}

const JsonNode *json_get(const JsonDocument *document, const JsonNode *parent, const char *key) {
    size_t bytes = strlen(key);
    if (!parent || parent->type != JSON_OBJECT) return NULL;
    for (const JsonNode *c = json_first(document, parent); c; c = json_next(document, parent, c))
        if (c->key_bytes == bytes && !memcmp(c->key, key, bytes)) return c;
    return NULL;
}
