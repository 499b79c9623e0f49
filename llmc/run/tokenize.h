/* tokenize.h: `train_gpt2 tokenize`: text files and folders to token files, and token files back to text.
 *
 * Everything streams: memory does not grow with the text. Files appear under their names only when complete;
 * if a run fails, the files it had finished are removed again, for a part of a data set looks like a whole
 * one. */
#ifndef LLMC_TOKENIZE_H
#define LLMC_TOKENIZE_H
#include "base/error.h"
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *const *inputs; /* files, folders (with all text files in them, by name), "-" for stdin */
    size_t num_inputs;
    const char *output;    /* what the names of the files written start with: "data/tiny" */
    const char *tokenizer; /* spec for tokenizer_open; NULL or "": "byte" */
    int train_bpe; /* vocabulary size of a tokenizer to be trained on the inputs first; 0: use `tokenizer` */
    bool blank_line_documents; /* a document ends after each blank line (as llm.c cuts tiny Shakespeare), not
                                  only at the end of each file */
    double val_fraction;       /* of the bytes of text, those at the start, are for validation; 0: none */
    uint64_t val_tokens;       /* instead: exactly so many tokens at the start; 0: by val_fraction */
    uint64_t shard_tokens;     /* most tokens in one file; 0: 100 million */
} TokenizeOptions;

/* Writes OUTPUT_train_000000.bin, ..., OUTPUT_val_000000.bin, ... and OUTPUT.tokenizer; files of an earlier
 * run with the same output are replaced, and removed where this run has fewer. Every document begins with the
 * end-of-text token. Says on stderr what was skipped and what was written, and how far it is every few
 * seconds. */
bool tokenize_run(const TokenizeOptions *options, Error *err);

/* Writes the text of token files to stdout, end-of-text tokens left out, so that it is the text that was
 * tokenized. tokenizer: NULL or "": the one beside each file (OUTPUT.tokenizer). */
bool tokenize_decode(const char *const *inputs, size_t num_inputs, const char *tokenizer, Error *err);
#endif
