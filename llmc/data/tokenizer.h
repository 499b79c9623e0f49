/* tokenizer.h: text to token ids and back: byte-level, or byte pairs as GPT-2 merges them.
 *
 * Byte-level: id = byte, 256 = end of text. Byte pairs: ids 0..255 are the bytes in the order of GPT-2's
 * alphabet (printable ones first), 256 + i is the i-th merge, and the last id is <|endoftext|> (50256 for
 * GPT-2), so ids are those of OpenAI's encoder, tiktoken (encode_ordinary) and transformers given the same
 * merges. Special tokens in the text are ordinary text. Any bytes can be encoded, and decoding the ids gives
 * exactly these bytes.
 *
 * A Tokenizer never changes once it is open and may be shared by threads; a TokenEncoder belongs to one of
 * them. */
#ifndef LLMC_TOKENIZER_H
#define LLMC_TOKENIZER_H
#include "base/error.h"
#include <stddef.h>
#include <stdint.h>

typedef struct Tokenizer Tokenizer;

enum { TOKENIZER_BYTES = 256, TOKENIZER_VOCAB_MAX = 65535 /* ids are uint16 in token files */ };

/* spec: "byte"; "gpt2" (the merges in data/gpt2_vocab.bpe, fetched by data/gpt2_bpe.sh); or the path of a
 * merges file: GPT-2's vocab.bpe, a merges.txt, or what tokenizer_save wrote. One merge a line, "left right"
 * in GPT-2's byte-to-unicode alphabet, both known by then; a first line that starts with "#version" is
 * skipped. NULL with err (file, line, reason) if it cannot be read or is not of that form. */
Tokenizer *tokenizer_open(const char *spec, Error *err);

/* The same from the bytes of such a file; `name` stands for it in errors. */
Tokenizer *tokenizer_parse(const char *text, size_t bytes, const char *name, Error *err);

/* merges[i] = {left id, right id}, ids as above, count <= TOKENIZER_VOCAB_MAX - 257. NULL with err: no
 * memory, a pair with an id not below 256 + i, or one that spells what an earlier symbol spells. */
Tokenizer *tokenizer_from_merges(const uint16_t (*merges)[2], size_t count, Error *err);

void tokenizer_close(Tokenizer *tokenizer); /* NULL: nothing */

int tokenizer_vocab_size(const Tokenizer *tokenizer);
int tokenizer_end_of_text(const Tokenizer *tokenizer);
bool tokenizer_is_byte_level(const Tokenizer *tokenizer);

/* 32 bits that tell tokenizers apart (CRC-32C of kind and merges), never 0: 0 means unknown in token files.
 */
uint32_t tokenizer_fingerprint(const Tokenizer *tokenizer);

/* The bytes that an id stands for (valid until close) and their number; end of text is "<|endoftext|>".
 * NULL for an id outside the vocabulary. A character may be spread over several tokens. */
const char *tokenizer_decode(const Tokenizer *tokenizer, int id, size_t *bytes);

/* Writes the merges file (or the one line "byte"), aside and renamed when durable; tokenizer_open reads it
 * back. */
bool tokenizer_save(const Tokenizer *tokenizer, const char *path, Error *err);

/* The tokenizer file that 'train_gpt2 tokenize' leaves beside its token files: for "dir/x_train_000000.bin",
 * "dir/x_train_*.bin" or "dir/x_val_000000.bin" it is "dir/x.tokenizer". False if there is none. */
bool tokenizer_find_beside(const char *token_files, char *path, size_t path_bytes);

/* --- encoding: token_encoder.c --- */

/* Growing array of ids; start with {0}, free(ids) when done. */
typedef struct {
    uint16_t *ids;
    size_t count, capacity;
} Tokens;

bool tokens_append(Tokens *tokens, uint16_t id, Error *err); /* false: no memory */

/* Appends the ids of a whole text. False with err only if memory runs out. */
bool tokenizer_encode(const Tokenizer *tokenizer, const void *text, size_t bytes, Tokens *out, Error *err);

/* Encodes a stream: ids come out as soon as no later byte can change them, so that any cutting of a text into
 * feeds gives the same ids. Holds back at most PRETOKEN_BYTES_MAX (pretoken.h) bytes of text, mostly a few.
 */
typedef struct TokenEncoder TokenEncoder;
TokenEncoder *token_encoder_open(const Tokenizer *tokenizer,
                                 Error *err); /* keep the tokenizer open meanwhile */
bool token_encoder_feed(TokenEncoder *encoder, const void *text, size_t bytes, Tokens *out, Error *err);
bool token_encoder_finish(TokenEncoder *encoder, Tokens *out,
                          Error *err);           /* the document ends; ready for the next */
void token_encoder_close(TokenEncoder *encoder); /* NULL: nothing */
#endif
