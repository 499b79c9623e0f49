/* tokenizer_internal.h: what a Tokenizer consists of, for tokenizer.c (which builds it) and token_encoder.c.
 */
#ifndef LLMC_TOKENIZER_INTERNAL_H
#define LLMC_TOKENIZER_INTERNAL_H
#include "data/pretoken.h"
#include "data/tokenizer.h"

/* Open addressing from a pair of ids to the id of their merge; at most half full, so a search ends. */
typedef struct {
    uint32_t pair; /* left << 16 | right; PAIR_NONE: free */
    uint32_t id;
} PairSlot;
#define PAIR_NONE UINT32_MAX /* ids stay below 65535, so no pair looks like this */

struct Tokenizer {
    bool byte_level;
    int vocab_size;
    size_t merge_count;
    uint16_t (*merges)[2];
    uint16_t byte_ids[256]; /* the id of each single byte */
    char *spellings;        /* of all ids, end to end */
    size_t *spelling_at;    /* (vocab_size + 1) */
    PairSlot *pairs;
    unsigned pair_bits; /* log2 of the slots */
    uint32_t fingerprint;
};

static inline uint32_t pair_slot(uint32_t pair, unsigned bits) {
    return (pair * 0x9e3779b1u) >> (32 - bits);
}

/* The id that the pair merges into (lower ids merge first), or PAIR_NONE. */
static inline uint32_t tokenizer_merge_of(const Tokenizer *tokenizer, uint32_t left, uint32_t right) {
    uint32_t pair = left << 16 | right, mask = (1u << tokenizer->pair_bits) - 1;
    for (uint32_t i = pair_slot(pair, tokenizer->pair_bits);; i = (i + 1) & mask) {
        if (tokenizer->pairs[i].pair == pair) return tokenizer->pairs[i].id;
        if (tokenizer->pairs[i].pair == PAIR_NONE) return PAIR_NONE;
    }
}
#endif
