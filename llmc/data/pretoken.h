/* pretoken.h: GPT-2's pre-tokenisation: the pieces of text inside which byte pairs may merge.
 *
 * The pattern (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, its encoder):
 *   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * written by hand, so that it can run over a stream. Text is UTF-8; a byte that is no part of valid UTF-8
 * (RFC 3629: no surrogates, nothing overlong) is a character of its own that is neither letter, number nor
 * space. Every byte belongs to exactly one pre-token: joined, the pre-tokens are the text. */
#ifndef LLMC_PRETOKEN_H
#define LLMC_PRETOKEN_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A longer run is cut here (at the next character), which bounds memory for any input. */
enum { PRETOKEN_BYTES_MAX = 1 << 22 };

/* Two bits of class for each code point: about 270 KB, filled from the ranges of unicode_tables.h. */
typedef struct {
    uint8_t four[0x110000 / 4];
} PretokenClasses;
void pretoken_classes_init(PretokenClasses *classes);

/* The length of the pre-token at the start of text[0..bytes), or 0 if more text could change it. last: no
 * more text will come; then it is 0 only for bytes = 0. */
size_t pretoken_next(const PretokenClasses *classes, const uint8_t *text, size_t bytes, bool last);

/* The pre-tokens of a text that comes in pieces: append a piece (at most PRETOKEN_PIECE_BYTES), take
 * pre-tokens until there is none, append the next; after the last piece take with last = true. Any cutting of
 * a text into pieces gives the same pre-tokens. Memory: at most a little more than twice PRETOKEN_BYTES_MAX.
 */
enum { PRETOKEN_PIECE_BYTES = 1 << 16, PRETOKEN_PAD_BYTES = 32 };
typedef struct {
    PretokenClasses classes;
    uint8_t *text; /* PRETOKEN_PAD_BYTES more are readable behind it */
    size_t used, at, capacity;
    size_t retry_at; /* with fewer bytes than this the first pre-token is not complete */
} PretokenStream;

PretokenStream *pretoken_stream_open(void);                                             /* NULL: no memory */
void pretoken_stream_close(PretokenStream *stream);                                     /* NULL: nothing */
bool pretoken_stream_append(PretokenStream *stream, const uint8_t *text, size_t bytes); /* false: no memory */
/* The length of the next pre-token, *text its start (readable for PRETOKEN_PAD_BYTES, valid until the next
 * append); 0: none yet, or with last none at all. */
size_t pretoken_stream_next(PretokenStream *stream, bool last, const uint8_t **text);
#endif
