/* test_tokenizer.c: encoding against the plainest form of byte pairs, training against the plainest form of
 * training, pre-tokens one by one, files, and errors. (test_tokenizer.py compares with tiktoken and
 * transformers.) */
#define _POSIX_C_SOURCE 200809L
#include "base/file.h"
#include "data/bpe_train.h"
#include "data/pretoken.h"
#include "data/tokenizer.h"
#include "test.h"
#include <unistd.h>

static Error err;
static char folder[256];

static const char *in_folder(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static uint32_t random_below(uint32_t n, uint64_t stream, uint64_t index) {
    return (uint32_t)(rng_uniform(11, RNG_STREAM(RNG_TEST, stream), index) * n);
}

/* Decodes and compares with the text. */
static bool decodes_to(const Tokenizer *t, const Tokens *tokens, const void *text, size_t bytes) {
    size_t at = 0, length;
    for (size_t i = 0; i < tokens->count; i++, at += length) {
        const char *piece = tokenizer_decode(t, tokens->ids[i], &length);
        if (!piece || length > bytes - at || memcmp(piece, (const char *)text + at, length)) return false;
    }
    return at == bytes;
}

static void test_byte_level(void) {
    unsigned char text[300];
    Tokens tokens = {0};
    size_t bytes;
    for (size_t i = 0; i < sizeof text; i++) text[i] = (unsigned char)(i * 7);
    Tokenizer *t = tokenizer_open("byte", &err);
    TEST_CHECK(t && tokenizer_vocab_size(t) == 257 && tokenizer_end_of_text(t) == 256 &&
                   tokenizer_is_byte_level(t),
               "%s", err.text);
    TEST_CHECK(tokenizer_encode(t, text, sizeof text, &tokens, &err) && tokens.count == sizeof text, "%s",
               err.text);
    size_t wrong = 0;
    for (size_t i = 0; i < tokens.count; i++) wrong += tokens.ids[i] != text[i];
    TEST_CHECK(!wrong && decodes_to(t, &tokens, text, sizeof text), "%zu wrong", wrong);
    const char *end = tokenizer_decode(t, 256, &bytes);
    TEST_CHECK(end && bytes == 13 && !memcmp(end, "<|endoftext|>", 13), "end of text");
    TEST_CHECK(!tokenizer_decode(t, 257, &bytes) && !tokenizer_decode(t, -1, &bytes), "ids outside");
    TEST_CHECK(tokenizer_save(t, in_folder("byte"), &err), "%s", err.text);
    Tokenizer *again = tokenizer_open(in_folder("byte"), &err);
    TEST_CHECK(again && tokenizer_is_byte_level(again) &&
                   tokenizer_fingerprint(again) == tokenizer_fingerprint(t),
               "%s", err.text);
    free(tokens.ids);
    tokenizer_close(t);
    tokenizer_close(again);
}

/* The pre-tokens of the text, joined by '|'. */
static void expect_pretokens(const char *text, const char *expected) {
    static PretokenClasses classes;
    char joined[256];
    size_t used = 0, left = strlen(text), bytes;
    pretoken_classes_init(&classes);
    for (const uint8_t *p = (const uint8_t *)text; (bytes = pretoken_next(&classes, p, left, true));
         p += bytes) {
        if (used) joined[used++] = '|';
        memcpy(joined + used, p, bytes);
        used += bytes;
        left -= bytes;
    }
    joined[used] = 0;
    TEST_CHECK(!strcmp(joined, expected), "'%s', not '%s'", joined, expected);
}

static void test_pretokens(void) {
    expect_pretokens("Hello, world!", "Hello|,| world|!");
    expect_pretokens("it's I'm we're I've he'll I'd can't",
                     "it|'s| I|'m| we|'re| I|'ve| he|'ll| I|'d| can|'t");
    expect_pretokens("'S ''s 'x 'l", "'|S| ''|s| '|x| '|l");
    expect_pretokens("a  b", "a| | b");
    expect_pretokens("a \n b\n\nc\n", "a| \n| b|\n|\n|c|\n");
    expect_pretokens("  ", "  ");
    expect_pretokens("x12 345.6", "x|12| 345|.|6");
    expect_pretokens("\xC3\xA9t\xC3\xA9 \xE4\xB8\xAD\xE6\x96\x87!?",
                     "\xC3\xA9t\xC3\xA9| \xE4\xB8\xAD\xE6\x96\x87|!?");
    expect_pretokens("a\xC2\xA0\xE3\x80\x80"
                     "b",
                     "a|\xC2\xA0|\xE3\x80\x80|b"); /* wide white space */
    expect_pretokens("\xC2\xB2\xE2\x85\xA7",
                     "\xC2\xB2\xE2\x85\xA7"); /* superscript two, roman eight: numbers */
    expect_pretokens("a\xFF\xED\xA0\x80 \xC3",
                     "a|\xFF\xED\xA0\x80| \xC3"); /* invalid bytes are of no class */
}

/* --- the plainest form of byte pairs: merge by merge over a whole word --- */

typedef struct {
    uint16_t merges[700][2];
    size_t count;
} Merges;

static size_t plain_encode(const Merges *m, const uint16_t *byte_ids, const uint8_t *text, size_t n,
                           uint16_t *ids) {
    for (size_t i = 0; i < n; i++) ids[i] = byte_ids[text[i]];
    for (size_t k = 0; k < m->count; k++) {
        size_t kept = 0;
        for (size_t i = 0; i < n; i++) {
            bool here = i + 1 < n && ids[i] == m->merges[k][0] && ids[i + 1] == m->merges[k][1];
            ids[kept++] = here ? (uint16_t)(256 + k) : ids[i];
            i += here;
        }
        n = kept;
    }
    return n;
}

/* Text with words, long runs and odd bytes. */
static size_t random_text(uint8_t *text, size_t bytes_max, uint64_t stream) {
    size_t bytes = 0;
    for (uint64_t i = 0; bytes < bytes_max; i++) {
        uint32_t kind = random_below(12, stream, 3 * i), n = 1 + random_below(9, stream, 3 * i + 1);
        if (kind == 0) n *= 20;
        for (uint32_t k = 0; k < n && bytes < bytes_max; k++) {
            uint32_t r = random_below(1000, stream + 1000, 300 * i + k);
            char letter = "etaonabb"[r % 8], digit = "012"[r % 3], blank = "\n \t'"[r % 4];
            text[bytes++] = (uint8_t)(kind < 9 ? letter : kind == 9 ? (char)r : kind == 10 ? digit : blank);
        }
        if (bytes < bytes_max) text[bytes++] = ' ';
    }
    return bytes;
}

static Tokenizer *train(const uint8_t *text, size_t bytes, int vocab_size, size_t words_max,
                        uint64_t *left_out) {
    BpeTrainer *trainer = bpe_train_open(words_max, &err);
    if (!trainer) return NULL;
    bool ok = bpe_train_feed(trainer, text, bytes / 3, &err) &&
              bpe_train_feed(trainer, text + bytes / 3, bytes - bytes / 3, &err) &&
              bpe_train_end_document(trainer, &err);
    Tokenizer *t = ok ? bpe_train_finish(trainer, vocab_size, &err) : NULL;
    if (left_out) *left_out = bpe_train_left_out(trainer);
    bpe_train_close(trainer);
    return t;
}

/* The merges of a tokenizer, found from what each of its ids spells: the split whose halves are older
 * symbols. */
static void read_merges(const char *path, const uint16_t *byte_ids, Merges *m) {
    char *text = NULL;
    size_t bytes;
    m->count = 0;
    TEST_CHECK(file_read(path, 1 << 20, &text, &bytes, &err), "%s", err.text);
    Tokenizer *t = tokenizer_parse(text, bytes, path, &err);
    TEST_CHECK(t, "%s", err.text);
    for (int id = 256; t && id < tokenizer_end_of_text(t); id++) {
        size_t whole, half, rest;
        const char *spelling = tokenizer_decode(t, id, &whole);
        uint16_t ids[256]; /* as the merges before this one leave it: two symbols */
        half = plain_encode(m, byte_ids, (const uint8_t *)spelling, whole, ids);
        TEST_CHECK(half == 2, "symbol %d is of %zu symbols", id, half);
        tokenizer_decode(t, ids[0], &half);
        tokenizer_decode(t, ids[1], &rest);
        TEST_CHECK(half + rest == whole, "symbol %d", id);
        m->merges[m->count][0] = ids[0];
        m->merges[m->count++][1] = ids[1];
    }
    tokenizer_close(t);
    free(text);
}

/* Encoding with a trained tokenizer, whole and in pieces, against the plain form. */
static void test_encode(void) {
    static uint8_t text[20000];
    static uint16_t plain[20000], byte_ids[256];
    static PretokenClasses classes;
    static Merges m;
    Tokens whole = {0}, pieces = {0};
    size_t bytes = random_text(text, sizeof text, 1), count = 0, length;
    Tokenizer *t = train(text, bytes, 800, 100000, NULL);
    TEST_CHECK(t && tokenizer_vocab_size(t) == 800, "%s", err.text);
    if (!t) return;
    for (int id = 0; id < 256; id++) byte_ids[(uint8_t)*tokenizer_decode(t, id, &length)] = (uint16_t)id;
    TEST_CHECK(byte_ids['!'] == 0 && byte_ids['a'] == 64 && byte_ids[0] == 188 && byte_ids[' '] == 220 &&
                   byte_ids[173] == 255,
               "the order of bytes is not GPT-2's");
    TEST_CHECK(tokenizer_save(t, in_folder("merges"), &err), "%s", err.text);
    read_merges(in_folder("merges"), byte_ids, &m);
    bytes = random_text(text, sizeof text, 2);
    TEST_CHECK(tokenizer_encode(t, text, bytes, &whole, &err), "%s", err.text);
    pretoken_classes_init(&classes);
    for (size_t at = 0, n; (n = pretoken_next(&classes, text + at, bytes - at, true)); at += n)
        count += plain_encode(&m, byte_ids, text + at, n, plain + count);
    TEST_CHECK(whole.count == count && !memcmp(whole.ids, plain, 2 * count), "%zu ids, plainly %zu",
               whole.count, count);
    TEST_CHECK(decodes_to(t, &whole, text, bytes), "round trip");
    TEST_CHECK(count < bytes / 2, "nothing is merged: %zu ids for %zu bytes", count, bytes);

    TokenEncoder *encoder = token_encoder_open(t, &err);
    for (int round = 0; round < 3; round++) { /* the cache fills; cut at every byte, then at random */
        pieces.count = 0;
        for (size_t at = 0, n; at < bytes; at += n) {
            n = round ? 1 + random_below(round == 1 ? 9 : 3000, 5, at) : 1;
            if (n > bytes - at) n = bytes - at;
            TEST_CHECK(token_encoder_feed(encoder, text + at, n, &pieces, &err), "%s", err.text);
        }
        TEST_CHECK(token_encoder_finish(encoder, &pieces, &err), "%s", err.text);
        TEST_CHECK(pieces.count == count && !memcmp(pieces.ids, whole.ids, 2 * count), "round %d", round);
    }
    token_encoder_close(encoder);
    free(whole.ids);
    free(pieces.ids);
    tokenizer_close(t);
}

/* A word of megabytes: quadratic work would take hours. Cut at PRETOKEN_BYTES_MAX, whatever the feeds. */
static void test_long_word(void) {
    size_t bytes = PRETOKEN_BYTES_MAX + 1000000;
    uint8_t *text = malloc(bytes);
    Tokens whole = {0}, pieces = {0};
    memset(text, 'a', bytes);
    static const uint16_t merges[][2] = {{64, 64}, {256, 256}, {257, 257}, {64, 65}};
    Tokenizer *t = tokenizer_from_merges(merges, 4, &err);
    TEST_CHECK(t && tokenizer_vocab_size(t) == 261, "%s", err.text);
    if (!t) return;
    TEST_CHECK(tokenizer_encode(t, text, bytes, &whole, &err), "%s", err.text);
    TEST_CHECK(whole.count == bytes / 8 && whole.ids[0] == 258, "%zu ids", whole.count);
    TokenEncoder *encoder = token_encoder_open(t, &err);
    for (size_t at = 0, n; at < bytes; at += n) {
        n = bytes - at < 1000 ? bytes - at : 1000;
        if (!token_encoder_feed(encoder, text + at, n, &pieces, &err)) break;
    }
    TEST_CHECK(token_encoder_finish(encoder, &pieces, &err) && pieces.count == whole.count, "%zu ids",
               pieces.count);
    token_encoder_close(encoder);
    tokenizer_close(t);
    free(whole.ids);
    free(pieces.ids);
    free(text);
}

/* --- training in its plainest form: count all pairs of all words again for each merge --- */

typedef struct {
    uint16_t symbols[64];
    size_t length;
} PlainWord;

/* spelling[id] is what id spells; joins two, and tells whether a merge spells that already. */
typedef struct {
    char text[80];
    size_t length;
} Spelling;

static bool is_spelled(const Spelling *spelling, size_t merges, uint32_t left, uint32_t right,
                       Spelling *both) {
    *both = spelling[left];
    for (size_t i = 0; i < spelling[right].length && both->length < sizeof both->text; i++)
        both->text[both->length++] = spelling[right].text[i];
    for (size_t id = 256; id < 256 + merges; id++)
        if (spelling[id].length == both->length && !memcmp(spelling[id].text, both->text, both->length))
            return true;
    return false;
}

static size_t plain_train(PlainWord *words, size_t num_words, size_t merges_max, const uint16_t *byte_ids,
                          Merges *m) {
    static uint32_t counts[700][700];
    static Spelling spelling[700], both;
    for (const char *c = "abc "; *c; c++)
        spelling[byte_ids[(uint8_t)*c]] = (Spelling){.text = {*c}, .length = 1};
    for (m->count = 0; m->count < merges_max; m->count++) {
        memset(counts, 0, sizeof counts);
        uint32_t best = 1, left = 0, right = 0;
        for (size_t w = 0; w < num_words; w++)
            for (size_t i = 0; i + 1 < words[w].length; i++)
                counts[words[w].symbols[i]][words[w].symbols[i + 1]]++;
        for (uint32_t a = 0; a < 700; a++)
            for (uint32_t b = 0; b < 700; b++)
                if (counts[a][b] > best && !is_spelled(spelling, m->count, a, b, &both))
                    best = counts[a][b], left = a, right = b;
        if (best < 2) break;
        is_spelled(spelling, m->count, left, right, &spelling[256 + m->count]);
        m->merges[m->count][0] = (uint16_t)left;
        m->merges[m->count][1] = (uint16_t)right;
        for (size_t w = 0; w < num_words; w++) {
            size_t kept = 0;
            for (size_t i = 0; i < words[w].length; i++) {
                uint16_t *s = words[w].symbols;
                bool here = i + 1 < words[w].length && s[i] == left && s[i + 1] == right;
                s[kept++] = here ? (uint16_t)(256 + m->count) : s[i];
                i += here;
            }
            words[w].length = kept;
        }
    }
    return m->count;
}

static void test_train(void) {
    static uint8_t text[6000];
    static PlainWord words[6000];
    static Merges plain, ours;
    uint16_t byte_ids[256];
    size_t length, num_words = 0, bytes = 0;
    for (uint64_t i = 0; bytes + 16 < sizeof text;
         i++) { /* words of few letters: many equal counts, many overlaps */
        text[bytes++] = ' ';
        for (uint32_t k = 0, n = 1 + random_below(10, 7, i); k < n; k++)
            text[bytes++] = (uint8_t)("abc"[random_below(3, 8, 20 * i + k)]);
    }
    Tokenizer *t = train(text, bytes, 256 + 150 + 1, 100000, NULL);
    TEST_CHECK(t && tokenizer_vocab_size(t) == 407, "%s", err.text);
    if (!t) return;
    for (int id = 0; id < 256; id++) byte_ids[(uint8_t)*tokenizer_decode(t, id, &length)] = (uint16_t)id;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == ' ') num_words++;
        PlainWord *word = &words[num_words - 1];
        word->symbols[word->length++] = byte_ids[text[i]];
    }
    TEST_CHECK(tokenizer_save(t, in_folder("merges"), &err), "%s", err.text);
    plain_train(words, num_words, 150, byte_ids, &plain);
    read_merges(in_folder("merges"), byte_ids, &ours);
    TEST_CHECK(ours.count == 150 && plain.count == 150, "%zu %zu merges", ours.count, plain.count);
    for (size_t i = 0; i < 150; i++)
        TEST_CHECK(!memcmp(ours.merges[i], plain.merges[i], 4), "merge %zu: %d %d, plainly %d %d", i,
                   ours.merges[i][0], ours.merges[i][1], plain.merges[i][0], plain.merges[i][1]);
    tokenizer_close(t);

    uint64_t left_out;
    t = train((const uint8_t *)"ab ab cd cd ab", 14, 300, 2, &left_out); /* "ab", " ab"; not " cd" */
    TEST_CHECK(t && left_out == 2 && tokenizer_vocab_size(t) == 259, "%llu left out",
               (unsigned long long)left_out);
    tokenizer_close(t);
    t = train((const uint8_t *)"", 0, 300, 10, NULL);
    TEST_CHECK(t && tokenizer_vocab_size(t) == 257, "no text");
    tokenizer_close(t);
}

static void expect_refused(const char *text, const char *phrase) {
    Tokenizer *t = tokenizer_parse(text, strlen(text), "m.bpe", &err);
    TEST_CHECK(!t && strstr(err.text, phrase) && !strncmp(err.text, "m.bpe: ", 7), "%s, not: %s", err.text,
               phrase);
    tokenizer_close(t);
}

static void test_files(void) {
    expect_refused("", "empty");
    expect_refused("{\"!\": 0}", "JSON");
    expect_refused("#version: 0.2\na b\na b\n", "line 3 makes a symbol that an earlier line makes");
    expect_refused("a b\nab c\na bc\n", "line 3 merges a symbol that no line before it makes");
    expect_refused("a b\n\nb c\n", "line 2 is not two symbols");
    expect_refused("a b c\n", "line 1 is not");
    expect_refused("a  b\n", "line 1 is not");
    expect_refused("ab\n", "line 1 is not");
    expect_refused("a \xE4\xB8\xAD\n", "line 1 is not");
    expect_refused("a \xC5\n", "line 1 is not");
    static const char *const good[] = {"a b\nab c\n", "#version: 0.2\r\na b\r\nab c\r\n", "a b\nab c"};
    uint32_t fingerprint = 0;
    for (int i = 0; i < 3; i++) { /* the same merges however they are written */
        Tokenizer *t = tokenizer_parse(good[i], strlen(good[i]), "m.bpe", &err);
        TEST_CHECK(t && tokenizer_vocab_size(t) == 259, "%s", err.text);
        if (i == 0) fingerprint = tokenizer_fingerprint(t);
        TEST_CHECK(tokenizer_fingerprint(t) == fingerprint && fingerprint, "%d: %x", i, fingerprint);
        tokenizer_close(t);
    }
    static const uint16_t unknown[][2] = {{0, 256}}, twice[][2] = {{0, 1}, {0, 1}};
    TEST_CHECK(!tokenizer_from_merges(unknown, 1, &err) && strstr(err.text, "not known yet"), "%s", err.text);
    TEST_CHECK(!tokenizer_from_merges(twice, 2, &err) && strstr(err.text, "spells what"), "%s", err.text);
    TEST_CHECK(!tokenizer_open(in_folder("none"), &err) && strstr(err.text, "none"), "%s", err.text);

    char path[512];
    TEST_CHECK(file_write(in_folder("x.tokenizer"), "byte\n", 5, &err), "%s", err.text);
    static const char *const beside[] = {"x_train_000000.bin", "x_train_*.bin", "x_val_000000.bin"};
    for (int i = 0; i < 3; i++)
        TEST_CHECK(tokenizer_find_beside(in_folder(beside[i]), path, sizeof path) &&
                       !strcmp(path, in_folder("x.tokenizer")),
                   "%s", beside[i]);
    TEST_CHECK(!tokenizer_find_beside(in_folder("y_train_000000.bin"), path, sizeof path), "%s", path);
    TEST_CHECK(!tokenizer_find_beside(in_folder("x.bin"), path, sizeof path), "%s", path);
    TEST_CHECK(!tokenizer_find_beside(in_folder("x_val_*"), path, 10), "a short buffer");
}

int main(void) {
    const char *temporary = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/test_tokenizer.XXXXXX", temporary ? temporary : "/tmp");
    if (!mkdtemp(folder)) return 1;
    test_byte_level();
    test_pretokens();
    test_encode();
    test_long_word();
    test_train();
    test_files();
    static const char *const names[] = {"byte", "merges", "x.tokenizer"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(in_folder(names[i]));
    TEST_CHECK(rmdir(folder) == 0, "something is left in %s", folder);
    return test_end("tokenizer");
}
