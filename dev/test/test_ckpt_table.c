/* test_ckpt_table.c: index tables: what is put in is found, merged from thousands of writers too; and nothing that is wrong
 * is believed. With an argument, that many writers, and times (a benchmark). */
#include "base/log.h"
#include "fuzz_ckpt_table.c"
#include "test.h"

static const uint8_t run_id[16] = {5, 4, 3};

static void name_tensor(char *name, uint32_t tensor) {
    snprintf(name, CKPT_NAME_BYTES, "t%05u", (unsigned)tensor);
}

/* The table of one of W writers of `tensors` tensors of `elements` elements: its W-th of each, one chunk per piece. */
static void writer_table(CkptTable *t, uint32_t rank, uint32_t writers, uint32_t tensors, uint64_t elements) {
    void *image = malloc((size_t)ckpt_table_bytes(1, tensors, tensors, tensors));
    CHECK(image != NULL);
    ckpt_table_layout(t, image, 1, tensors, tensors, tensors);
    memcpy(t->head->run, run_id, sizeof run_id);
    t->head->attempt = 1;
    t->head->step = 7;
    t->head->rank = rank;
    t->head->writers = writers;
    t->sources[0] = (CkptTableSource){.node = "n", .rank = rank, .table_offset = 1 << 30, .chunks = tensors};
    for (uint32_t i = 0; i < tensors; i++) {
        t->tensors[i] = (CkptTableTensor){
            .type = CKPT_FP32, .dims = 2, .shape = {elements / 4, 4, 1, 1}, .first_piece = i, .pieces = 1};
        name_tensor(t->tensors[i].name, i);
        t->pieces[i] = (CkptTablePiece){.begin = elements * rank / writers,
                                        .end = elements * (rank + 1) / writers,
                                        .offset = 4096 + 64 * (uint64_t)i,
                                        .first_chunk = i};
        t->crcs[i] = rank * 1000 + i;
    }
    ckpt_table_seal(t);
}

/* Every element is found with the writer that has it. */
static void test_merge(uint32_t writers, uint32_t tensors, bool timed) {
    uint64_t elements = 4 * (uint64_t)writers + 4 * 97;
    CkptTable *parts = calloc(writers, sizeof *parts), merged, again;
    Error err = {""};
    CHECK(parts != NULL);
    for (uint32_t w = 0; w < writers; w++)
        writer_table(&parts[writers - 1 - w], w, writers, tensors, elements);
    double from = log_seconds();
    TEST_CHECK(ckpt_table_merge(&merged, parts, writers, &err), "%s", err.text);
    double merged_at = log_seconds();
    TEST_CHECK(ckpt_table_view(&again, merged.head, (size_t)merged.head->bytes, &err), "%s", err.text);
    TEST_CHECK(ckpt_table_covers(&again, &err), "%s", err.text);
    char name[CKPT_NAME_BYTES];
    name_tensor(name, tensors / 2);
    double looked_from = log_seconds();
    const CkptTableTensor *t = ckpt_table_tensor(&again, name);
    TEST_CHECK(t && t->pieces == writers, "%s", name);
    uint64_t wrong = 0;
    for (uint64_t e = 0; t && e < elements; e++) {
        const CkptTablePiece *p = ckpt_table_piece(&again, t, e);
        wrong += !p || p->begin > e || p->end <= e ||
                 again.crcs[p->first_chunk] != again.sources[p->source].rank * 1000 + tensors / 2;
    }
    double done = log_seconds();
    TEST_CHECK(wrong == 0, "%d elements", (int)wrong);
    TEST_CHECK(!ckpt_table_tensor(&again, "t") && !ckpt_table_tensor(&again, "zz"), "no such tensor");
    if (timed)
        printf(
            "%u writers, %u tensors each: merged in %.3f s, all of one tensor looked up in %.6f s, %.1f MB\n",
            (unsigned)writers, (unsigned)tensors, merged_at - from, done - looked_from,
            (double)merged.head->bytes / 1e6);
    for (uint32_t w = 0; w < writers; w++) free(parts[w].head);
    free(parts);
    free(merged.head);
}

/* Ranges that several writers wrote count once; gaps and disagreements are found. */
static void test_overlaps(void) {
    CkptTable parts[3], merged;
    Error err = {""};
    for (uint32_t w = 0; w < 3; w++) writer_table(&parts[w], w, 3, 2, 120);
    static const uint64_t ranges[3][2] = {{0, 80}, {0, 80}, {60, 120}};
    for (uint32_t w = 0; w < 3; w++) {
        parts[w].pieces[0].begin = ranges[w][0];
        parts[w].pieces[0].end = ranges[w][1];
        ckpt_table_seal(&parts[w]);
    }
    TEST_CHECK(ckpt_table_merge(&merged, parts, 3, &err), "%s", err.text);
    TEST_CHECK(merged.tensors[0].pieces == 2 && ckpt_table_present(&merged, &merged.tensors[0]) == 120,
               "%d pieces", (int)merged.tensors[0].pieces);
    TEST_CHECK(ckpt_table_covers(&merged, &err) &&
                   ckpt_table_covers_range(&merged, &merged.tensors[0], 70, 90),
               "%s", err.text);
    free(merged.head);
    parts[2].pieces[0].begin = 81;
    ckpt_table_seal(&parts[2]);
    TEST_CHECK(ckpt_table_merge(&merged, parts, 3, &err) && !ckpt_table_covers(&merged, &err), "a gap");
    TEST_CHECK(!ckpt_table_covers_range(&merged, &merged.tensors[0], 70, 90), "a gap");
    free(merged.head);
    parts[2].tensors[0].shape[0]++;
    ckpt_table_seal(&parts[2]);
    TEST_CHECK(!ckpt_table_merge(&merged, parts, 3, &err) && strstr(err.text, "t00000"), "%s", err.text);
    parts[2].tensors[0].shape[0]--;
    parts[2].sources[0].rank = 1;
    ckpt_table_seal(&parts[2]);
    TEST_CHECK(!ckpt_table_merge(&merged, parts, 3, &err), "two of one rank");
    for (int w = 0; w < 3; w++) free(parts[w].head);
}

/* Each bit of a table, and of a record, is under a checksum. */
static void test_flips(void) {
    CkptTable t, seen;
    Error err = {""};
    writer_table(&t, 1, 3, 4, 1000);
    TEST_CHECK(ckpt_table_view(&seen, t.head, (size_t)t.head->bytes, &err), "%s", err.text);
    uint8_t *image = (uint8_t *)t.head;
    uint64_t missed = 0;
    size_t bytes = (size_t)t.head->bytes;
    for (size_t bit = 0; bit < 8 * bytes; bit++) {
        image[bit / 8] ^= (uint8_t)(1u << bit % 8);
        missed += ckpt_table_view(&seen, image, bytes, &err);
        image[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    TEST_CHECK(missed == 0, "%d flipped bits were not seen", (int)missed);
    for (size_t cut = 0; cut < bytes; cut++)
        TEST_CHECK(!ckpt_table_view(&seen, image, cut, &err), "cut off at %zu", cut);
    free(image);
    CkptRecord r = {.kind = CKPT_RECORD_SHARD,
                    .id = {1, 2},
                    .rank = 3,
                    .writers = 4,
                    .node = "n",
                    .table_offset = 8192,
                    .table_bytes = 100,
                    .used_bytes = 16384,
                    .payload_bytes = 4096},
               back;
    static uint8_t block[CKPT_BLOCK];
    ckpt_record_encode(&r, block);
    TEST_CHECK(ckpt_record_decode(&back, block) && back.used_bytes == 16384 && back.rank == 3, "a record");
    missed = 0;
    for (size_t bit = 0; bit < 8 * CKPT_BLOCK; bit++) {
        block[bit / 8] ^= (uint8_t)(1u << bit % 8);
        missed += ckpt_record_decode(&back, block);
        block[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    TEST_CHECK(missed == 0, "%d flipped bits were not seen", (int)missed);
}

/* The same bytes never validate for another run, attempt, step, writer or place. */
static void test_seeds(void) {
    uint8_t other[16] = {5, 4, 2};
    uint32_t seed = ckpt_seed(run_id, (CkptId){1, 7}, 2, 5);
    TEST_CHECK(seed != ckpt_seed(other, (CkptId){1, 7}, 2, 5), "run");
    uint64_t same = 0;
    for (uint32_t k = 0; k < 32; k++) {
        same += seed == ckpt_seed(run_id, (CkptId){1u ^ (1u << k), 7}, 2, 5);
        same += seed == ckpt_seed(run_id, (CkptId){1, 7u ^ ((uint64_t)1 << k)}, 2, 5);
        same += seed == ckpt_seed(run_id, (CkptId){1, 7u ^ ((uint64_t)1 << (32 + k))}, 2, 5);
        same += seed == ckpt_seed(run_id, (CkptId){1, 7}, 2u ^ (1u << k), 5);
        same += seed == ckpt_seed(run_id, (CkptId){1, 7}, 2, 5u ^ (1u << k));
    }
    TEST_CHECK(same == 0, "%d seeds", (int)same);
}

/* Tables with some words changed (the fuzzer's own seeds are strings), and names. */
static void test_fuzz(void) {
    CkptTable t;
    writer_table(&t, 1, 3, 3, 1000);
    size_t bytes = (size_t)t.head->bytes;
    for (uint64_t round = 0; round < 20000; round++) {
        uint32_t r[4];
        uint8_t *copy = malloc(bytes);
        CHECK(copy != NULL);
        memcpy(copy, t.head, bytes);
        rng_block(round, RNG_STREAM(RNG_TEST, 21), 0, r);
        for (uint32_t k = 0; k <= r[3] % 4; k++) {
            uint32_t q[4];
            rng_block(round, RNG_STREAM(RNG_TEST, 22), k, q);
            size_t at = q[0] % (bytes / 4) * 4;
            uint32_t value = q[2] % 4 == 0   ? q[1]
                             : q[2] % 4 == 1 ? q[1] % 8
                             : q[2] % 4 == 2 ? 0xffffffffu
                                             : 1u << q[1] % 32;
            memcpy(copy + at, &value, 4);
        }
        LLVMFuzzerTestOneInput(copy, r[0] % 16 ? bytes : r[1] % bytes);
        free(copy);
    }
    free(t.head);
    static const char *const names[] = {"host-1.12.3.seg",       "host.7.log", "000001.000000000100",
                                        "host.4294967296.1.seg", "a.b.c.seg",  "..log",
                                        "99999999999.1",         "marks.log"};
    TEST_CHECK(fuzz_run(LLVMFuzzerTestOneInput, names, 8, 4000) == 4000, "fuzz");
}

int main(int argc, char **argv) {
    test_merge(argc > 1 ? (uint32_t)atoi(argv[1]) : 512, 40, argc > 1);
    test_merge(1, 3, false);
    test_overlaps();
    test_flips();
    test_seeds();
    test_fuzz();
    return test_end("ckpt_table");
}
