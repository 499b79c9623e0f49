/* loader.h: batches of (input, target) token sequences from the token files (shards) that match a pattern.
 *
 * A shard of n tokens holds (n - 1) / T samples: window w is its tokens [wT, wT + T], input and target
 * shifted by one; a sample never crosses a shard. Samples have a global index 0, 1, 2, ... without end: index
 * / samples is the epoch, and within an epoch every window comes exactly once, in file order or, shuffled, in
 * the order of a permutation chosen by (seed, epoch). A batch is therefore a pure function of its first
 * index: any number of ranks may divide the indices among them, and resuming needs one counter. */
#ifndef LLMC_LOADER_H
#define LLMC_LOADER_H
#include "base/error.h"
#include <stdint.h>

typedef struct Loader Loader;

/* Opens all files that match the glob pattern, sorted by name, and checks each (token_file.h). vocab_size:
 * ids at or above it are refused, as are files whose header says they were made for a larger vocabulary; 0:
 * take any. NULL with err: nothing matches, a bad file, files of different tokenizers, no file with T + 1
 * tokens. */
Loader *loader_open(const char *pattern, int T, uint64_t seed, bool shuffle, int vocab_size, Error *err);
void loader_close(Loader *loader); /* NULL: nothing */

/* Sets the vocabulary of which ids must be, when it was not known at loader_open; > 0. */
void loader_set_vocab_size(Loader *loader, int vocab_size);

/* Fills inputs and targets (both (count, T), row-major) with the samples first, first + 1, ...; false with
 * err (file and position) if a file cannot be read or holds an id outside the vocabulary. Tells the kernel to
 * read ahead the batch that comes next if first grows by the same step as it did last time. One caller at a
 * time. */
bool loader_batch(Loader *loader, uint64_t first, int count, int32_t *inputs, int32_t *targets, Error *err);

uint64_t loader_samples(const Loader *loader); /* in one epoch; at least 1 */
uint64_t loader_tokens(const Loader *loader);  /* in all files */
int loader_shards(const Loader *loader);

/* Of the files: the largest vocabulary and the fingerprint (tokenizer.h) in their headers; 0: they do not
 * say. */
int loader_vocab_size(const Loader *loader);
uint32_t loader_fingerprint(const Loader *loader);

/* Where a sample lies: its epoch, the path of its shard (valid until loader_close) and its first token there.
 */
typedef struct {
    uint64_t epoch;
    const char *path;
    uint64_t token;
} LoaderPlace;
LoaderPlace loader_place(const Loader *loader, uint64_t sample);
#endif
