/* bpe_train.h: learns the merges of a byte-pair tokenizer from text.
 *
 * Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016, on bytes and inside
 * GPT-2's pre-tokens: again and again the pair of symbols that is seen most often becomes a symbol. Of
 * equally frequent pairs the one with the lower ids wins, so the result depends only on how often each
 * pre-token occurs, not on order. A pair that would spell what a symbol already spells is passed over. */
#ifndef LLMC_BPE_TRAIN_H
#define LLMC_BPE_TRAIN_H
#include "data/tokenizer.h"

typedef struct BpeTrainer BpeTrainer;

enum { BPE_WORDS_MAX = 1000000, BPE_WORD_BYTES_MAX = 255 };

/* Counts up to words_max (at least 1) distinct pre-tokens, the first ones that come; longer ones than
 * BPE_WORD_BYTES_MAX are counted in pieces. That bounds memory for any text. NULL with err: no memory. */
BpeTrainer *bpe_train_open(size_t words_max, Error *err);
bool bpe_train_feed(BpeTrainer *trainer, const void *text, size_t bytes, Error *err);
bool bpe_train_end_document(BpeTrainer *trainer, Error *err);

/* Distinct pre-tokens counted, and how many occurrences of others were left out because there was no room. */
size_t bpe_train_words(const BpeTrainer *trainer);
uint64_t bpe_train_left_out(const BpeTrainer *trainer);

/* The tokenizer of vocab_size ids (bytes, merges, end of text; 257..TOKENIZER_VOCAB_MAX), or of fewer when no
 * pair is seen twice any more. Uses the counts up: only close may follow. */
Tokenizer *bpe_train_finish(BpeTrainer *trainer, int vocab_size, Error *err);
void bpe_train_close(BpeTrainer *trainer); /* NULL: nothing */
#endif
