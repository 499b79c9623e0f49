/* bpe_train.c: see bpe_train.h. Two parts: words and their counts while text comes in, then the merging.
 *
 * The merging keeps for every pair how often it is seen and a list of the words that hold it, and a heap of
 * pairs by count. A merge touches only the words of its pair. Counts of a pair only fall after the merge that
 * brought it, so a heap entry is an upper bound: one that is too high goes back with the true count. */
#include "data/bpe_train.h"
#include "base/check.h"
#include "data/pretoken.h"
#include "data/tokenizer_internal.h"
#include <stdlib.h>
#include <string.h>

typedef struct {
    uint64_t count;
    size_t at; /* its bytes, later its symbols, start here */
    uint32_t length;
} Word;

typedef struct {
    uint64_t count;
    uint32_t pair; /* left << 16 | right */
    uint32_t list; /* newest node of the words that hold it, NONE: no word */
    bool passed_over;
} Pair;

/* Of equal counts the lower pair comes first. */
typedef struct {
    uint64_t count;
    uint32_t pair, index;
} Candidate;

typedef struct {
    uint32_t word, next;
} Node;

#define NONE UINT32_MAX

/* A growing array of any of them. */
#define ARRAY(Type)                                                                                          \
    struct {                                                                                                 \
        Type *items;                                                                                         \
        size_t count, capacity;                                                                              \
    }
#define FITS(array, n) ((array).count + (n) <= (array).capacity)
/* Makes room for n more; false: no memory. */
#define RESERVE(array, n)                                                                                    \
    (FITS(array, n) ||                                                                                       \
     ((array).items = grow((array).items, &(array).capacity, (array).count + (n), sizeof *(array).items),    \
      FITS(array, n)))

struct BpeTrainer {
    PretokenStream *stream;
    ARRAY(Word) words;
    ARRAY(uint8_t) bytes;
    uint32_t *word_slots; /* open addressing; index of the word, NONE: free */
    size_t word_mask, words_max;
    uint64_t left_out;
    /* merging */
    uint16_t *symbols; /* of all words, end to end */
    ARRAY(Pair) pairs;
    uint32_t *pair_slots;
    size_t pair_mask;
    ARRAY(Node) nodes;
    uint32_t free_node;
    ARRAY(Candidate) heap;
    uint16_t (*merges)[2];
    size_t merge_count;
};

/* The items in a larger block; without memory for it, items and capacity stay. */
static void *grow(void *items, size_t *capacity, size_t need, size_t item_bytes) {
    size_t larger = *capacity < 512 ? 1024 : 2 * *capacity;
    if (larger < need) larger = need;
    void *grown = realloc(items, larger * item_bytes);
    if (!grown) return items;
    *capacity = larger;
    return grown;
}

static bool no_memory(Error *err) {
    return error_set(err, "no memory to train a tokenizer (give it less text)");
}

static uint32_t *new_slots(size_t count) {
    uint32_t *slots = malloc(count * sizeof *slots);
    if (slots) memset(slots, 0xff, count * sizeof *slots);
    return slots;
}

static size_t hash_bytes(const uint8_t *bytes, size_t count) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < count; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
    return (size_t)(hash ^ hash >> 29);
}

static size_t hash_pair(uint32_t pair) {
    return (size_t)((pair * 0x9e3779b97f4a7c15u) >> 24);
}

/* --- counting words --- */

BpeTrainer *bpe_train_open(size_t words_max, Error *err) {
    CHECK(words_max > 0 && words_max < NONE);
    BpeTrainer *t = calloc(1, sizeof *t);
    if (t) {
        t->words_max = words_max;
        t->word_mask = 4095;
        t->stream = pretoken_stream_open();
        t->word_slots = new_slots(t->word_mask + 1);
    }
    if (!t || !t->stream || !t->word_slots) {
        bpe_train_close(t);
        no_memory(err);
        return NULL;
    }
    return t;
}

void bpe_train_close(BpeTrainer *trainer) {
    if (!trainer) return;
    pretoken_stream_close(trainer->stream);
    free(trainer->words.items);
    free(trainer->bytes.items);
    free(trainer->word_slots);
    free(trainer->symbols);
    free(trainer->pairs.items);
    free(trainer->pair_slots);
    free(trainer->nodes.items);
    free(trainer->heap.items);
    free(trainer->merges);
    free(trainer);
}

static bool grow_word_slots(BpeTrainer *t) {
    size_t mask = 2 * t->word_mask + 1;
    uint32_t *slots = new_slots(mask + 1);
    if (!slots) return false;
    for (size_t w = 0; w < t->words.count; w++) {
        size_t i = hash_bytes(t->bytes.items + t->words.items[w].at, t->words.items[w].length) & mask;
        while (slots[i] != NONE) i = (i + 1) & mask;
        slots[i] = (uint32_t)w;
    }
    free(t->word_slots);
    t->word_slots = slots;
    t->word_mask = mask;
    return true;
}

static bool count_word(BpeTrainer *t, const uint8_t *text, size_t bytes) {
    size_t i = hash_bytes(text, bytes) & t->word_mask;
    for (; t->word_slots[i] != NONE; i = (i + 1) & t->word_mask) {
        Word *word = &t->words.items[t->word_slots[i]];
        if (word->length == bytes && !memcmp(t->bytes.items + word->at, text, bytes)) {
            word->count++;
            return true;
        }
    }
    if (t->words.count == t->words_max) {
        t->left_out++;
        return true;
    }
    if (!RESERVE(t->words, 1) || !RESERVE(t->bytes, bytes)) return false;
    memcpy(t->bytes.items + t->bytes.count, text, bytes);
    t->word_slots[i] = (uint32_t)t->words.count;
    t->words.items[t->words.count++] = (Word){.count = 1, .at = t->bytes.count, .length = (uint32_t)bytes};
    t->bytes.count += bytes;
    return 2 * t->words.count <= t->word_mask || grow_word_slots(t);
}

static bool drain(BpeTrainer *t, bool last) {
    const uint8_t *text;
    size_t bytes;
    while ((bytes = pretoken_stream_next(t->stream, last, &text)) > 0)
        for (size_t at = 0, piece; at < bytes; at += piece) {
            piece = bytes - at < BPE_WORD_BYTES_MAX ? bytes - at : BPE_WORD_BYTES_MAX;
            if (!count_word(t, text + at, piece)) return false;
        }
    return true;
}

bool bpe_train_feed(BpeTrainer *trainer, const void *text, size_t bytes, Error *err) {
    for (const uint8_t *p = text; bytes;) {
        size_t piece = bytes < PRETOKEN_PIECE_BYTES ? bytes : PRETOKEN_PIECE_BYTES;
        if (!pretoken_stream_append(trainer->stream, p, piece) || !drain(trainer, false))
            return no_memory(err);
        p += piece;
        bytes -= piece;
    }
    return true;
}

bool bpe_train_end_document(BpeTrainer *trainer, Error *err) {
    return drain(trainer, true) || no_memory(err);
}

size_t bpe_train_words(const BpeTrainer *trainer) {
    return trainer->words.count;
}
uint64_t bpe_train_left_out(const BpeTrainer *trainer) {
    return trainer->left_out;
}

/* --- merging --- */

static bool grow_pair_slots(BpeTrainer *t) {
    size_t mask = 2 * t->pair_mask + 1;
    uint32_t *slots = new_slots(mask + 1);
    if (!slots) return false;
    for (size_t p = 0; p < t->pairs.count; p++) {
        size_t i = hash_pair(t->pairs.items[p].pair) & mask;
        while (slots[i] != NONE) i = (i + 1) & mask;
        slots[i] = (uint32_t)p;
    }
    free(t->pair_slots);
    t->pair_slots = slots;
    t->pair_mask = mask;
    return true;
}

/* The pair, made with count 0 if it is new; NULL: no memory. */
static Pair *find_pair(BpeTrainer *t, uint32_t pair) {
    size_t i = hash_pair(pair) & t->pair_mask;
    for (; t->pair_slots[i] != NONE; i = (i + 1) & t->pair_mask)
        if (t->pairs.items[t->pair_slots[i]].pair == pair) return &t->pairs.items[t->pair_slots[i]];
    if (!RESERVE(t->pairs, 1)) return NULL;
    t->pair_slots[i] = (uint32_t)t->pairs.count;
    t->pairs.items[t->pairs.count++] = (Pair){.pair = pair, .list = NONE};
    if (2 * t->pairs.count > t->pair_mask && !grow_pair_slots(t)) return NULL;
    return &t->pairs.items[t->pairs.count - 1];
}

/* Puts the word on the pair's list, once in a row. */
static bool list_word(BpeTrainer *t, Pair *pair, uint32_t word) {
    if (pair->list != NONE && t->nodes.items[pair->list].word == word) return true;
    uint32_t node = t->free_node;
    if (node != NONE) {
        t->free_node = t->nodes.items[node].next;
    } else {
        if (t->nodes.count == NONE || !RESERVE(t->nodes, 1)) return false;
        node = (uint32_t)t->nodes.count++;
    }
    t->nodes.items[node] = (Node){word, pair->list};
    pair->list = node;
    return true;
}

/* One more place of the pair in the word, for each time the word occurs; or one less. */
static bool count_pair(BpeTrainer *t, uint32_t w, uint32_t left, uint32_t right, bool more) {
    uint64_t count = t->words.items[w].count;
    Pair *pair = find_pair(t, left << 16 | right);
    if (!pair) return false;
    pair->count = more ? pair->count + count : pair->count - count;
    return !more || list_word(t, pair, w);
}

static bool is_before(Candidate a, Candidate b) {
    return a.count != b.count ? a.count > b.count : a.pair < b.pair;
}

static bool heap_push(BpeTrainer *t, uint32_t index) {
    const Pair *pair = &t->pairs.items[index];
    Candidate item = {pair->count, pair->pair, index};
    if (!RESERVE(t->heap, 1)) return false;
    Candidate *heap = t->heap.items;
    size_t i = t->heap.count++;
    for (; i > 0 && is_before(item, heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = item;
    return true;
}

static Candidate heap_pop(BpeTrainer *t) {
    Candidate *heap = t->heap.items, top = heap[0], item = heap[--t->heap.count];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < t->heap.count) {
        if (child + 1 < t->heap.count && is_before(heap[child + 1], heap[child])) child++;
        if (!is_before(heap[child], item)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = item;
    return top;
}

/* Replaces the pair by the symbol in one word, from left to right, and counts what that does to its
 * neighbours. */
static bool merge_in_word(BpeTrainer *t, uint32_t w, uint32_t left, uint32_t right, uint16_t symbol) {
    uint32_t length = t->words.items[w].length, kept = 0;
    uint16_t *s = t->symbols + t->words.items[w].at;
    bool ok = true;
    for (uint32_t i = 0; i < length; i++) {
        if (i + 1 == length || s[i] != left || s[i + 1] != right) {
            s[kept++] = s[i];
            continue;
        }
        if (kept > 0)
            ok = ok && count_pair(t, w, s[kept - 1], left, false) &&
                 count_pair(t, w, s[kept - 1], symbol, true);
        if (i + 2 < length)
            ok = ok && count_pair(t, w, right, s[i + 2], false) && count_pair(t, w, symbol, s[i + 2], true);
        s[kept++] = symbol;
        i++;
    }
    t->words.items[w].length = kept;
    return ok;
}

/* Merges the pair wherever it is, and offers the pairs that this brings. */
static bool apply_merge(BpeTrainer *t, uint32_t index, uint16_t symbol) {
    uint32_t pair = t->pairs.items[index].pair, node = t->pairs.items[index].list;
    size_t first_new = t->pairs.count;
    t->pairs.items[index].list = NONE;
    while (node != NONE) { /* a word may be on the list twice, or an earlier merge took the pair from it */
        uint32_t w = t->nodes.items[node].word, next = t->nodes.items[node].next;
        t->nodes.items[node].next = t->free_node;
        t->free_node = node;
        node = next;
        if (!merge_in_word(t, w, pair >> 16, pair & 0xffff, symbol)) return false;
    }
    t->pairs.items[index].count = 0;
    for (size_t p = first_new; p < t->pairs.count; p++)
        if (t->pairs.items[p].count > 1 && !heap_push(t, (uint32_t)p)) return false;
    return true;
}

/* Words of bytes become words of symbols; every pair is counted, listed and offered. */
static bool begin_merging(BpeTrainer *t, const Tokenizer *bytes) {
    t->symbols = malloc((t->bytes.count + 1) * sizeof *t->symbols);
    t->pair_mask = 4095;
    t->pair_slots = new_slots(t->pair_mask + 1);
    t->free_node = NONE;
    if (!t->symbols || !t->pair_slots) return false;
    for (size_t i = 0; i < t->bytes.count; i++) t->symbols[i] = bytes->byte_ids[t->bytes.items[i]];
    for (size_t w = 0; w < t->words.count; w++) {
        const uint16_t *s = t->symbols + t->words.items[w].at;
        for (uint32_t i = 0; i + 1 < t->words.items[w].length; i++)
            if (!count_pair(t, (uint32_t)w, s[i], s[i + 1], true)) return false;
    }
    for (size_t p = 0; p < t->pairs.count; p++)
        if (!heap_push(t, (uint32_t)p)) return false;
    return true;
}

/* Spellings of the symbols made so far, to know a pair that would make one of them again. */
typedef struct {
    ARRAY(uint8_t) bytes;
    size_t *at;      /* (vocabulary + 1) */
    uint32_t *slots; /* open addressing; symbol, NONE: free */
    size_t count, mask;
} Symbols;

/* Adds the spelling of left and right as the next symbol. 1: done, 0: it is there already, -1: no memory. */
static int symbols_add(Symbols *s, uint32_t left, uint32_t right, bool is_byte, uint8_t byte) {
    size_t left_bytes = is_byte ? 1 : s->at[left + 1] - s->at[left];
    size_t right_bytes = is_byte ? 0 : s->at[right + 1] - s->at[right], bytes = left_bytes + right_bytes;
    if (!RESERVE(s->bytes, bytes)) return -1;
    uint8_t *end = s->bytes.items + s->bytes.count;
    if (is_byte) {
        *end = byte;
    } else {
        memcpy(end, s->bytes.items + s->at[left], left_bytes);
        memcpy(end + left_bytes, s->bytes.items + s->at[right], right_bytes);
    }
    size_t i = hash_bytes(end, bytes) & s->mask;
    for (; s->slots[i] != NONE; i = (i + 1) & s->mask) {
        size_t at = s->at[s->slots[i]], length = s->at[s->slots[i] + 1] - at;
        if (length == bytes && !memcmp(s->bytes.items + at, end, bytes)) return 0;
    }
    s->slots[i] = (uint32_t)s->count;
    s->bytes.count += bytes;
    s->at[++s->count] = s->bytes.count;
    return 1;
}

static bool symbols_open(Symbols *s, size_t vocab_size, const Tokenizer *bytes) {
    for (s->mask = 1023; s->mask < 2 * vocab_size;) s->mask = 2 * s->mask + 1;
    s->slots = new_slots(s->mask + 1);
    s->at = calloc(vocab_size + 1, sizeof *s->at);
    if (!s->slots || !s->at) return false;
    for (int id = 0; id < TOKENIZER_BYTES; id++) {
        size_t one;
        uint8_t byte = (uint8_t)*tokenizer_decode(bytes, id, &one);
        if (symbols_add(s, 0, 0, true, byte) != 1) return false;
    }
    return true;
}

/* The merges themselves, most frequent pair first. */
static bool merge_all(BpeTrainer *t, Symbols *symbols, size_t merges_max) {
    while (t->merge_count < merges_max && t->heap.count) {
        Candidate best = heap_pop(t);
        Pair *pair = &t->pairs.items[best.index];
        if (pair->passed_over || pair->count < 2) continue;
        if (pair->count != best.count) {
            if (!heap_push(t, best.index)) return false;
            continue;
        }
        int added = symbols_add(symbols, best.pair >> 16, best.pair & 0xffff, false, 0);
        if (added < 0) return false;
        if (!added) {
            pair->passed_over = true;
            continue;
        }
        uint16_t symbol = (uint16_t)(TOKENIZER_BYTES + t->merge_count);
        t->merges[t->merge_count][0] = (uint16_t)(best.pair >> 16);
        t->merges[t->merge_count++][1] = (uint16_t)best.pair;
        if (!apply_merge(t, best.index, symbol)) return false;
    }
    return true;
}

Tokenizer *bpe_train_finish(BpeTrainer *trainer, int vocab_size, Error *err) {
    CHECK(vocab_size > TOKENIZER_BYTES && vocab_size <= TOKENIZER_VOCAB_MAX);
    Symbols symbols = {0};
    Tokenizer *result = NULL, *bytes = tokenizer_from_merges(NULL, 0, err);
    if (!bytes) return NULL;
    size_t merges_max = (size_t)vocab_size - TOKENIZER_BYTES - 1;
    trainer->merges = malloc((merges_max + 1) * sizeof *trainer->merges);
    if (trainer->merges && symbols_open(&symbols, (size_t)vocab_size, bytes) &&
        begin_merging(trainer, bytes) && merge_all(trainer, &symbols, merges_max))
        result = tokenizer_from_merges((const uint16_t(*)[2])trainer->merges, trainer->merge_count, err);
    else
        no_memory(err);
    free(symbols.bytes.items);
    free(symbols.at);
    free(symbols.slots);
    tokenizer_close(bytes);
    return result;
}
