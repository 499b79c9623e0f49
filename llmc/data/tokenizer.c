/* tokenizer.c: reading, checking, writing and decoding of tokenizers; see tokenizer.h. Encoding is in
 * token_encoder.c. */
#include "base/check.h"
#include "base/crc32c.h"
#include "base/file.h"
#include "data/tokenizer_internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define END_OF_TEXT  "<|endoftext|>"
#define GPT2_MERGES  "data/gpt2_vocab.bpe"
#define VERSION_LINE "#version: 0.2"

enum { FILE_BYTES_MAX = 1 << 26, MERGES_MAX = TOKENIZER_VOCAB_MAX - TOKENIZER_BYTES - 1 };

/* --- GPT-2's alphabet: a printable character for each byte --- */

/* Printable bytes stand for themselves, the other 68 for U+0100 on. An id of a byte is its place in this
 * order. */
static bool is_printable(int byte) {
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

static void alphabet(uint8_t byte_of_id[256], uint16_t code_of_id[256]) {
    int id = 0, next = 0;
    for (int byte = 0; byte < 256; byte++)
        if (is_printable(byte)) byte_of_id[id] = (uint8_t)byte, code_of_id[id++] = (uint16_t)byte;
    for (int byte = 0; byte < 256; byte++)
        if (!is_printable(byte)) byte_of_id[id] = (uint8_t)byte, code_of_id[id++] = (uint16_t)(256 + next++);
}

/* --- building: symbols are added one by one, each checked against those before it --- */

/* Symbols by spelling, while building. */
typedef struct {
    uint16_t *slots; /* id; NO_ID: free */
    size_t mask;
} Spellings;
enum { NO_ID = 65535 };

static size_t spelling_hash(const char *bytes, size_t count) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < count; i++) hash = (hash ^ (uint8_t)bytes[i]) * 1099511628211u;
    return (size_t)(hash ^ hash >> 32);
}

/* The slot where the spelling is, or where it would go. */
static size_t spelling_slot(const Tokenizer *t, const Spellings *s, const char *bytes, size_t count) {
    size_t i = spelling_hash(bytes, count) & s->mask;
    for (;; i = (i + 1) & s->mask) {
        uint16_t id = s->slots[i];
        if (id == NO_ID) return i;
        if (t->spelling_at[id + 1] - t->spelling_at[id] == count &&
            !memcmp(t->spellings + t->spelling_at[id], bytes, count))
            return i;
    }
}

/* Gives the next id to a spelling that lies behind the last one in t->spellings; false: another id has it. */
static bool add_symbol(Tokenizer *t, Spellings *s, size_t count) {
    size_t at = t->spelling_at[t->vocab_size], slot = spelling_slot(t, s, t->spellings + at, count);
    if (s->slots[slot] != NO_ID) return false;
    s->slots[slot] = (uint16_t)t->vocab_size++;
    t->spelling_at[t->vocab_size] = at + count;
    return true;
}

static void index_pair(Tokenizer *t, size_t merge) {
    uint32_t pair = (uint32_t)t->merges[merge][0] << 16 | t->merges[merge][1];
    uint32_t mask = (1u << t->pair_bits) - 1, i = pair_slot(pair, t->pair_bits);
    while (t->pairs[i].pair != PAIR_NONE) i = (i + 1) & mask;
    t->pairs[i] = (PairSlot){pair, (uint32_t)(TOKENIZER_BYTES + merge)};
}

/* Memory for merge_count merges whose spellings have at most `spelling_bytes` bytes, and the 256 byte
 * symbols. */
static Tokenizer *begin(size_t merge_count, size_t spelling_bytes, Spellings *s) {
    Tokenizer *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    size_t slots = 1024;
    for (t->pair_bits = 10; slots < 2 * (TOKENIZER_BYTES + merge_count); slots *= 2) t->pair_bits++;
    t->merges = malloc((merge_count + 1) * sizeof *t->merges);
    t->spellings = malloc(TOKENIZER_BYTES + spelling_bytes + sizeof END_OF_TEXT);
    t->spelling_at = calloc(TOKENIZER_BYTES + merge_count + 2, sizeof *t->spelling_at);
    t->pairs = malloc(slots * sizeof *t->pairs);
    s->slots = malloc(slots * sizeof *s->slots);
    s->mask = slots - 1;
    if (!t->merges || !t->spellings || !t->spelling_at || !t->pairs || !s->slots) {
        tokenizer_close(t);
        free(s->slots);
        s->slots = NULL;
        return NULL;
    }
    for (size_t i = 0; i < slots; i++) t->pairs[i] = (PairSlot){PAIR_NONE, 0}, s->slots[i] = NO_ID;
    uint8_t byte_of_id[256];
    uint16_t code_of_id[256];
    alphabet(byte_of_id, code_of_id);
    for (int id = 0; id < TOKENIZER_BYTES; id++) {
        t->spellings[id] = (char)byte_of_id[id];
        t->byte_ids[byte_of_id[id]] = (uint16_t)id;
        CHECK(add_symbol(t, s, 1));
    }
    return t;
}

/* The spelling of the two, already behind the last one, becomes the next merge. */
static bool add_merge(Tokenizer *t, Spellings *s, uint16_t left, uint16_t right, size_t count) {
    if (!add_symbol(t, s, count)) return false;
    t->merges[t->merge_count][0] = left;
    t->merges[t->merge_count][1] = right;
    index_pair(t, t->merge_count++);
    return true;
}

static void add_end_of_text(Tokenizer *t) {
    size_t at = t->spelling_at[t->vocab_size];
    memcpy(t->spellings + at, END_OF_TEXT, sizeof END_OF_TEXT - 1);
    t->spelling_at[++t->vocab_size] = at + sizeof END_OF_TEXT - 1;
}

static Tokenizer *finish(Tokenizer *t) {
    add_end_of_text(t);
    t->fingerprint = crc32c(0, "bpe", 3);
    for (size_t i = 0; i < t->merge_count; i++) {
        uint16_t left = t->merges[i][0], right = t->merges[i][1];
        uint8_t bytes[4] = {(uint8_t)left, (uint8_t)(left >> 8), (uint8_t)right, (uint8_t)(right >> 8)};
        t->fingerprint = crc32c(t->fingerprint, bytes, sizeof bytes);
    }
    if (!t->fingerprint) t->fingerprint = 1;
    return t;
}

static Tokenizer *open_byte_level(Error *err) {
    Tokenizer *t = calloc(1, sizeof *t);
    if (t) {
        t->byte_level = true;
        t->spellings = malloc(TOKENIZER_BYTES + sizeof END_OF_TEXT);
        t->spelling_at = malloc((TOKENIZER_BYTES + 2) * sizeof *t->spelling_at);
    }
    if (!t || !t->spellings || !t->spelling_at) {
        tokenizer_close(t);
        error_set(err, "no memory for the tokenizer");
        return NULL;
    }
    for (int id = 0; id < TOKENIZER_BYTES; id++) {
        t->spellings[id] = (char)id;
        t->byte_ids[id] = (uint16_t)id;
        t->spelling_at[id] = (size_t)id;
    }
    t->spelling_at[TOKENIZER_BYTES] = TOKENIZER_BYTES;
    t->vocab_size = TOKENIZER_BYTES;
    add_end_of_text(t);
    t->fingerprint = crc32c(0, "byte", 4);
    return t;
}

Tokenizer *tokenizer_from_merges(const uint16_t (*merges)[2], size_t count, Error *err) {
    CHECK(count <= MERGES_MAX);
    Spellings s = {0};
    Tokenizer *t = NULL;
    bool ok = false;
    size_t bytes = 0, *lengths = malloc((TOKENIZER_BYTES + count) * sizeof *lengths);
    if (!lengths) goto memory;
    for (size_t i = 0; i < TOKENIZER_BYTES; i++) lengths[i] = 1;
    for (size_t i = 0; i < count; i++) {
        size_t id = TOKENIZER_BYTES + i;
        if (merges[i][0] >= id || merges[i][1] >= id) {
            error_set(err, "merge %zu is of ids %d and %d, which are not known yet", i, merges[i][0],
                      merges[i][1]);
            goto out;
        }
        lengths[id] = lengths[merges[i][0]] + lengths[merges[i][1]];
        bytes += lengths[id];
        if (bytes > FILE_BYTES_MAX) {
            error_set(err, "merge %zu: the symbols are longer than %d bytes together", i, FILE_BYTES_MAX);
            goto out;
        }
    }
    t = begin(count, bytes, &s);
    if (!t) goto memory;
    for (size_t i = 0; i < count; i++) {
        char *end = t->spellings + t->spelling_at[t->vocab_size];
        uint16_t left = merges[i][0], right = merges[i][1];
        memcpy(end, t->spellings + t->spelling_at[left], lengths[left]);
        memcpy(end + lengths[left], t->spellings + t->spelling_at[right], lengths[right]);
        if (!add_merge(t, &s, left, right, lengths[left] + lengths[right])) {
            error_set(err, "merge %zu spells what an earlier symbol spells", i);
            goto out;
        }
    }
    finish(t);
    ok = true;
    goto out;
memory:
    error_set(err, "no memory for the tokenizer");
out:
    free(lengths);
    free(s.slots);
    if (!ok) {
        tokenizer_close(t);
        t = NULL;
    }
    return t;
}

/* --- the merges file --- */

/* Decodes the symbol at *text, up to a blank or the end of the line, into out (as long as the line suffices).
 * Its length, or 0 if there is none or a character is not of the alphabet. */
static size_t parse_symbol(const char **text, const char *end, const int16_t byte_of_code[512], char *out) {
    const unsigned char *p = (const unsigned char *)*text, *stop = (const unsigned char *)end;
    size_t count = 0;
    while (p < stop && *p != ' ') {
        unsigned code = *p++;
        if (code >= 0xc2 && code <= 0xc5 && p < stop && (*p & 0xc0) == 0x80)
            code = (code & 0x1f) << 6 | (*p++ & 0x3f);
        else if (code >= 0x80)
            return 0;
        if (byte_of_code[code] < 0) return 0;
        out[count++] = (char)byte_of_code[code];
    }
    *text = (const char *)p;
    return count;
}

/* One line "left right" becomes a merge; the reason in *why if it cannot. */
static bool parse_merge(Tokenizer *t, Spellings *s, const char *line, const char *end,
                        const int16_t byte_of_code[512], const char **why) {
    char *out = t->spellings + t->spelling_at[t->vocab_size];
    *why = "is not two symbols of GPT-2's byte alphabet with a blank between";
    size_t left_bytes = parse_symbol(&line, end, byte_of_code, out);
    if (!left_bytes || line == end) return false;
    line++;
    size_t right_bytes = parse_symbol(&line, end, byte_of_code, out + left_bytes);
    if (!right_bytes || line != end) return false;
    uint16_t left = s->slots[spelling_slot(t, s, out, left_bytes)];
    uint16_t right = s->slots[spelling_slot(t, s, out + left_bytes, right_bytes)];
    *why = "merges a symbol that no line before it makes";
    if (left == NO_ID || right == NO_ID) return false;
    *why = "makes a symbol that an earlier line makes";
    return add_merge(t, s, left, right, left_bytes + right_bytes);
}

/* The end of the line at p, without '\n' and a '\r' before it; *next: where the following line starts. */
static const char *line_end(const char *p, const char *end, const char **next) {
    const char *newline = memchr(p, '\n', (size_t)(end - p)), *stop = newline ? newline : end;
    *next = newline ? newline + 1 : end;
    return stop > p && stop[-1] == '\r' ? stop - 1 : stop;
}

Tokenizer *tokenizer_parse(const char *text, size_t bytes, const char *name, Error *err) {
    Spellings s = {0};
    uint8_t byte_of_id[256];
    uint16_t code_of_id[256];
    int16_t byte_of_code[512];
    const char *end = text + bytes, *next, *why, *first_end = line_end(text, end, &next);
    if (first_end - text == 4 && !memcmp(text, "byte", 4) && next == end) return open_byte_level(err);
    if (!bytes || text[0] == '{') {
        error_set(err, "%s: %s, not a merges file (a vocab.bpe or merges.txt is needed)", name,
                  bytes ? "JSON" : "empty");
        return NULL;
    }
    size_t lines = 1;
    for (const char *p = text; (p = memchr(p, '\n', (size_t)(end - p))); p++) lines++;
    if (lines > MERGES_MAX + 3) {
        error_set(err, "%s: %zu lines, but at most %d merges fit uint16 tokens (not a merges file?)", name,
                  lines, MERGES_MAX);
        return NULL;
    }
    Tokenizer *t = begin(lines, bytes, &s); /* a symbol is never longer than its line */
    if (!t) {
        error_set(err, "%s: no memory for its merges", name);
        return NULL;
    }
    alphabet(byte_of_id, code_of_id);
    for (int code = 0; code < 512; code++) byte_of_code[code] = -1;
    for (int id = 0; id < 256; id++) byte_of_code[code_of_id[id]] = byte_of_id[id];
    const char *line = text;
    if (bytes >= 8 && !memcmp(text, "#version", 8)) line = next;
    for (size_t number = line == text ? 1 : 2; line < end; number++, line = next) {
        const char *stop = line_end(line, end, &next);
        if (stop == line && next == end) break; /* an empty last line */
        why = "is one merge more than fit uint16 tokens";
        if (t->merge_count == MERGES_MAX || !parse_merge(t, &s, line, stop, byte_of_code, &why)) {
            error_set(err, "%s: line %zu %s (is it a vocab.bpe or merges.txt?)", name, number, why);
            tokenizer_close(t);
            t = NULL;
            break;
        }
    }
    free(s.slots);
    return t ? finish(t) : NULL;
}

Tokenizer *tokenizer_open(const char *spec, Error *err) {
    if (!strcmp(spec, "byte")) return open_byte_level(err);
    bool gpt2 = !strcmp(spec, "gpt2");
    const char *path = gpt2 ? GPT2_MERGES : spec;
    char *text;
    size_t bytes;
    if (gpt2 && !file_exists(path)) {
        error_set(err, "%s: GPT-2's merges are not there (fetch them with data/gpt2_bpe.sh)", path);
        return NULL;
    }
    if (!file_read(path, FILE_BYTES_MAX, &text, &bytes, err)) return NULL;
    Tokenizer *t = tokenizer_parse(text, bytes, path, err);
    free(text);
    return t;
}

void tokenizer_close(Tokenizer *tokenizer) {
    if (!tokenizer) return;
    free(tokenizer->merges);
    free(tokenizer->spellings);
    free(tokenizer->spelling_at);
    free(tokenizer->pairs);
    free(tokenizer);
}

int tokenizer_vocab_size(const Tokenizer *tokenizer) {
    return tokenizer->vocab_size;
}
int tokenizer_end_of_text(const Tokenizer *tokenizer) {
    return tokenizer->vocab_size - 1;
}
bool tokenizer_is_byte_level(const Tokenizer *tokenizer) {
    return tokenizer->byte_level;
}
uint32_t tokenizer_fingerprint(const Tokenizer *tokenizer) {
    return tokenizer->fingerprint;
}

const char *tokenizer_decode(const Tokenizer *tokenizer, int id, size_t *bytes) {
    *bytes = 0;
    if (id < 0 || id >= tokenizer->vocab_size) return NULL;
    *bytes = tokenizer->spelling_at[id + 1] - tokenizer->spelling_at[id];
    return tokenizer->spellings + tokenizer->spelling_at[id];
}

/* Writes the symbol in GPT-2's alphabet, then the byte `behind`. */
static bool write_symbol(FileWriter *writer, const Tokenizer *t, const uint16_t code_of_id[256], int id,
                         char behind, Error *err) {
    size_t bytes;
    const char *spelling = tokenizer_decode(t, id, &bytes);
    for (size_t i = 0; i < bytes; i++) {
        unsigned code = code_of_id[t->byte_ids[(uint8_t)spelling[i]]];
        char utf8[2] = {(char)(0xc0 | code >> 6), (char)(0x80 | (code & 0x3f))};
        if (code < 0x80) utf8[0] = (char)code;
        if (!file_writer_write(writer, utf8, code < 0x80 ? 1 : 2, err)) return false;
    }
    return file_writer_write(writer, &behind, 1, err);
}

bool tokenizer_save(const Tokenizer *tokenizer, const char *path, Error *err) {
    if (tokenizer->byte_level) return file_write(path, "byte\n", 5, err);
    FileWriter writer;
    uint8_t byte_of_id[256];
    uint16_t code_of_id[256];
    alphabet(byte_of_id, code_of_id);
    bool ok = file_writer_open(&writer, path, err) &&
              file_writer_write(&writer, VERSION_LINE "\n", sizeof VERSION_LINE, err);
    for (size_t i = 0; ok && i < tokenizer->merge_count; i++)
        ok = write_symbol(&writer, tokenizer, code_of_id, tokenizer->merges[i][0], ' ', err) &&
             write_symbol(&writer, tokenizer, code_of_id, tokenizer->merges[i][1], '\n', err);
    ok = ok && file_writer_commit(&writer, err);
    file_writer_abort(&writer);
    return ok;
}

bool tokenizer_find_beside(const char *token_files, char *path, size_t path_bytes) {
    const char *slash = strrchr(token_files, '/'), *name = slash ? slash + 1 : token_files, *cut = NULL;
    for (const char *p = name; (p = strstr(p, "_train_")); p++) cut = p;
    for (const char *p = name; (p = strstr(p, "_val_")); p++) cut = p > cut || !cut ? p : cut;
    if (!cut) return false;
    int n = snprintf(path, path_bytes, "%.*s.tokenizer", (int)(cut - token_files), token_files);
    return n > 0 && (size_t)n < path_bytes && file_exists(path);
}
