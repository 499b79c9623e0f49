/* loader.c: see loader.h. */
#define _POSIX_C_SOURCE   200809L
#define _FILE_OFFSET_BITS 64
#include "data/loader.h"
#include "base/check.h"
#include "base/rng.h"
#include "data/token_file.h"
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A data set may have more shards than a process may have files, so shard s is open in slot s % SLOTS or not.
 */
enum { SLOTS = 64 };

typedef struct {
    char *path;
    uint64_t tokens;
    uint64_t first_window; /* windows in the shards before it */
} Shard;

struct Loader {
    int T, vocab_size;
    uint64_t seed;
    bool shuffle;
    Shard *shards;
    size_t shard_count;
    uint64_t samples, tokens;
    TokenFileInfo info; /* what the headers agree on */
    uint64_t last_first;
    uint16_t *window; /* (T + 1) */
    struct {
        int fd; /* -1: free */
        size_t shard;
    } slots[SLOTS];
};

static int compare_paths(const void *a, const void *b) {
    return strcmp(((const Shard *)a)->path, ((const Shard *)b)->path);
}

/* The paths that match, sorted by their bytes (glob's own order depends on the locale). */
static bool find_shards(Loader *loader, const char *pattern, Error *err) {
    glob_t found = {0};
    bool ok = false;
    int status = glob(pattern, GLOB_NOSORT, NULL, &found);
    if (status == GLOB_NOMATCH && access(pattern, F_OK) == 0) /* a name with a [ in it */
        status = glob(pattern, GLOB_NOSORT | GLOB_NOCHECK, NULL, &found);
    if (status == GLOB_NOSPACE) {
        error_set(err, "%s: no memory to list the files", pattern);
        goto out;
    }
    if (status != 0 || found.gl_pathc == 0) {
        error_set(err, "%s: no such token file (make one with 'train_gpt2 tokenize')", pattern);
        goto out;
    }
    loader->shards = calloc(found.gl_pathc, sizeof *loader->shards);
    if (!loader->shards) {
        error_set(err, "%s: no memory to list the files", pattern);
        goto out;
    }
    for (size_t i = 0; i < found.gl_pathc; i++) {
        loader->shards[i].path = strdup(found.gl_pathv[i]);
        if (!loader->shards[i].path) {
            error_set(err, "%s: no memory to list the files", pattern);
            goto out;
        }
        loader->shard_count++;
    }
    qsort(loader->shards, loader->shard_count, sizeof *loader->shards, compare_paths);
    ok = true;
out:
    globfree(&found);
    return ok;
}

/* Checks one shard's header against the model's vocabulary and the other shards, and counts its windows. */
static bool add_shard(Loader *loader, Shard *shard, Error *err) {
    TokenFileInfo info, *all = &loader->info;
    int fd;
    if (!token_file_open(shard->path, &fd, &info, err)) return false;
    close(fd);
    if (loader->vocab_size && info.vocab_size > loader->vocab_size)
        return error_set(err,
                         "%s: made with a vocabulary of %d, but the model has one of %d (tokenize the text "
                         "again with the model's tokenizer)",
                         shard->path, info.vocab_size, loader->vocab_size);
    if (info.fingerprint && all->fingerprint && info.fingerprint != all->fingerprint)
        return error_set(err,
                         "%s: made with another tokenizer than %s (tokenize all files with one tokenizer)",
                         shard->path, loader->shards[0].path);
    if (info.fingerprint) all->fingerprint = info.fingerprint;
    if (info.vocab_size > all->vocab_size) all->vocab_size = info.vocab_size;
    shard->tokens = info.tokens;
    shard->first_window = loader->samples;
    loader->tokens += info.tokens;
    if (info.tokens) loader->samples += (info.tokens - 1) / (uint64_t)loader->T;
    return true;
}

Loader *loader_open(const char *pattern, int T, uint64_t seed, bool shuffle, int vocab_size, Error *err) {
    CHECK(T > 0 && T < INT_MAX && vocab_size >= 0);
    Loader *loader = calloc(1, sizeof *loader);
    if (!loader) {
        error_set(err, "%s: no memory for the loader", pattern);
        return NULL;
    }
    *loader = (Loader){.T = T, .vocab_size = vocab_size, .seed = seed, .shuffle = shuffle};
    for (int i = 0; i < SLOTS; i++) loader->slots[i].fd = -1;
    loader->window = malloc(((size_t)T + 1) * sizeof *loader->window);
    if (!loader->window) {
        error_set(err, "%s: no memory for a sequence of %d tokens (lower --sequence)", pattern, T);
        goto fail;
    }
    if (!find_shards(loader, pattern, err)) goto fail;
    for (size_t i = 0; i < loader->shard_count; i++)
        if (!add_shard(loader, &loader->shards[i], err)) goto fail;
    if (loader->samples == 0) {
        error_set(
            err,
            "%s: %llu tokens are too few for one sequence of %d (take more text, or a shorter --sequence)",
            pattern, (unsigned long long)loader->tokens, T);
        goto fail;
    }
    return loader;
fail:
    loader_close(loader);
    return NULL;
}

void loader_close(Loader *loader) {
    if (!loader) return;
    for (int i = 0; i < SLOTS; i++)
        if (loader->slots[i].fd >= 0) close(loader->slots[i].fd);
    for (size_t i = 0; i < loader->shard_count; i++) free(loader->shards[i].path);
    free(loader->shards);
    free(loader->window);
    free(loader);
}

/* The shard and the first token of a sample. */
static size_t locate(const Loader *loader, uint64_t sample, uint64_t *token) {
    uint64_t epoch = sample / loader->samples, window = sample % loader->samples;
    if (loader->shuffle)
        window = rng_permute(loader->seed, RNG_STREAM(RNG_SHUFFLE, epoch), loader->samples, window);
    size_t low = 0, high = loader->shard_count; /* the last shard whose first_window <= window */
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (loader->shards[middle].first_window <= window)
            low = middle;
        else
            high = middle;
    }
    *token = (window - loader->shards[low].first_window) * (uint64_t)loader->T;
    return low;
}

static bool open_shard(Loader *loader, size_t shard, int *fd, Error *err) {
    TokenFileInfo info;
    size_t slot = shard % SLOTS;
    if (loader->slots[slot].fd >= 0 && loader->slots[slot].shard != shard) {
        close(loader->slots[slot].fd);
        loader->slots[slot].fd = -1;
    }
    if (loader->slots[slot].fd < 0) {
        const Shard *s = &loader->shards[shard];
        if (!token_file_open(s->path, &loader->slots[slot].fd, &info, err)) return false;
        loader->slots[slot].shard = shard;
        if (info.tokens != s->tokens) {
            close(loader->slots[slot].fd);
            loader->slots[slot].fd = -1;
            return error_set(err, "%s: changed while it was in use: %llu tokens, it had %llu (start again)",
                             s->path, (unsigned long long)info.tokens, (unsigned long long)s->tokens);
        }
    }
    *fd = loader->slots[slot].fd;
    return true;
}

static bool check_ids(const Loader *loader, size_t shard, uint64_t token, Error *err) {
    unsigned largest = 0;
    for (int t = 0; t <= loader->T; t++) largest = loader->window[t] > largest ? loader->window[t] : largest;
    if (!loader->vocab_size || largest < (unsigned)loader->vocab_size) return true;
    int t = 0;
    while (loader->window[t] < loader->vocab_size) t++;
    return error_set(
        err,
        "%s: token %llu has id %d, outside the vocabulary of %d (tokenize the text again with the "
        "model's tokenizer)",
        loader->shards[shard].path, (unsigned long long)(token + (uint64_t)t), loader->window[t],
        loader->vocab_size);
}

bool loader_batch(Loader *loader, uint64_t first, int count, int32_t *inputs, int32_t *targets, Error *err) {
    CHECK(count >= 0);
    size_t T = (size_t)loader->T;
    for (int b = 0; b < count; b++) {
        uint64_t token;
        int fd;
        size_t shard = locate(loader, first + (uint64_t)b, &token);
        if (!open_shard(loader, shard, &fd, err)) return false;
        if (!token_file_read(fd, loader->shards[shard].path, token, T + 1, loader->window, err)) return false;
        if (!check_ids(loader, shard, token, err)) return false;
        for (size_t t = 0; t < T; t++) {
            inputs[(size_t)b * T + t] = loader->window[t];
            targets[(size_t)b * T + t] = loader->window[t + 1];
        }
    }
    uint64_t step = first > loader->last_first ? first - loader->last_first : (uint64_t)count;
    loader->last_first = first;
    for (int b = 0; b < count;
         b++) { /* only advice: errors here are found, and told, when the batch is read */
        uint64_t token;
        Error ignored;
        int fd;
        size_t shard = locate(loader, first + step + (uint64_t)b, &token);
        if (open_shard(loader, shard, &fd, &ignored))
            posix_fadvise(fd, (off_t)(TOKEN_FILE_HEADER_BYTES + 2 * token), (off_t)(2 * (T + 1)),
                          POSIX_FADV_WILLNEED);
    }
    return true;
}

void loader_set_vocab_size(Loader *loader, int vocab_size) {
    CHECK(vocab_size > 0);
    loader->vocab_size = vocab_size;
}

uint64_t loader_samples(const Loader *loader) {
    return loader->samples;
}
uint64_t loader_tokens(const Loader *loader) {
    return loader->tokens;
}
int loader_shards(const Loader *loader) {
    return (int)loader->shard_count;
}
int loader_vocab_size(const Loader *loader) {
    return loader->info.vocab_size;
}
uint32_t loader_fingerprint(const Loader *loader) {
    return loader->info.fingerprint;
}

LoaderPlace loader_place(const Loader *loader, uint64_t sample) {
    LoaderPlace place = {.epoch = sample / loader->samples};
    size_t shard = locate(loader, sample, &place.token);
    place.path = loader->shards[shard].path;
    return place;
}
