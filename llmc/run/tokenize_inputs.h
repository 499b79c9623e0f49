/* tokenize_inputs.h: which files a tokenize run reads, and their bytes one after another.
 *
 * A folder stands for the regular files in it and below, by name; hidden ones (.git, .cache) and links to
 * folders are passed over. What does not look like text is passed over with a word when found in a folder, an
 * error when named. */
#ifndef LLMC_TOKENIZE_INPUTS_H
#define LLMC_TOKENIZE_INPUTS_H
#include "base/error.h"
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct {
    char *path;
    uint64_t bytes;
} TokenizeInput;

typedef struct {
    TokenizeInput *items;
    size_t count, capacity;
    uint64_t bytes;     /* of all; stdin not included unless it was spooled */
    FILE *spool;        /* stdin's text, when it has to be read twice or its size be known; else NULL */
    size_t num_skipped; /* files of folders that are not text */
} TokenizeInputs;

/* Lists the inputs; start with {0}. spool_stdin: copies what comes from "-" to a temporary file that has no
 * name. False with err: not there, not readable, nothing found, no memory. Then, too, tokenize_inputs_close.
 */
bool tokenize_inputs_open(TokenizeInputs *inputs, const char *const *paths, size_t count, bool spool_stdin,
                          Error *err);
void tokenize_inputs_close(TokenizeInputs *inputs);

/* Input i from its first byte on; NULL with err. */
FILE *tokenize_input_open(const TokenizeInputs *inputs, size_t i, Error *err);
void tokenize_input_close(const TokenizeInputs *inputs, FILE *file);

/* Text has no byte of value 0 among its first TOKENIZE_HEAD_BYTES. */
enum { TOKENIZE_HEAD_BYTES = 8192 };
bool tokenize_is_text(const char *head, size_t bytes);
/* Sets err to what is to be said of an input that is not text; false. */
bool tokenize_not_text(const char *path, Error *err);
#endif
