/* pretoken.h: GPT-2's pre-tokenisation: the pieces of text inside which byte pairs may merge.
 *
 * The pattern (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, its encoder):
 *   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * written by hand, so that it can run over a stream. Text is UTF-8; a byte that is no part of valid UTF-8 (RFC 3629:
 * no surrogates, nothing overlong) is a character of its own that is neither letter, number nor space.
 * Every byte belongs to exactly one pre-token: joined, the pre-tokens are the text. */
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

/* The length of the pre-token at the start of text[0..bytes), or 0 if more text could change it. last: no more text
 * will come; then it is 0 only for bytes = 0. */
size_t pretoken_next(const PretokenClasses *classes, const uint8_t *text, size_t bytes, bool last);
#endif
