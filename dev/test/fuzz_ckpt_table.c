/* fuzz_ckpt_table.c: any bytes as an index table, as records of a manifest, and as names. What is accepted must be
 * consistent, so that following it touches nothing outside. The checksums would keep the fuzzer out, so the bytes are
 * also tried with checksums made to fit. Run by test_ckpt_table.c and by libFuzzer; see fuzz.h. */
#include "base/check.h"
#include "base/crc32c.h"
#include "ckpt/ckpt_log.h"
#include "ckpt/ckpt_table.h"
#include "fuzz.h"

static void use_table(void *image, size_t bytes) {
    CkptTable t, merged;
    Error err = {""};
    if (!ckpt_table_view(&t, image, bytes, &err)) {
        CHECK(err.text[0] != 0);
        return;
    }
    CHECK(t.head->bytes <= bytes);
    for (uint32_t i = 0; i < t.head->tensors; i++) {
        const CkptTableTensor *tensor = &t.tensors[i];
        uint64_t elements = ckpt_table_elements(tensor), present = ckpt_table_present(&t, tensor);
        CHECK(ckpt_table_tensor(&t, tensor->name) == tensor && present <= elements);
        CHECK(ckpt_table_covers_range(&t, tensor, 0, elements) == (present == elements));
        for (uint32_t k = 0; k < tensor->pieces; k++) {
            const CkptTablePiece *p = &t.pieces[tensor->first_piece + k];
            uint64_t bytes_of_it = (p->end - p->begin) * ckpt_type_bytes((CkptType)tensor->type);
            uint64_t chunks = (bytes_of_it + CKPT_CHUNK - 1) / CKPT_CHUNK;
            CHECK(ckpt_table_piece(&t, tensor, p->begin) == p);
            CHECK(p->source < t.head->sources && p->first_chunk + chunks <= t.head->chunks);
        }
    }
    if (!ckpt_table_merge(&merged, &t, 1, &err)) return;
    CHECK(ckpt_table_view(&t, merged.head, (size_t)merged.head->bytes, &err));
    free(merged.head);
}

/* The same bytes with the checksums that they should have. */
static void use_sealed_table(uint8_t *image, size_t bytes) {
    CkptTable t = {.head = (CkptTableHead *)(void *)image};
    if (bytes < sizeof(CkptTableHead) || t.head->bytes < sizeof(CkptTableHead) || t.head->bytes > bytes)
        return;
    memcpy(t.head->magic, "toroidtb", 8);
    t.head->version = 1;
    ckpt_table_seal(&t);
    use_table(image, bytes);
}

static void use_records(uint8_t *blocks, size_t bytes, bool sealed) {
    static CkptRecord records[CKPT_LOG_RECORDS];
    uint64_t sequence = 0;
    size_t last = 0;
    for (size_t at = 0; sealed && at + CKPT_BLOCK <= bytes; at += CKPT_BLOCK) {
        CkptRecord r = {.rank = 0};
        memcpy(blocks + at, "toroidck\1\0\0", 12);
        memcpy(r.run, blocks + at + 16, 16);
        memcpy(&r.id.attempt, blocks + at + 32, 4);
        memcpy(&r.rank, blocks + at + 36, 4);
        memcpy(&r.id.step, blocks + at + 40, 8);
        uint32_t crc = crc32c(ckpt_seed(r.run, r.id, r.rank, CKPT_SEED_RECORD), blocks + at, CKPT_BLOCK - 4);
        memcpy(blocks + at + CKPT_BLOCK - 4, &crc, 4);
    }
    size_t count = ckpt_log_parse(blocks, bytes, records, CKPT_LOG_RECORDS, &sequence, &last);
    for (size_t i = 0; i < count; i++) {
        const CkptRecord *r = &records[i];
        CHECK(memchr(r->node, 0, sizeof r->node) && r->id.attempt > 0);
        CHECK(i == 0 || r[-1].sequence < r->sequence);
        if (r->kind == CKPT_RECORD_SHARD) CHECK(r->rank < r->writers && r->table_bytes < r->used_bytes);
    }
}

static void use_name(const uint8_t *data, size_t bytes) {
    char name[CKPT_FILE_NAME_BYTES], node[CKPT_NODE_BYTES], again[CKPT_FILE_NAME_BYTES];
    uint32_t rank, n;
    CkptId id;
    const char *end;
    if (bytes >= sizeof name) bytes = sizeof name - 1;
    memcpy(name, data, bytes);
    name[bytes] = 0;
    if (ckpt_segment_parse(name, node, &rank, &n)) ckpt_segment_name(again, node, rank, n);
    if (ckpt_manifest_parse(name, node, &rank)) ckpt_manifest_name(again, node, rank);
    if (ckpt_id_parse(name, &id, &end)) CHECK(end > name && id.attempt > 0);
    ckpt_node_name(node, name);
    CHECK(node[0] && strlen(node) < sizeof node);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    uint8_t *copy = aligned_alloc(64, (bytes + 64) / 64 * 64); /* tables are read in place */
    CHECK(copy != NULL);
    memcpy(copy, data, bytes);
    use_table(copy, bytes);
    use_sealed_table(copy, bytes);
    memcpy(copy, data, bytes);
    use_records(copy, bytes, false);
    use_records(copy, bytes, true);
    use_name(data, bytes);
    free(copy);
    return 0;
}
