/* ckpt_shard_write.c: a planned shard goes to the disk: see ckpt_shard.h. */
#include "base/check.h"
#include "base/crc32c.h"
#include "ckpt/ckpt_shard.h"
#include <string.h>
#include <time.h>

typedef struct {
    CkptShardWriter *w;
    CkptIo *io;
    CkptFile *file;
    uint64_t at;                    /* in the file, of the bounce's first byte */
    size_t fill, bounce;            /* bytes in the bounce in use, and which it is */
    uint64_t writes;                /* begun so far */
    uint64_t written[CKPT_BOUNCES]; /* the number of the write that last used a bounce */
    size_t next;                    /* view that is summed next, in by_address, */
    uint64_t summed;                /* and how much of it is already */
} Stream;

static bool submit(Stream *s, const void *data, size_t bytes, Error *err) {
    if (!s->io->body->write(s->io, s->file, data, bytes, s->at, err)) return false;
    s->writes++;
    s->at += bytes;
    return true;
}

/* Sums `bytes` more bytes of the views in the order of by_address, which are at `data`. */
static void sum(Stream *s, const char *data, uint64_t bytes) {
    while (bytes) {
        const CkptPlanned *p = s->w->by_address[s->next];
        uint32_t chunk = (uint32_t)(s->summed / CKPT_CHUNK);
        uint64_t rest = p->bytes - s->summed, in_chunk = CKPT_CHUNK - s->summed % CKPT_CHUNK;
        uint64_t n = bytes < rest ? bytes : rest;
        if (n > in_chunk) n = in_chunk;
        uint32_t *crc = &s->w->table.crcs[p->first_chunk + chunk];
        if (s->summed % CKPT_CHUNK == 0)
            *crc = ckpt_seed(s->w->record.run, s->w->record.id, s->w->record.rank, p->first_chunk + chunk);
        *crc = crc32c(*crc, data, (size_t)n);
        data += n;
        s->summed += n;
        bytes -= n;
        if (s->summed == p->bytes) {
            s->next++;
            s->summed = 0;
        }
    }
}

static char *bounce(Stream *s) {
    return s->w->bounces + s->bounce * CKPT_BOUNCE_BYTES;
}

/* The bounce to the disk, filled up to a block; the next one is free afterwards. */
static bool flush(Stream *s, Error *err) {
    if (!s->fill) return true;
    size_t bytes = (size_t)ckpt_blocks(s->fill);
    memset(bounce(s) + s->fill, 0, bytes - s->fill);
    if (!submit(s, bounce(s), bytes, err)) return false;
    s->written[s->bounce] = s->writes;
    s->bounce = (s->bounce + 1) % CKPT_BOUNCES;
    s->fill = 0;
    uint64_t last = s->written[s->bounce];
    return !last || s->io->body->wait(s->io, (unsigned)(s->writes - last), err);
}

static bool copy(Stream *s, const void *data, uint64_t bytes, Error *err) {
    for (const char *from = data; bytes;) {
        size_t n = CKPT_BOUNCE_BYTES - s->fill;
        if (n > bytes) n = (size_t)bytes;
        if (from) {
            memcpy(bounce(s) + s->fill, from, n);
            from += n;
        } else {
            memset(bounce(s) + s->fill, 0, n);
        }
        s->fill += n;
        bytes -= n;
        if (s->fill == CKPT_BOUNCE_BYTES && !flush(s, err)) return false;
    }
    return true;
}

/* Views' bytes through the bounces, from memory that may not be the host's; summed on the way. */
static bool copy_views(Stream *s, const CkptPlanned *first, uint64_t bytes, Error *err) {
    const char *from = first->view.data;
    if (!s->w->fetch || first->view.copied) {
        sum(s, from, bytes);
        return copy(s, from, bytes, err);
    }
    while (bytes) {
        size_t n = CKPT_BOUNCE_BYTES - s->fill;
        if (n > bytes) n = (size_t)bytes;
        s->w->fetch(s->w->fetch_ctx, bounce(s) + s->fill, from, n);
        sum(s, bounce(s) + s->fill, n);
        from += n;
        s->fill += n;
        bytes -= n;
        if (s->fill == CKPT_BOUNCE_BYTES && !flush(s, err)) return false;
    }
    return true;
}

/* The extent that begins with this view: its whole pages go from where they are, if that is host memory. */
static bool put_extent(Stream *s, const CkptPlanned *first, uint64_t bytes, Error *err) {
    const char *data = first->view.data;
    uint64_t before = (uintptr_t)data % CKPT_BLOCK, head = before ? CKPT_BLOCK - before : 0;
    if (s->w->fetch && !first->view.copied)
        return copy(s, NULL, before, err) && copy_views(s, first, bytes, err) && flush(s, err);
    if (head) {
        sum(s, data, head);
        if (!copy(s, NULL, before, err) || !copy(s, data, head, err)) return false;
    }
    if (!flush(s, err)) return false;
    data += head;
    bytes -= head;
    while (bytes >= CKPT_BLOCK) {
        uint64_t n = bytes < CKPT_WRITE_BYTES ? bytes / CKPT_BLOCK * CKPT_BLOCK : CKPT_WRITE_BYTES;
        sum(s, data, n);
        if (!submit(s, data, (size_t)n, err)) return false;
        data += n;
        bytes -= n;
    }
    sum(s, data, bytes);
    return copy(s, data, bytes, err) && flush(s, err);
}

static bool put_payload(Stream *s, Error *err) {
    CkptShardWriter *w = s->w;
    uint64_t bytes;
    for (size_t i = 0; i < w->packed_from; i = ckpt_shard_extent(w, i, &bytes)) {
        const CkptPlanned *first = w->by_address[i];
        ckpt_shard_extent(w, i, &bytes);
        CHECK_OP(s->at + s->fill, ==, first->offset - first->offset % CKPT_BLOCK);
        if (!put_extent(s, first, bytes, err)) return false;
    }
    for (size_t i = w->packed_from; i < w->count; i++) {
        const CkptPlanned *p = w->by_address[i];
        CHECK_OP(s->at + s->fill, <=, p->offset);
        if (!copy(s, NULL, p->offset - s->at - s->fill, err) || !copy_views(s, p, p->bytes, err))
            return false;
    }
    return flush(s, err);
}

static void finish_table(CkptShardWriter *w) {
    CkptTableHead *head = w->table.head;
    CkptTableSource *source = w->table.sources;
    memcpy(head->run, w->record.run, sizeof head->run);
    head->attempt = w->record.id.attempt;
    head->step = w->record.id.step;
    head->rank = source->rank = w->record.rank;
    head->writers = w->record.writers;
    head->unix_seconds = w->record.unix_seconds;
    memcpy(source->node, w->record.node, sizeof source->node);
    source->segment = w->record.segment;
    source->used_bytes = w->record.used_bytes;
    source->table_offset = w->record.table_offset;
    source->table_bytes = w->record.table_bytes;
    source->payload_bytes = w->record.payload_bytes;
    source->chunks = head->chunks;
    ckpt_table_seal(&w->table);
    char *image = w->image;
    uint64_t padded = ckpt_blocks(w->record.table_bytes);
    memset(image + w->record.table_bytes, 0, (size_t)(padded - w->record.table_bytes));
    ckpt_record_encode(&w->record, image + padded);
}

bool ckpt_shard_write(CkptShardWriter *w, CkptIo *io, CkptFile *file, uint32_t segment,
                      void (*released)(void *ctx), void *ctx, Error *err) {
    Stream s = {.w = w, .io = io, .file = file};
    Error ignored;
    w->record.segment = segment;
    w->record.unix_seconds = (int64_t)time(NULL);
    CkptRecord header = w->record;
    header.kind = CKPT_RECORD_SEGMENT;
    ckpt_record_encode(&header, w->header);
    bool ok = submit(&s, w->header, CKPT_BLOCK, err) && put_payload(&s, err) && io->body->wait(io, 0, err);
    if (!ok) io->body->wait(io, 0, &ignored); /* the disk may still be reading the views */
    released(ctx);
    if (!ok) return false;
    CHECK_OP(s.next, ==, w->count);
    CHECK_OP(s.at, ==, w->record.table_offset);
    finish_table(w);
    return submit(&s, w->image, (size_t)(w->record.used_bytes - w->record.table_offset), err) &&
           io->body->sync(io, file, err);
}
