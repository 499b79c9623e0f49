/* token_encoder.c: text to ids: pre-tokens are cut from the stream and their byte pairs merged; see
 * tokenizer.h.
 *
 * Most pre-tokens of a text were seen before: a cache of one line of memory each answers them with their ids.
 * Others are merged by scanning for the lowest merge when short, with a heap (n log n) when long. */
#include "base/check.h"
#include "data/tokenizer_internal.h"
#include <stdlib.h>
#include <string.h>

enum {
    CACHE_BITS = 15,
    KEY_BYTES = PRETOKEN_PAD_BYTES, /* longest pre-token in the cache */
    VALUE_IDS = 15,                 /* most ids in the cache */
    SCAN_BYTES = 64                 /* longest pre-token merged by scanning */
};

/* 64 bytes: one cache line. The key is padded with zeros; bytes = 0: free. */
typedef struct {
    uint64_t key[KEY_BYTES / 8];
    uint8_t bytes, count;
    uint16_t ids[VALUE_IDS];
} CacheLine;
_Static_assert(sizeof(CacheLine) == 64, "a cache entry is one line of memory");

/* A long pre-token as a linked list of symbols, and a heap of the merges that may be possible. */
typedef struct {
    uint32_t *previous, *next; /* (symbols) */
    uint16_t *ids;             /* (symbols) */
    uint64_t *heap;            /* (2 symbols): merged id << 32 | place of its left symbol */
    size_t heap_count, capacity;
} MergeList;

struct TokenEncoder {
    const Tokenizer *tokenizer;
    PretokenStream *stream;
    CacheLine *cache;
    MergeList list;
};

static bool no_memory(Error *err) {
    return error_set(err, "no memory to encode text");
}

/* Room for `more` ids and VALUE_IDS beyond, so that a cache line can be copied whole. */
static bool reserve(Tokens *out, size_t more, Error *err) {
    size_t need = out->count + more + VALUE_IDS;
    if (need <= out->capacity) return true;
    size_t capacity = need > 2 * out->capacity ? need : 2 * out->capacity;
    uint16_t *ids = realloc(out->ids, capacity * sizeof *ids);
    if (!ids) return no_memory(err);
    out->ids = ids;
    out->capacity = capacity;
    return true;
}

TokenEncoder *token_encoder_open(const Tokenizer *tokenizer, Error *err) {
    TokenEncoder *e = calloc(1, sizeof *e);
    if (e && !tokenizer->byte_level) {
        e->stream = pretoken_stream_open();
        e->cache = aligned_alloc(sizeof *e->cache, sizeof *e->cache << CACHE_BITS);
        if (e->cache) memset(e->cache, 0, sizeof *e->cache << CACHE_BITS);
    }
    if (!e || (!tokenizer->byte_level && (!e->stream || !e->cache))) {
        token_encoder_close(e);
        no_memory(err);
        return NULL;
    }
    e->tokenizer = tokenizer;
    return e;
}

void token_encoder_close(TokenEncoder *encoder) {
    if (!encoder) return;
    pretoken_stream_close(encoder->stream);
    free(encoder->cache);
    free(encoder->list.previous);
    free(encoder->list.next);
    free(encoder->list.ids);
    free(encoder->list.heap);
    free(encoder);
}

/* --- merging the symbols of one pre-token --- */

/* n <= SCAN_BYTES bytes to ids, lowest merge first, of equals the leftmost; returns how many. */
static size_t merge_short(const Tokenizer *t, const uint8_t *text, size_t n, uint16_t *ids) {
    uint32_t merged[SCAN_BYTES]; /* what ids[i] and ids[i + 1] merge into */
    for (size_t i = 0; i < n; i++) ids[i] = t->byte_ids[text[i]];
    for (size_t i = 0; i + 1 < n; i++) merged[i] = tokenizer_merge_of(t, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (merged[i] < merged[best]) best = i;
        if (merged[best] == PAIR_NONE) break;
        ids[best] = (uint16_t)merged[best];
        memmove(ids + best + 1, ids + best + 2, (n - best - 2) * sizeof *ids);
        memmove(merged + best, merged + best + 1, (n - best - 2) * sizeof *merged);
        n--;
        if (best > 0) merged[best - 1] = tokenizer_merge_of(t, ids[best - 1], ids[best]);
        if (best + 1 < n) merged[best] = tokenizer_merge_of(t, ids[best], ids[best + 1]);
    }
    return n;
}

static bool list_reserve(MergeList *list, size_t n) {
    if (n <= list->capacity) return true;
    free(list->previous);
    free(list->next);
    free(list->ids);
    free(list->heap);
    list->capacity = n;
    list->previous = malloc(n * sizeof *list->previous);
    list->next = malloc(n * sizeof *list->next);
    list->ids = malloc(n * sizeof *list->ids);
    list->heap = malloc(2 * n * sizeof *list->heap);
    if (list->previous && list->next && list->ids && list->heap) return true;
    list->capacity = 0;
    return false;
}

static void heap_push(MergeList *list, uint64_t item) {
    size_t i = list->heap_count++;
    for (; i > 0 && list->heap[(i - 1) / 2] > item; i = (i - 1) / 2) list->heap[i] = list->heap[(i - 1) / 2];
    list->heap[i] = item;
}

static uint64_t heap_pop(MergeList *list) {
    uint64_t top = list->heap[0], item = list->heap[--list->heap_count];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < list->heap_count) {
        if (child + 1 < list->heap_count && list->heap[child + 1] < list->heap[child]) child++;
        if (list->heap[child] >= item) break;
        list->heap[i] = list->heap[child];
        i = child;
    }
    list->heap[i] = item;
    return top;
}

static void push_pair(MergeList *list, const Tokenizer *t, size_t left, size_t right) {
    uint32_t id = tokenizer_merge_of(t, list->ids[left], list->ids[right]);
    if (id != PAIR_NONE) heap_push(list, (uint64_t)id << 32 | left);
}

/* As merge_short for any n: O(n log n). Each merge pops one entry and pushes at most two, so 2n entries
 * suffice; an entry whose symbols changed since is known by its pair no longer merging into its id. */
static bool merge_long(TokenEncoder *e, const uint8_t *text, size_t n, Tokens *out, Error *err) {
    const Tokenizer *t = e->tokenizer;
    MergeList *list = &e->list;
    if (!list_reserve(list, n)) return no_memory(err);
    list->heap_count = 0;
    for (size_t i = 0; i < n; i++) {
        list->ids[i] = t->byte_ids[text[i]];
        list->previous[i] = (uint32_t)(i - 1);
        list->next[i] = (uint32_t)(i + 1);
    }
    for (size_t i = 0; i + 1 < n; i++) push_pair(list, t, i, i + 1);
    while (list->heap_count) {
        uint64_t item = heap_pop(list);
        size_t left = (uint32_t)item, right = list->next[left];
        if (right >= n || tokenizer_merge_of(t, list->ids[left], list->ids[right]) != item >> 32) continue;
        size_t after = list->next[right];
        list->ids[left] = (uint16_t)(item >> 32);
        list->next[left] = (uint32_t)after;
        list->next[right] = (uint32_t)n; /* swallowed: never a left symbol again */
        if (after < n) {
            list->previous[after] = (uint32_t)left;
            push_pair(list, t, left, after);
        }
        if (left > 0) push_pair(list, t, list->previous[left], left);
    }
    for (size_t i = 0; i < n; i = list->next[i]) out->ids[out->count++] = list->ids[i];
    return true;
}

/* --- one pre-token --- */

/* The pre-token's cache line, its key ready in key. text is readable to KEY_BYTES. */
static inline CacheLine *cache_line(const TokenEncoder *e, const uint8_t *text, size_t bytes,
                                    uint64_t key[4]) {
    memcpy(key, text, KEY_BYTES);
    for (size_t i = 0; i < 4; i++) {
        size_t have = bytes > 8 * i ? bytes - 8 * i : 0;
        key[i] &= have >= 8 ? UINT64_MAX : ((uint64_t)1 << (8 * have)) - 1;
    }
    uint64_t hash = (key[0] ^ (uint64_t)bytes << 56) * 0x9e3779b97f4a7c15u;
    hash = (hash ^ hash >> 32 ^ key[1]) * 0xbf58476d1ce4e5b9u;
    if (bytes > 16) hash = (hash ^ hash >> 32 ^ key[2] ^ key[3] * 0x94d049bb133111ebu) * 0x9e3779b97f4a7c15u;
    return &e->cache[hash >> (64 - CACHE_BITS)];
}

/* Appends the ids of one pre-token; out has room for `bytes` ids and VALUE_IDS more. */
static bool encode_pretoken(TokenEncoder *e, const uint8_t *text, size_t bytes, Tokens *out, Error *err) {
    if (bytes > KEY_BYTES) {
        if (bytes > SCAN_BYTES) return merge_long(e, text, bytes, out, err);
        out->count += merge_short(e->tokenizer, text, bytes, out->ids + out->count);
        return true;
    }
    uint64_t key[4];
    CacheLine *line = cache_line(e, text, bytes, key);
    if (line->bytes != bytes || memcmp(line->key, key, sizeof key)) {
        uint16_t ids[SCAN_BYTES];
        size_t count = merge_short(e->tokenizer, text, bytes, ids);
        if (count > VALUE_IDS) {
            memcpy(out->ids + out->count, ids, count * sizeof *ids);
            out->count += count;
            return true;
        }
        memcpy(line->key, key, sizeof key);
        memcpy(line->ids, ids, count * sizeof *ids);
        line->bytes = (uint8_t)bytes;
        line->count = (uint8_t)count;
    }
    memcpy(out->ids + out->count, line->ids, sizeof line->ids);
    out->count += line->count;
    return true;
}

/* --- the stream --- */

static bool drain(TokenEncoder *e, bool last, Tokens *out, Error *err) {
    const uint8_t *text;
    size_t bytes;
    if (!reserve(out, e->stream->used - e->stream->at, err)) return false;
    while ((bytes = pretoken_stream_next(e->stream, last, &text)) > 0)
        if (!encode_pretoken(e, text, bytes, out, err)) return false;
    return true;
}

static bool feed_bytes(const uint8_t *text, size_t bytes, Tokens *out, Error *err) {
    if (!reserve(out, bytes, err)) return false;
    for (size_t i = 0; i < bytes; i++) out->ids[out->count + i] = text[i];
    out->count += bytes;
    return true;
}

bool token_encoder_feed(TokenEncoder *encoder, const void *text, size_t bytes, Tokens *out, Error *err) {
    if (encoder->tokenizer->byte_level) return feed_bytes(text, bytes, out, err);
    for (const uint8_t *p = text; bytes;) {
        size_t piece = bytes < PRETOKEN_PIECE_BYTES ? bytes : PRETOKEN_PIECE_BYTES;
        if (!pretoken_stream_append(encoder->stream, p, piece)) return no_memory(err);
        if (!drain(encoder, false, out, err)) return false;
        p += piece;
        bytes -= piece;
    }
    return true;
}

bool token_encoder_finish(TokenEncoder *encoder, Tokens *out, Error *err) {
    return encoder->tokenizer->byte_level || drain(encoder, true, out, err);
}

bool tokens_append(Tokens *tokens, uint16_t id, Error *err) {
    if (!reserve(tokens, 1, err)) return false;
    tokens->ids[tokens->count++] = id;
    return true;
}

bool tokenizer_encode(const Tokenizer *tokenizer, const void *text, size_t bytes, Tokens *out, Error *err) {
    TokenEncoder *encoder = token_encoder_open(tokenizer, err);
    bool ok = encoder && token_encoder_feed(encoder, text, bytes, out, err) &&
              token_encoder_finish(encoder, out, err);
    token_encoder_close(encoder);
    return ok;
}
