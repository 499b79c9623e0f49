/* json.h: a JSON writer into a fixed buffer and a JSON parser that trusts nothing (RFC 8259).
 *
 * The parser checks everything: grammar, UTF-8, depth (JSON_DEPTH_MAX), no bytes behind the value; it does
 * not recurse, and its memory is proportional to the input. What it gives is a flat array of nodes in
 * document order. */
#ifndef LLMC_JSON_H
#define LLMC_JSON_H
#include "base/error.h"
#include <stddef.h>
#include <stdint.h>

enum { JSON_DEPTH_MAX = 64 };

/* ---- writer ---- */

typedef struct {
    char *buffer;
    size_t size, used; /* buffer is NUL-terminated at all times */
    bool overflow;     /* something did not fit; what stands in the buffer is then not JSON */
    int depth;
    bool comma[JSON_DEPTH_MAX + 1]; /* is a comma due before the next value of this level? */
} JsonWriter;

/* Everything below writes one value; `key` is its name inside an object and NULL inside an array and at the
 * top. Strings are escaped; bytes that are not UTF-8 become U+FFFD. Doubles are written so that they read
 * back equal; NaN and infinities, which JSON lacks, become null. */
void json_writer_open(JsonWriter *w, char *buffer, size_t size);
void json_object_begin(JsonWriter *w, const char *key);
void json_object_end(JsonWriter *w);
void json_array_begin(JsonWriter *w, const char *key);
void json_array_end(JsonWriter *w);
void json_string(JsonWriter *w, const char *key, const char *value);
void json_string_bytes(JsonWriter *w, const char *key, const char *value, size_t bytes);
void json_double(JsonWriter *w, const char *key, double value);
/* A value known to fp32 precision only: the fewest digits that read back as the same float. */
void json_float(JsonWriter *w, const char *key, float value);
void json_int(JsonWriter *w, const char *key, int64_t value);
void json_bool(JsonWriter *w, const char *key, bool value);
void json_null(JsonWriter *w, const char *key);

/* True if all fitted and every object and array is closed. */
bool json_writer_done(const JsonWriter *w);

/* ---- parser ---- */

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonType;

typedef struct JsonNode {
    JsonType type;
    bool boolean;
    bool is_int;      /* the number is written without fraction and exponent and fits an int64 */
    double number;    /* number, also of an integer */
    int64_t integer;  /* if is_int */
    const char *key;  /* in an object: its name, unescaped, NUL-terminated; else NULL */
    size_t key_bytes; /* length of key, which may contain NUL */
    const char *text; /* string: unescaped, NUL-terminated UTF-8 */
    size_t bytes;     /* length of text */
    size_t count;     /* elements of an array or object */
    size_t end;       /* index in nodes behind this value and all inside it */
} JsonNode;

/* Zero it before the first use; parsing again reuses its memory. nodes[0] is the whole value. */
typedef struct {
    JsonNode *nodes;
    size_t count, nodes_size;
    char *strings;
    size_t strings_size;
} JsonDocument;

/* Parses `bytes` bytes of text, which need no NUL. Errors name the byte, as in "byte 17: ...". The document
 * does not point into text. */
bool json_parse(JsonDocument *document, const char *text, size_t bytes, Error *err);
void json_free(JsonDocument *document);

/* The first child, or NULL if there is none; the next sibling inside `parent`, or NULL:
 * for (const JsonNode *c = json_first(&d, n); c; c = json_next(&d, n, c)) */
const JsonNode *json_first(const JsonDocument *document, const JsonNode *parent);
const JsonNode *json_next(const JsonDocument *document, const JsonNode *parent, const JsonNode *child);

/* The member of an object with this name (the first if it stands twice), or NULL; NULL if parent is no
 * object. */
const JsonNode *json_get(const JsonDocument *document, const JsonNode *parent, const char *key);
#endif
