/* ckpt_read.c: the bytes of checkpoints, each checked against its checksum before it is handed out: see ckpt_reader.h. */
#include "base/check.h"
#include "base/crc32c.h"
#include "ckpt/ckpt_reader_internal.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* A piece that is being read. */
typedef struct {
    CkptReader *reader;
    const CkptTable *table;
    const CkptTableTensor *tensor;
    const CkptTablePiece *piece;
    const CkptTableSource *source;
    char name[CKPT_FILE_NAME_BYTES];
    uint64_t bytes;
} Piece;

static CkptId id_of(const CkptTable *t) {
    return (CkptId){t->head->attempt, t->head->step};
}

static Piece piece_open(CkptReader *r, const CkptTable *t, const CkptTableTensor *tensor,
                        const CkptTablePiece *piece) {
    Piece p = {
        .reader = r, .table = t, .tensor = tensor, .piece = piece, .source = &t->sources[piece->source]};
    p.bytes = (piece->end - piece->begin) * ckpt_type_bytes((CkptType)tensor->type);
    if (r->source->store)
        ckpt_store_key(p.name, id_of(t), "seg", p.source->node, p.source->rank);
    else
        ckpt_segment_name(p.name, p.source->node, p.source->rank, p.source->segment);
    return p;
}

/* Does the chunk at this byte of the piece have its checksum? */
static bool chunk_is_whole(const Piece *p, uint64_t at, const void *data, size_t bytes) {
    uint32_t chunk = p->piece->first_chunk + (uint32_t)(at / CKPT_CHUNK);
    uint32_t seed =
        ckpt_seed(p->table->head->run, id_of(p->table), p->source->rank, chunk - p->source->first_chunk);
    return crc32c(seed, data, bytes) == p->table->crcs[chunk];
}

static bool chunk_error(const Piece *p, uint64_t at, Error *err) {
    return error_set(err,
                     "checkpoint %s, tensor %s: %s/%s: the chunk at byte %" PRIu64
                     " fails its checksum (use an older checkpoint, or a copy of this one; 'train_gpt2 ckpt "
                     "verify' tells which are whole)",
                     ckpt_id_text(id_of(p->table)).text, p->tensor->name, p->reader->source->place, p->name,
                     p->piece->offset + at);
}

/* Has each of these chunks its checksum? data: the piece's bytes [from, from + bytes), which are whole chunks (the piece's
 * last may be short). */
static bool check_chunks(const Piece *p, const char *data, uint64_t from, size_t bytes, Error *err) {
    for (size_t at = 0; at < bytes; at += CKPT_CHUNK) {
        size_t n = bytes - at < CKPT_CHUNK ? bytes - at : CKPT_CHUNK;
        if (!chunk_is_whole(p, from + at, data + at, n)) return chunk_error(p, from + at, err);
    }
    return true;
}

/* `bytes` bytes of the piece's file, from its byte `from` on: not checked yet. */
static bool read_bytes(const Piece *p, void *data, uint64_t from, size_t bytes, Error *err) {
    Error why;
    CkptSource *source = p->reader->source;
    return source->read(source, p->name, data, bytes, p->piece->offset + from, &why) ||
           error_set(err, "checkpoint %s, tensor %s: %s (use an older checkpoint, or a copy of this one)",
                     ckpt_id_text(id_of(p->table)).text, p->tensor->name, why.text);
}

/* The same, read first. */
static bool read_chunks(const Piece *p, void *data, uint64_t from, size_t bytes, Error *err) {
    return read_bytes(p, data, from, bytes, err) && check_chunks(p, data, from, bytes, err);
}

/* Bytes [from, to) of the piece: whole chunks straight into data, others by way of *scratch (CKPT_CHUNK, made when it is
 * needed). */
static bool read_piece(const Piece *p, char *data, uint64_t from, uint64_t to, void **scratch, Error *err) {
    while (from < to) {
        uint64_t begin = from - from % CKPT_CHUNK, end = begin + CKPT_CHUNK;
        if (end > p->bytes) end = p->bytes;
        if (begin == from && end <= to) {
            while (end < to && end - begin < CKPT_READ_BYTES) {
                uint64_t next = end + CKPT_CHUNK < p->bytes ? end + CKPT_CHUNK : p->bytes;
                if (next > to) break;
                end = next;
            }
            if (!read_chunks(p, data, begin, (size_t)(end - begin), err)) return false;
        } else {
            if (!*scratch && !(*scratch = malloc(CKPT_CHUNK)))
                return error_set(err, "no memory to read a chunk of a checkpoint");
            if (!read_chunks(p, *scratch, begin, (size_t)(end - begin), err)) return false;
            if (end > to) end = to;
            memcpy(data, (char *)*scratch + (from - begin), (size_t)(end - from));
        }
        data += end - from;
        from = end;
    }
    return true;
}

bool ckpt_reader_read(CkptReader *r, CkptId id, const char *name, CkptType type, uint64_t begin, uint64_t end,
                      void *data, Error *err) {
    const CkptLoaded *l = ckpt_reader_find(r, id, err);
    const CkptTableTensor *tensor = l && l->table.head ? ckpt_table_tensor(&l->table, name) : NULL;
    void *scratch = NULL;
    size_t element = ckpt_type_bytes(type);
    bool ok = true;
    if (!l) return false;
    if (!tensor)
        return error_set(err, "%s: checkpoint %s has no tensor %s", r->source->place, ckpt_id_text(id).text,
                         name);
    if (tensor->type != (uint32_t)type || begin > end || end > ckpt_table_elements(tensor))
        return error_set(err,
                         "%s: checkpoint %s, tensor %s: elements %" PRIu64 " to %" PRIu64
                         " of type %d were asked for; it has %" PRIu64 " of type %u",
                         r->source->place, ckpt_id_text(id).text, name, begin, end, (int)type,
                         ckpt_table_elements(tensor), (unsigned)tensor->type);
    for (char *to = data; ok && begin < end;) {
        const CkptTablePiece *piece = ckpt_table_piece(&l->table, tensor, begin);
        if (!piece || piece->end <= begin) {
            ok = error_set(err, "%s: checkpoint %s, tensor %s: element %" PRIu64 " is not here (%s)",
                           r->source->place, ckpt_id_text(id).text, name, begin,
                           "its shard is on another node, or was never finished");
            break;
        }
        uint64_t until = piece->end < end ? piece->end : end;
        Piece p = piece_open(r, &l->table, tensor, piece);
        ok = read_piece(&p, to, (begin - piece->begin) * element, (until - piece->begin) * element, &scratch,
                        err);
        to += (until - begin) * element;
        begin = until;
    }
    free(scratch);
    return ok;
}

bool ckpt_read_row(CkptReader *r, const CkptTable *t, const CkptWanted *parts, size_t count, Error *err) {
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++)
        bytes += (parts[i].end - parts[i].begin) * ckpt_type_bytes(parts[i].type);
    for (size_t i = 0; i < count; i++) {
        const CkptWanted *part = &parts[i];
        const CkptTableTensor *tensor = ckpt_table_tensor(t, part->name);
        Piece p = piece_open(r, t, tensor, ckpt_table_piece(t, tensor, part->begin));
        size_t element = ckpt_type_bytes(part->type);
        uint64_t from = (part->begin - p.piece->begin) * element;
        if (i == 0 && !read_bytes(&p, part->data, from, bytes, err)) return false;
        if (!check_chunks(&p, part->data, from, (size_t)(part->end - part->begin) * element, err))
            return false;
    }
    return true;
}

/* ---- verify ---- */

typedef struct {
    CkptReader *reader;
    uint64_t bad, done, total;
    void *chunk;
    Error *err;
    void (*progress)(double done);
} Verify;

static void found_bad(Verify *v, const Error *why) {
    if (!v->bad++) *v->err = *why;
}

/* Header and footer say whose segment it is. */
static void verify_record(Verify *v, const CkptScanShard *shard, CkptRecordKind kind, uint64_t offset) {
    CkptSource *source = v->reader->source;
    const CkptRecord *r = &shard->record;
    CkptRecord found;
    Error why;
    if (!source->read(source, shard->name, v->chunk, CKPT_BLOCK, offset, &why)) {
        found_bad(v, &why);
    } else if (!ckpt_record_decode(&found, v->chunk) || found.kind != kind || found.rank != r->rank ||
               ckpt_id_compare(found.id, r->id) != 0 || memcmp(found.run, r->run, sizeof r->run) != 0 ||
               found.used_bytes != r->used_bytes || found.table_offset != r->table_offset) {
        error_set(&why, "checkpoint %s: %s/%s: the record at byte %" PRIu64 " is not that of this shard",
                  ckpt_id_text(r->id).text, source->place, shard->name, offset);
        found_bad(v, &why);
    }
}

static void verify_pieces(Verify *v, const CkptTable *t, uint32_t rank) {
    Error why;
    for (uint32_t i = 0; i < t->head->tensors; i++)
        for (uint32_t k = 0; k < t->tensors[i].pieces; k++) {
            Piece p = piece_open(v->reader, t, &t->tensors[i], &t->pieces[t->tensors[i].first_piece + k]);
            if (p.source->rank != rank) continue;
            for (uint64_t at = 0; at < p.bytes; at += CKPT_CHUNK) {
                size_t n = p.bytes - at < CKPT_CHUNK ? (size_t)(p.bytes - at) : CKPT_CHUNK;
                if (!read_chunks(&p, v->chunk, at, n, &why)) found_bad(v, &why);
                v->done += n;
                if (v->progress && v->total) v->progress((double)v->done / (double)v->total);
            }
        }
}

static void verify_shard(Verify *v, const CkptLoaded *l, const CkptScanShard *shard) {
    CkptTable own;
    Error why;
    verify_record(v, shard, CKPT_RECORD_SEGMENT, 0);
    verify_record(v, shard, CKPT_RECORD_SHARD, shard->record.used_bytes - CKPT_BLOCK);
    if (ckpt_scan_table(&own, v->reader->source, shard, &why)) {
        verify_pieces(v, &own, shard->record.rank);
        free(own.head);
    } else {
        found_bad(v, &why);
        if (l->table.head) verify_pieces(v, &l->table, shard->record.rank);
    }
}

bool ckpt_reader_verify(CkptReader *r, CkptId id, uint64_t *bad_chunks, void (*progress)(double done),
                        Error *err) {
    const CkptLoaded *l = ckpt_reader_find(r, id, err);
    const CkptScanCheckpoint *c = ckpt_scan_find(&r->scan, id);
    *bad_chunks = 0;
    if (!l || !c) return false;
    Verify v = {.reader = r, .err = err, .progress = progress, .chunk = malloc(CKPT_CHUNK)};
    if (!v.chunk) return error_set(err, "no memory to read a chunk of a checkpoint");
    for (size_t i = 0; i < c->count; i++) v.total += r->scan.shards[c->first + i].record.payload_bytes;
    for (size_t i = 0; i < c->count; i++) verify_shard(&v, l, &r->scan.shards[c->first + i]);
    free(v.chunk);
    *bad_chunks = v.bad;
    return v.bad == 0;
}
