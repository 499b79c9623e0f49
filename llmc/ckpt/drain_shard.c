/* drain_shard.c: see drain_shard.h. */
#include "ckpt/drain_shard.h"
#include "base/check.h"
#include "base/crc32c.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int by_offset(const void *a, const void *b) {
    const DrainChunk *x = a, *y = b;
    return x->offset != y->offset ? (x->offset < y->offset ? -1 : 1) : 0;
}

/* The chunks of all pieces, with where they are. */
static bool index_chunks(DrainShard *s, Error *err) {
    const CkptTable *t = &s->table;
    s->chunks = malloc(((size_t)t->head->chunks + 1) * sizeof *s->chunks);
    s->scratch = malloc(CKPT_CHUNK);
    if (!s->chunks || !s->scratch)
        return error_set(err, "%s/%s: no memory to check it", s->source->place, s->shard->name);
    for (uint32_t i = 0; i < t->head->tensors; i++) {
        const CkptTableTensor *tensor = &t->tensors[i];
        for (uint32_t k = 0; k < tensor->pieces; k++) {
            const CkptTablePiece *p = &t->pieces[tensor->first_piece + k];
            uint64_t bytes = (p->end - p->begin) * ckpt_type_bytes((CkptType)tensor->type);
            for (uint64_t at = 0; at < bytes && s->count < t->head->chunks; at += CKPT_CHUNK) {
                uint32_t chunk = p->first_chunk + (uint32_t)(at / CKPT_CHUNK);
                s->chunks[s->count++] = (DrainChunk){
                    p->offset + at, (uint32_t)(bytes - at < CKPT_CHUNK ? bytes - at : CKPT_CHUNK),
                    t->crcs[chunk], chunk - t->sources[p->source].first_chunk};
            }
        }
    }
    if (s->count) qsort(s->chunks, s->count, sizeof *s->chunks, by_offset);
    return true;
}

static bool corrupt(DrainShard *s, uint64_t at, const char *what, Error *err) {
    s->corrupt = true;
    return error_set(err,
                     "checkpoint %s: %s/%s: %s at byte %" PRIu64 " fails its checksum, so it is not uploaded",
                     ckpt_id_text(s->shard->record.id).text, s->source->place, s->shard->name, what, at);
}

bool drain_shard_open(DrainShard *s, CkptSource *source, const CkptScanShard *shard, Error *err) {
    const CkptRecord *r = &shard->record;
    CkptRecord footer;
    memset(s, 0, sizeof *s);
    s->source = source;
    s->shard = shard;
    if (!source->read(source, shard->name, s->footer, CKPT_BLOCK, r->used_bytes - CKPT_BLOCK, err))
        return false;
    if (!ckpt_record_decode(&footer, s->footer) || footer.kind != CKPT_RECORD_SHARD ||
        footer.rank != r->rank || memcmp(footer.run, r->run, sizeof r->run) != 0 ||
        ckpt_id_compare(footer.id, r->id) != 0 || footer.used_bytes != r->used_bytes ||
        footer.table_offset != r->table_offset || footer.table_bytes != r->table_bytes)
        return corrupt(s, r->used_bytes - CKPT_BLOCK, "the footer", err);
    if (!ckpt_scan_table(&s->table, source, shard, err)) {
        s->corrupt = true;
        return false;
    }
    return index_chunks(s, err);
}

void drain_shard_close(DrainShard *s) {
    free(s->table.head);
    free(s->chunks);
    free(s->scratch);
    memset(s, 0, sizeof *s);
}

/* Where [begin, begin + bytes) and [offset, offset + size) overlap, is data what is expected? */
static bool agrees(const unsigned char *data, uint64_t begin, size_t bytes, const void *expected,
                   uint64_t offset, uint64_t size) {
    uint64_t from = begin > offset ? begin : offset,
             to = begin + bytes < offset + size ? begin + bytes : offset + size;
    return from >= to || !memcmp(data + (from - begin), (const unsigned char *)expected + (from - offset),
                                 (size_t)(to - from));
}

/* A chunk that the range cuts is read whole, and must then be what came. */
static bool check_chunk(DrainShard *s, const DrainChunk *c, const unsigned char *data, uint64_t begin,
                        size_t bytes, Error *err) {
    const CkptRecord *r = &s->shard->record;
    const unsigned char *whole = data + (c->offset - begin);
    if (c->offset < begin || c->offset + c->bytes > begin + bytes) {
        if (!s->source->read(s->source, s->shard->name, s->scratch, c->bytes, c->offset, err)) return false;
        whole = s->scratch;
    }
    if (crc32c(ckpt_seed(r->run, r->id, r->rank, c->number), whole, c->bytes) != c->crc ||
        !agrees(data, begin, bytes, whole, c->offset, c->bytes))
        return corrupt(s, c->offset, "the chunk", err);
    return true;
}

/* The first chunk that may reach to `at`: chunks are at most CKPT_CHUNK long. */
static size_t first_chunk(const DrainShard *s, uint64_t at) {
    size_t low = 0, high = s->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (s->chunks[middle].offset + CKPT_CHUNK <= at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

bool drain_shard_read(void *ctx, void *data, size_t bytes, uint64_t offset, Error *err) {
    DrainShard *s = ctx;
    const CkptRecord *r = &s->shard->record;
    CHECK(offset + bytes <= r->used_bytes);
    if (!s->source->read(s->source, s->shard->name, data, bytes, offset, err)) return false;
    for (size_t i = first_chunk(s, offset); i < s->count && s->chunks[i].offset < offset + bytes; i++) {
        const DrainChunk *c = &s->chunks[i];
        if (c->offset + c->bytes > offset && !check_chunk(s, c, data, offset, bytes, err)) return false;
    }
    if (!agrees(data, offset, bytes, s->table.head, r->table_offset, r->table_bytes))
        return corrupt(s, r->table_offset, "the index table", err);
    if (!agrees(data, offset, bytes, s->footer, r->used_bytes - CKPT_BLOCK, CKPT_BLOCK))
        return corrupt(s, r->used_bytes - CKPT_BLOCK, "the footer", err);
    return true;
}
