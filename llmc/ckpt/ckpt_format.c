/* ckpt_format.c: see ckpt_format.h. */
#include "ckpt/ckpt_format.h"
#include "base/check.h"
#include "base/crc32c.h"
#include <string.h>

static const char magic[8] = {'t', 'o', 'r', 'o', 'i', 'd', 'c', 'k'};
enum { VERSION = 1, CRC_AT = CKPT_BLOCK - 4 };

/* The record's first bytes, as they are on the disk. */
typedef struct {
    char magic[8];
    uint32_t version, kind;
    uint8_t run[16];
    uint32_t attempt, rank;
    uint64_t step;
    uint32_t writers, flags;
    uint64_t sequence;
    char node[CKPT_NODE_BYTES];
    uint32_t segment, tensors;
    uint64_t table_offset, table_bytes, used_bytes, payload_bytes;
    int64_t unix_seconds;
} RecordBytes;
_Static_assert(sizeof(RecordBytes) == 176, "the record's layout");

size_t ckpt_type_bytes(CkptType type) {
    static const size_t bytes[] = {4, 2, 4, 1};
    CHECK_OP(type, <=, CKPT_UINT8);
    return bytes[type];
}

int ckpt_id_compare(CkptId a, CkptId b) {
    if (a.attempt != b.attempt) return a.attempt < b.attempt ? -1 : 1;
    return a.step < b.step ? -1 : a.step > b.step;
}

uint32_t ckpt_seed(const uint8_t run[16], CkptId id, uint32_t rank, uint32_t number) {
    uint8_t prefix[36];
    memcpy(prefix, run, 16);
    memcpy(prefix + 16, &id.attempt, 4);
    memcpy(prefix + 20, &rank, 4);
    memcpy(prefix + 24, &id.step, 8);
    memcpy(prefix + 32, &number, 4);
    return crc32c(0, prefix, sizeof prefix);
}

void ckpt_record_encode(const CkptRecord *r, void *block) {
    RecordBytes b = {.version = VERSION,
                     .kind = r->kind,
                     .attempt = r->id.attempt,
                     .rank = r->rank,
                     .step = r->id.step,
                     .writers = r->writers,
                     .flags = r->flags,
                     .sequence = r->sequence,
                     .segment = r->segment,
                     .tensors = r->tensors,
                     .table_offset = r->table_offset,
                     .table_bytes = r->table_bytes,
                     .used_bytes = r->used_bytes,
                     .payload_bytes = r->payload_bytes,
                     .unix_seconds = r->unix_seconds};
    memcpy(b.magic, magic, sizeof magic);
    memcpy(b.run, r->run, sizeof b.run);
    memcpy(b.node, r->node, sizeof b.node);
    memset(block, 0, CKPT_BLOCK);
    memcpy(block, &b, sizeof b);
    uint32_t crc = crc32c(ckpt_seed(r->run, r->id, r->rank, CKPT_SEED_RECORD), block, CRC_AT);
    memcpy((char *)block + CRC_AT, &crc, 4);
}

static bool node_is_valid(const char node[CKPT_NODE_BYTES]) {
    size_t length = 0;
    for (; length < CKPT_NODE_BYTES && node[length]; length++) {
        char c = node[length];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
              c == '-'))
            return false;
    }
    if (length == CKPT_NODE_BYTES) return false;
    for (size_t i = length; i < CKPT_NODE_BYTES; i++)
        if (node[i]) return false;
    return true;
}

/* Where a SHARD says that things are. */
static bool places_are_valid(const CkptRecord *r) {
    const uint64_t far = (uint64_t)1 << 60;
    return r->used_bytes < far && r->table_bytes < far && r->payload_bytes < far &&
           r->used_bytes % CKPT_BLOCK == 0 && r->table_offset % CKPT_BLOCK == 0 &&
           r->table_offset >= CKPT_BLOCK && r->table_offset < far &&
           r->table_offset + ckpt_blocks(r->table_bytes) + CKPT_BLOCK == r->used_bytes &&
           r->payload_bytes <= r->table_offset - CKPT_BLOCK;
}

bool ckpt_record_decode(CkptRecord *r, const void *block) {
    RecordBytes b;
    uint32_t crc;
    memcpy(&b, block, sizeof b);
    memcpy(&crc, (const char *)block + CRC_AT, 4);
    if (memcmp(b.magic, magic, sizeof magic) != 0 || b.version != VERSION) return false;
    CkptId id = {b.attempt, b.step};
    if (crc32c(ckpt_seed(b.run, id, b.rank, CKPT_SEED_RECORD), block, CRC_AT) != crc) return false;
    if (b.kind < CKPT_RECORD_SEGMENT || b.kind > CKPT_RECORD_DROP || !b.attempt) return false;
    *r = (CkptRecord){.kind = (CkptRecordKind)b.kind,
                      .id = id,
                      .rank = b.rank,
                      .writers = b.writers,
                      .flags = b.flags,
                      .sequence = b.sequence,
                      .segment = b.segment,
                      .tensors = b.tensors,
                      .table_offset = b.table_offset,
                      .table_bytes = b.table_bytes,
                      .used_bytes = b.used_bytes,
                      .payload_bytes = b.payload_bytes,
                      .unix_seconds = b.unix_seconds};
    memcpy(r->run, b.run, sizeof r->run);
    memcpy(r->node, b.node, sizeof r->node);
    if (!node_is_valid(r->node) || r->writers > CKPT_WRITERS_MAX) return false;
    if (r->kind == CKPT_RECORD_SHARD && (r->rank >= r->writers || !places_are_valid(r) || !r->node[0]))
        return false;
    return true;
}

void ckpt_node_name(char out[CKPT_NODE_BYTES], const char *node) {
    memset(out, 0, CKPT_NODE_BYTES);
    for (size_t i = 0; i < CKPT_NODE_BYTES - 1 && node[i]; i++) {
        char one[CKPT_NODE_BYTES] = {node[i]};
        out[i] = node_is_valid(one) ? node[i] : '-';
    }
    if (!out[0]) out[0] = '-';
}

void ckpt_segment_name(char *out, const char *node, uint32_t rank, uint32_t n) {
    snprintf(out, CKPT_FILE_NAME_BYTES, "seg/%s.%u.%u.seg", node, (unsigned)rank, (unsigned)n);
}

void ckpt_manifest_name(char *out, const char *node, uint32_t rank) {
    snprintf(out, CKPT_FILE_NAME_BYTES, "manifest/%s.%u.log", node, (unsigned)rank);
}

CkptIdText ckpt_id_text(CkptId id) {
    CkptIdText t;
    snprintf(t.text, sizeof t.text, "%06u.%012llu", (unsigned)id.attempt, (unsigned long long)id.step);
    return t;
}

void ckpt_table_name(char *out, CkptId id) {
    snprintf(out, CKPT_FILE_NAME_BYTES, "table/%s.tab", ckpt_id_text(id).text);
}

void ckpt_lock_name(char *out, CkptId id) {
    snprintf(out, CKPT_FILE_NAME_BYTES, "lock/%s", ckpt_id_text(id).text);
}

/* Digits alone, at most max; moves *at behind them. */
static bool number_parse(const char **at, uint64_t max, uint64_t *value) {
    const char *p = *at;
    for (*value = 0; *p >= '0' && *p <= '9'; p++) {
        uint64_t digit = (uint64_t)(*p - '0');
        if (*value > (max - digit) / 10) return false;
        *value = 10 * *value + digit;
    }
    bool some = p != *at;
    *at = p;
    return some;
}

bool ckpt_id_parse(const char *text, CkptId *id, const char **end) {
    uint64_t attempt, step;
    if (!number_parse(&text, UINT32_MAX, &attempt) || *text++ != '.' ||
        !number_parse(&text, UINT64_MAX, &step))
        return false;
    *id = (CkptId){(uint32_t)attempt, step};
    *end = text;
    return attempt > 0;
}

/* The node before the first '.'; moves *at behind the '.'. */
static bool node_parse(const char **at, char node[CKPT_NODE_BYTES]) {
    const char *dot = strchr(*at, '.');
    if (!dot || dot == *at || dot - *at >= CKPT_NODE_BYTES) return false;
    memset(node, 0, CKPT_NODE_BYTES);
    memcpy(node, *at, (size_t)(dot - *at));
    *at = dot + 1;
    return node_is_valid(node);
}

static bool writer_parse(const char *name, char node[CKPT_NODE_BYTES], uint32_t *rank, const char *rest) {
    uint64_t value;
    if (!node_parse(&name, node) || !number_parse(&name, CKPT_WRITERS_MAX, &value) || strcmp(name, rest) != 0)
        return false;
    *rank = (uint32_t)value;
    return true;
}

bool ckpt_manifest_parse(const char *name, char node[CKPT_NODE_BYTES], uint32_t *rank) {
    return writer_parse(name, node, rank, ".log");
}

bool ckpt_object_parse(const char *name, char node[CKPT_NODE_BYTES], uint32_t *rank) {
    return writer_parse(name, node, rank, ".seg");
}

bool ckpt_segment_parse(const char *name, char node[CKPT_NODE_BYTES], uint32_t *rank, uint32_t *n) {
    uint64_t value, number;
    if (!node_parse(&name, node) || !number_parse(&name, CKPT_WRITERS_MAX, &value) || *name++ != '.' ||
        !number_parse(&name, UINT32_MAX, &number) || strcmp(name, ".seg") != 0)
        return false;
    *rank = (uint32_t)value;
    *n = (uint32_t)number;
    return true;
}
