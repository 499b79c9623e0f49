/* tokenize.c: see tokenize.h. Text flows from the inputs through one encoder into the two splits, each a row
 * of token files. */
#define _POSIX_C_SOURCE 200809L
#include "run/tokenize.h"
#include "base/check.h"
#include "base/log.h"
#include "data/bpe_train.h"
#include "data/token_file.h"
#include "data/tokenizer.h"
#include "run/signals.h"
#include "run/tokenize_inputs.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK_BYTES = 1 << 20, SHARD_TOKENS = 100000000, SHARDS_MAX = 1000000 };
static const double progress_seconds = 5;

/* --- the splits: rows of token files --- */

typedef struct {
    const char *output, *name; /* OUTPUT_NAME_000000.bin */
    TokenFileWriter writer;
    bool is_open;
    int shards; /* finished */
    uint64_t tokens;
} Split;

static bool shard_path(char path[FILE_PATH_BYTES], const Split *split, int shard, Error *err) {
    int n = snprintf(path, FILE_PATH_BYTES, "%s_%s_%06d.bin", split->output, split->name, shard);
    return (n > 0 && n < FILE_PATH_BYTES) || error_set(err, "%.200s...: the path is too long", split->output);
}

static bool split_finish_shard(Split *split, Error *err) {
    if (!split->is_open) return true;
    uint64_t tokens = split->writer.info.tokens;
    char path[FILE_PATH_BYTES];
    memcpy(path, split->writer.file.path, sizeof path);
    if (!token_file_writer_commit(&split->writer, err)) return false;
    split->is_open = false;
    split->shards++;
    log_info("wrote %s: %llu tokens, %llu bytes", path, (unsigned long long)tokens,
             (unsigned long long)(TOKEN_FILE_HEADER_BYTES + 2 * tokens));
    return true;
}

static bool split_write(Split *split, const Tokenizer *tokenizer, uint64_t shard_tokens, const uint16_t *ids,
                        size_t count, Error *err) {
    char path[FILE_PATH_BYTES];
    while (count) {
        if (split->is_open && split->writer.info.tokens == shard_tokens && !split_finish_shard(split, err))
            return false;
        if (!split->is_open) {
            if (split->shards == SHARDS_MAX)
                return error_set(err, "%s: more than %d files (raise --shard-tokens)", split->output,
                                 SHARDS_MAX);
            if (!shard_path(path, split, split->shards, err)) return false;
            split->is_open = true; /* also if it fails: then it is aborted */
            if (!token_file_writer_open(&split->writer, path, tokenizer_vocab_size(tokenizer),
                                        tokenizer_fingerprint(tokenizer), err))
                return false;
        }
        uint64_t room = shard_tokens - split->writer.info.tokens;
        size_t n = count < room ? count : (size_t)room;
        if (!token_file_writer_write(&split->writer, ids, n, err)) return false;
        split->tokens += n;
        ids += n;
        count -= n;
    }
    return true;
}

/* After a failure: what this run made goes again. */
static void split_undo(Split *split) {
    char path[FILE_PATH_BYTES];
    Error ignored;
    if (split->is_open) token_file_writer_abort(&split->writer);
    for (int shard = 0; shard < split->shards; shard++)
        if (shard_path(path, split, shard, &ignored)) unlink(path);
}

/* Shards behind the last one are an earlier run's; with this run's they would be a mixture. */
static bool split_remove_stale(const Split *split, Error *err) {
    char path[FILE_PATH_BYTES];
    for (int shard = split->shards;; shard++) {
        if (!shard_path(path, split, shard, err)) return false;
        if (!file_exists(path)) return true;
        if (unlink(path) != 0) return file_error(err, path, "remove this file of an earlier run");
        log_info("removed %s of an earlier run", path);
    }
}

/* --- the text --- */

typedef struct {
    const TokenizeOptions *options;
    TokenizeInputs inputs;
    Tokenizer *tokenizer;
    TokenEncoder *encoder; /* NULL: the text goes to the trainer */
    BpeTrainer *trainer;
    Tokens tokens; /* encoded, not yet written */
    Split val, train;
    uint64_t val_bytes;        /* so many bytes at the start are for validation */
    uint64_t bytes, documents; /* seen so far */
    bool in_document;
    int newlines; /* just seen, 0 or 1 */
    double started, told;
    char *chunk; /* (CHUNK_BYTES) */
} Run;

/* Writes the encoded tokens to the split whose turn it is. */
static bool flush(Run *run, Error *err) {
    const TokenizeOptions *o = run->options;
    uint64_t shard_tokens = o->shard_tokens ? o->shard_tokens : SHARD_TOKENS;
    size_t count = run->tokens.count, val = 0;
    if (o->val_tokens) {
        uint64_t left = o->val_tokens - run->val.tokens;
        val = count < left ? count : (size_t)left;
    } else if (run->bytes <= run->val_bytes) {
        val = count;
    }
    run->tokens.count = 0;
    return split_write(&run->val, run->tokenizer, shard_tokens, run->tokens.ids, val, err) &&
           split_write(&run->train, run->tokenizer, shard_tokens, run->tokens.ids + val, count - val, err);
}

static bool begin_document(Run *run, Error *err) {
    run->in_document = true;
    run->documents++;
    return run->trainer || tokens_append(&run->tokens, (uint16_t)tokenizer_end_of_text(run->tokenizer), err);
}

static bool end_document(Run *run, Error *err) {
    run->newlines = 0;
    if (!run->in_document) return true;
    run->in_document = false;
    return run->trainer ? bpe_train_end_document(run->trainer, err)
                        : token_encoder_finish(run->encoder, &run->tokens, err);
}

/* Where the document that text[0..bytes) goes on with ends: behind the first two newlines in a row, or bytes.
 */
static size_t document_bytes(Run *run, const char *text, size_t bytes, bool *ends) {
    *ends = false;
    if (!run->options->blank_line_documents) return bytes;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == '\r') continue; /* of a line end in the manner of Windows */
        run->newlines = text[i] == '\n' ? run->newlines + 1 : 0;
        *ends = run->newlines == 2;
        if (*ends) return i + 1;
    }
    return bytes;
}

static bool feed(Run *run, const char *text, size_t bytes, Error *err) {
    while (bytes) {
        bool ends, encoding = !run->trainer;
        uint64_t val_left =
            encoding && run->bytes < run->val_bytes ? run->val_bytes - run->bytes : UINT64_MAX;
        size_t n = document_bytes(run, text, bytes < val_left ? bytes : (size_t)val_left, &ends);
        if (!run->in_document && !begin_document(run, err)) return false;
        bool ok = encoding ? token_encoder_feed(run->encoder, text, n, &run->tokens, err)
                           : bpe_train_feed(run->trainer, text, n, err);
        if (!ok) return false;
        run->bytes += n;
        text += n;
        bytes -= n;
        if (ends && !end_document(run, err)) return false;
        bool full = run->bytes == run->val_bytes || run->tokens.count >= CHUNK_BYTES;
        if (encoding && full && !flush(run, err)) return false;
    }
    return true;
}

static void tell_progress(Run *run) {
    double now = log_seconds(), seconds = now - run->started, done = (double)run->bytes;
    if (now - run->told < progress_seconds) return;
    run->told = now;
    const char *what = run->trainer ? "counting words" : "tokenizing";
    if (run->inputs.bytes >= run->bytes)
        log_info("%s: %.0f%% of %.2f GB, %.0f MB/s, %.0f s left", what,
                 100 * done / (double)run->inputs.bytes, 1e-9 * (double)run->inputs.bytes,
                 1e-6 * done / seconds, seconds * ((double)run->inputs.bytes - done) / done);
    else
        log_info("%s: %.2f GB, %.0f MB/s", what, 1e-9 * done, 1e-6 * done / seconds);
}

static bool feed_input(Run *run, size_t i, Error *err) {
    const char *path = run->inputs.items[i].path;
    FILE *file = tokenize_input_open(&run->inputs, i, err);
    if (!file) return false;
    bool ok = true, is_first = true;
    while (ok) {
        size_t bytes = fread(run->chunk, 1, CHUNK_BYTES, file);
        if (!bytes && ferror(file)) ok = file_error(err, path, "read");
        if (!bytes) break;
        if (is_first && !tokenize_is_text(run->chunk, bytes))
            ok = tokenize_not_text(path, err);
        else
            ok = feed(run, run->chunk, bytes, err);
        if (ok && signals_stop())
            ok = error_set(err, "stopped by %s: no token file is written", signals_stop());
        is_first = false;
        tell_progress(run);
    }
    tokenize_input_close(&run->inputs, file);
    return ok && end_document(run, err);
}

/* All inputs once, to the trainer or to the splits. */
static bool feed_all(Run *run, Error *err) {
    run->bytes = run->documents = 0;
    run->started = run->told = log_seconds();
    for (size_t i = 0; i < run->inputs.count; i++)
        if (!feed_input(run, i, err)) return false;
    if (!run->bytes)
        return error_set(err, "%s: no text in it%s", run->inputs.items[0].path,
                         run->inputs.count > 1 ? " or in the other inputs" : "");
    return run->trainer || flush(run, err);
}

/* --- the run --- */

static bool train_tokenizer(Run *run, Error *err) {
    int vocab_size = run->options->train_bpe;
    run->trainer = bpe_train_open(BPE_WORDS_MAX, err);
    if (!run->trainer || !feed_all(run, err)) return false;
    if (bpe_train_left_out(run->trainer))
        log_warn(
            "more than %d distinct words: %llu later occurrences of new ones do not count for the tokenizer",
            BPE_WORDS_MAX, (unsigned long long)bpe_train_left_out(run->trainer));
    run->tokenizer = bpe_train_finish(run->trainer, vocab_size, err);
    if (!run->tokenizer) return false;
    log_info("trained a tokenizer of %d tokens on %zu distinct words in %.1f s",
             tokenizer_vocab_size(run->tokenizer), bpe_train_words(run->trainer),
             log_seconds() - run->started);
    if (tokenizer_vocab_size(run->tokenizer) < vocab_size)
        log_warn("the text has not enough repetition for %d tokens", vocab_size);
    bpe_train_close(run->trainer);
    run->trainer = NULL;
    return true;
}

static bool check_options(const TokenizeOptions *o, Error *err) {
    if (!o->output || !o->output[0]) return error_set(err, "no output (name a prefix for the token files)");
    if (o->train_bpe && (o->train_bpe < TOKENIZER_BYTES + 1 || o->train_bpe > TOKENIZER_VOCAB_MAX))
        return error_set(err, "--train-bpe %d: a vocabulary has %d to %d tokens", o->train_bpe,
                         TOKENIZER_BYTES + 1, TOKENIZER_VOCAB_MAX);
    if (!(o->val_fraction >= 0 && o->val_fraction < 1))
        return error_set(err, "--val-fraction %g: must be at least 0 and below 1", o->val_fraction);
    if (o->shard_tokens > TOKEN_FILE_TOKENS_MAX)
        return error_set(err, "--shard-tokens %llu: a token file holds at most %d",
                         (unsigned long long)o->shard_tokens, TOKEN_FILE_TOKENS_MAX);
    return true;
}

/* Checks what only the whole text tells, and writes the ends of both splits and the tokenizer. */
static bool finish(Run *run, Error *err) {
    const TokenizeOptions *o = run->options;
    char path[FILE_PATH_BYTES];
    if (!run->train.tokens)
        return error_set(
            err, "the text has only %llu tokens: none is left for training (set a lower --val-tokens)",
            (unsigned long long)run->val.tokens);
    if (!run->val.tokens && (o->val_fraction > 0))
        log_warn("the text is too short for validation data: none is written");
    int n = snprintf(path, sizeof path, "%s.tokenizer", o->output);
    if (n < 0 || n >= (int)sizeof path) return error_set(err, "%.200s...: the path is too long", o->output);
    if (!split_finish_shard(&run->val, err) || !split_finish_shard(&run->train, err)) return false;
    if (!tokenizer_save(run->tokenizer, path, err)) return false;
    if (!split_remove_stale(&run->val, err) || !split_remove_stale(&run->train, err)) return false;
    uint64_t tokens = run->val.tokens + run->train.tokens;
    size_t files = run->inputs.count;
    if (run->inputs.num_skipped) log_info("%zu files skipped: not text", run->inputs.num_skipped);
    log_info("%zu %s, %llu bytes, %llu %s: %llu tokens (%.2f bytes each) of a vocabulary of %d", files,
             files == 1 ? "file" : "files", (unsigned long long)run->bytes,
             (unsigned long long)run->documents, run->documents == 1 ? "document" : "documents",
             (unsigned long long)tokens, (double)run->bytes / (double)tokens,
             tokenizer_vocab_size(run->tokenizer));
    return true;
}

static bool begin(Run *run, Error *err) {
    const TokenizeOptions *o = run->options;
    char folder[FILE_PATH_BYTES];
    const char *slash = strrchr(o->output, '/');
    bool by_fraction = !o->val_tokens && o->val_fraction > 0;
    if (!tokenize_inputs_open(&run->inputs, o->inputs, o->num_inputs, by_fraction || o->train_bpe, err))
        return false;
    if (by_fraction) run->val_bytes = (uint64_t)(o->val_fraction * (double)run->inputs.bytes);
    if (slash && slash != o->output) {
        int n = snprintf(folder, sizeof folder, "%.*s", (int)(slash - o->output), o->output);
        if (n < 0 || n >= (int)sizeof folder)
            return error_set(err, "%.200s...: the path is too long", o->output);
        if (!file_make_directory(folder, err)) return false;
    }
    run->chunk = malloc(CHUNK_BYTES);
    return run->chunk || error_set(err, "no memory to read text");
}

bool tokenize_run(const TokenizeOptions *options, Error *err) {
    bool ok = false;
    const char *spec = options->tokenizer && options->tokenizer[0] ? options->tokenizer : "byte";
    if (!check_options(options, err)) return false;
    Run run = {.options = options,
               .val = {.output = options->output, .name = "val"},
               .train = {.output = options->output, .name = "train"}};
    signals_install(false);
    if (!begin(&run, err)) goto out;
    if (options->train_bpe)
        ok = train_tokenizer(&run, err);
    else
        ok = (run.tokenizer = tokenizer_open(spec, err)) != NULL;
    ok = ok && (run.encoder = token_encoder_open(run.tokenizer, err)) != NULL;
    ok = ok && feed_all(&run, err) && finish(&run, err);
    if (!ok) {
        split_undo(&run.val);
        split_undo(&run.train);
    }
out:
    bpe_train_close(run.trainer);
    token_encoder_close(run.encoder);
    tokenizer_close(run.tokenizer);
    tokenize_inputs_close(&run.inputs);
    free(run.tokens.ids);
    free(run.chunk);
    return ok;
}

/* --- and back --- */

/* Writes the text of `count` ids, the first of which is token `first` of the file. */
static bool decode_ids(const Tokenizer *tokenizer, const char *path, const uint16_t *ids, size_t count,
                       uint64_t first, Error *err) {
    for (size_t i = 0; i < count; i++) {
        size_t bytes;
        const char *text = tokenizer_decode(tokenizer, ids[i], &bytes);
        if (!text)
            return error_set(err,
                             "%s: token %llu has id %d, outside the vocabulary of %d (give its --tokenizer)",
                             path, (unsigned long long)(first + i), ids[i], tokenizer_vocab_size(tokenizer));
        if (ids[i] != tokenizer_end_of_text(tokenizer) && fwrite(text, 1, bytes, stdout) != bytes)
            return error_set_errno(err, "cannot write to stdout");
    }
    return true;
}

static Tokenizer *open_decoder(const char *path, const char *spec, const TokenFileInfo *info, Error *err) {
    char beside[FILE_PATH_BYTES];
    bool is_given = spec && spec[0];
    if (!is_given && !tokenizer_find_beside(path, beside, sizeof beside)) {
        error_set(err, "%s: no tokenizer beside it (name one with --tokenizer: gpt2, byte or a file)", path);
        return NULL;
    }
    Tokenizer *tokenizer = tokenizer_open(is_given ? spec : beside, err);
    if (tokenizer && info->fingerprint && info->fingerprint != tokenizer_fingerprint(tokenizer)) {
        error_set(err, "%s: made with another tokenizer than %s (name it with --tokenizer)", path,
                  is_given ? spec : beside);
        tokenizer_close(tokenizer);
        return NULL;
    }
    return tokenizer;
}

static bool decode_file(const char *path, const char *spec, Error *err) {
    static uint16_t ids[1 << 16];
    const size_t ids_max = sizeof ids / sizeof *ids;
    TokenFileInfo info;
    int fd;
    if (!token_file_open(path, &fd, &info, err)) return false;
    Tokenizer *tokenizer = open_decoder(path, spec, &info, err);
    bool ok = tokenizer != NULL;
    for (uint64_t at = 0; ok && at < info.tokens;) {
        size_t count = info.tokens - at < ids_max ? (size_t)(info.tokens - at) : ids_max;
        ok = token_file_read(fd, path, at, count, ids, err) &&
             decode_ids(tokenizer, path, ids, count, at, err);
        at += count;
    }
    close(fd);
    tokenizer_close(tokenizer);
    return ok;
}

bool tokenize_decode(const char *const *inputs, size_t num_inputs, const char *tokenizer, Error *err) {
    for (size_t i = 0; i < num_inputs; i++)
        if (!decode_file(inputs[i], tokenizer, err)) return false;
    return fflush(stdout) == 0 || error_set_errno(err, "cannot write to stdout");
}
