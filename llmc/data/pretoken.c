/* pretoken.c: see pretoken.h. */
#include "data/pretoken.h"
#include "base/check.h"
#include "data/unicode_tables.h"
#include <stdlib.h>
#include <string.h>

enum { OTHER, LETTER, NUMBER, SPACE, WIDE /* not ASCII: look closer */, NEED_MORE };

static const uint8_t ascii_classes[256] = {
    ['\t'] = SPACE, ['\n'] = SPACE, ['\v'] = SPACE, ['\f'] = SPACE, ['\r'] = SPACE, [' '] = SPACE,
    ['0'] = NUMBER, ['1'] = NUMBER, ['2'] = NUMBER, ['3'] = NUMBER, ['4'] = NUMBER, ['5'] = NUMBER,
    ['6'] = NUMBER, ['7'] = NUMBER, ['8'] = NUMBER, ['9'] = NUMBER,
#define L4(c) [(c)] = LETTER, [(c) + 1] = LETTER, [(c) + 2] = LETTER, [(c) + 3] = LETTER
    L4('A'),        L4('E'),        L4('I'),        L4('M'),        L4('Q'),        L4('U'),
    ['Y'] = LETTER, ['Z'] = LETTER, L4('a'),        L4('e'),        L4('i'),        L4('m'),
    L4('q'),        L4('u'),        ['y'] = LETTER, ['z'] = LETTER,
#undef L4
#define W4(c)  [(c)] = WIDE, [(c) + 1] = WIDE, [(c) + 2] = WIDE, [(c) + 3] = WIDE
#define W32(c) W4(c), W4(c + 4), W4(c + 8), W4(c + 12), W4(c + 16), W4(c + 20), W4(c + 24), W4(c + 28)
    W32(128),       W32(160),       W32(192),       W32(224)
#undef W32
#undef W4
};

static void set_class(PretokenClasses *classes, const uint32_t (*ranges)[2], size_t count, int class) {
    for (size_t i = 0; i < count; i++)
        for (uint32_t code = ranges[i][0]; code <= ranges[i][1]; code++)
            classes->four[code / 4] |= (uint8_t)(class << (2 * (code % 4)));
}

void pretoken_classes_init(PretokenClasses *classes) {
    memset(classes, 0, sizeof *classes);
    set_class(classes, unicode_letters, sizeof unicode_letters / sizeof *unicode_letters, LETTER);
    set_class(classes, unicode_numbers, sizeof unicode_numbers / sizeof *unicode_numbers, NUMBER);
    set_class(classes, unicode_spaces, sizeof unicode_spaces / sizeof *unicode_spaces, SPACE);
}

/* The class of the character at p[0], which is not ASCII, and its length: OTHER and 1 for an invalid byte,
 * NEED_MORE if the text ends inside what may become a valid character. */
static int wide_class(const PretokenClasses *classes, const uint8_t *p, size_t bytes, bool last,
                      size_t *length) {
    *length = 1;
    size_t need = p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;
    if (!need) return OTHER;
    uint32_t code = p[0] & (0xffu >> (need + 1));
    for (size_t i = 1; i < need; i++) {
        if (i == bytes) return last ? OTHER : NEED_MORE;
        uint8_t low = 0x80, high = 0xbf;
        if (i == 1 && p[0] == 0xe0) low = 0xa0;  /* overlong */
        if (i == 1 && p[0] == 0xed) high = 0x9f; /* surrogates */
        if (i == 1 && p[0] == 0xf0) low = 0x90;  /* overlong */
        if (i == 1 && p[0] == 0xf4) high = 0x8f; /* above U+10FFFF */
        if (p[i] < low || p[i] > high) return OTHER;
        code = code << 6 | (p[i] & 0x3fu);
    }
    *length = need;
    return classes->four[code / 4] >> (2 * (code % 4)) & 3;
}

static inline int class_at(const PretokenClasses *classes, const uint8_t *text, size_t at, size_t bytes,
                           bool last, size_t *length) {
    *length = 1;
    int class = ascii_classes[text[at]];
    return class == WIDE ? wide_class(classes, text + at, bytes - at, last, length) : class;
}

/* Length of 's 't 'm 'd 're 've 'll at text[0] == '\'', 0: none; *unsure: more text is needed to tell. */
static size_t contraction(const uint8_t *text, size_t bytes, bool *unsure) {
    *unsure = bytes < 2;
    if (bytes < 2) return 0;
    uint8_t a = text[1];
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (a != 'r' && a != 'v' && a != 'l') return 0;
    *unsure = bytes < 3;
    return bytes >= 3 && text[2] == (a == 'l' ? 'l' : 'e') ? 3 : 0;
}

/* Where the run of characters of one class that covers text[0..at) ends; 0: not in this text. */
static size_t run_end(const PretokenClasses *classes, const uint8_t *text, size_t at, size_t bytes, bool last,
                      int class) {
    size_t length;
    for (; at < bytes && at < PRETOKEN_BYTES_MAX; at += length) {
        int found = class_at(classes, text, at, bytes, last, &length);
        if (found != class) return found == NEED_MORE ? 0 : at;
    }
    return last || at >= PRETOKEN_BYTES_MAX ? at : 0;
}

/* \s+(?!\S)|\s+: a run before other text leaves its last character to that text, unless it is the only one.
 */
static size_t space_run(const PretokenClasses *classes, const uint8_t *text, size_t bytes, bool last) {
    size_t at = 0, final = 0, length;
    while (at < bytes && at < PRETOKEN_BYTES_MAX) {
        int class = class_at(classes, text, at, bytes, last, &length);
        if (class == NEED_MORE) return 0;
        if (class != SPACE) return final ? final : at;
        final = at;
        at += length;
    }
    return last || at >= PRETOKEN_BYTES_MAX ? at : 0;
}

size_t pretoken_next(const PretokenClasses *classes, const uint8_t *text, size_t bytes, bool last) {
    if (!bytes) return 0;
    if (text[0] == '\'') {
        bool unsure;
        size_t length = contraction(text, bytes, &unsure);
        if (length) return length;
        if (unsure && !last) return 0;
    }
    size_t at = text[0] == ' ', length;
    if (at == bytes) return last ? 1 : 0;
    int class = class_at(classes, text, at, bytes, last, &length);
    if (class == NEED_MORE) return 0;
    if (class == SPACE) return space_run(classes, text, bytes, last);
    return run_end(classes, text, at + length, bytes, last, class);
}

PretokenStream *pretoken_stream_open(void) {
    PretokenStream *stream = calloc(1, sizeof *stream);
    if (!stream) return NULL;
    stream->capacity = 2 * PRETOKEN_PIECE_BYTES;
    stream->text = malloc(stream->capacity + PRETOKEN_PAD_BYTES);
    if (!stream->text) {
        free(stream);
        return NULL;
    }
    pretoken_classes_init(&stream->classes);
    return stream;
}

void pretoken_stream_close(PretokenStream *stream) {
    if (!stream) return;
    free(stream->text);
    free(stream);
}

bool pretoken_stream_append(PretokenStream *stream, const uint8_t *text, size_t bytes) {
    CHECK_OP(bytes, <=, PRETOKEN_PIECE_BYTES);
    stream->used -= stream->at;
    memmove(stream->text, stream->text + stream->at, stream->used);
    stream->at = 0;
    if (stream->used + bytes > stream->capacity) {
        uint8_t *grown = realloc(stream->text, 2 * stream->capacity + PRETOKEN_PAD_BYTES);
        if (!grown) return false;
        stream->text = grown;
        stream->capacity *= 2;
    }
    memcpy(stream->text + stream->used, text, bytes);
    stream->used += bytes;
    memset(stream->text + stream->used, 0, PRETOKEN_PAD_BYTES);
    return true;
}

size_t pretoken_stream_next(PretokenStream *stream, bool last, const uint8_t **text) {
    size_t left = stream->used - stream->at;
    if (left < stream->retry_at && !last) return 0;
    *text = stream->text + stream->at;
    size_t bytes = pretoken_next(&stream->classes, *text, left, last);
    stream->at += bytes;
    /* Looking again only when there is twice as much keeps a long pre-token that comes in small pieces
     * linear. */
    stream->retry_at = bytes ? 0 : 2 * left < PRETOKEN_BYTES_MAX ? 2 * left : PRETOKEN_BYTES_MAX;
    return bytes;
}
