/* ckpt_log.c: see ckpt_log.h. Records are not written with O_DIRECT: they are few, and readers in other processes see them
 * at once. */
#include "ckpt/ckpt_log.h"
#include "base/check.h"
#include "base/file.h"
#include <stdlib.h>
#include <string.h>

size_t ckpt_log_parse(const void *data, size_t bytes, CkptRecord *out, size_t max, uint64_t *sequence,
                      size_t *last) {
    size_t count = 0;
    for (size_t at = 0; at + CKPT_BLOCK <= bytes && count < max; at += CKPT_BLOCK) {
        if (!ckpt_record_decode(&out[count], (const char *)data + at) || out[count].sequence <= *sequence)
            continue;
        *sequence = out[count++].sequence;
        *last = at / CKPT_BLOCK;
    }
    return count;
}

static bool read_records(CkptLog *log, Error *err) {
    uint64_t bytes;
    if (!log->io->body->size(log->io, log->file, &bytes, err)) return false;
    for (uint64_t at = 0; at + CKPT_BLOCK <= bytes && log->count < CKPT_LOG_RECORDS;) {
        uint64_t rest = (bytes - at) / CKPT_BLOCK * CKPT_BLOCK;
        size_t part = rest < CKPT_LOG_READ_BYTES ? (size_t)rest : CKPT_LOG_READ_BYTES, last;
        if (!log->io->body->read(log->io, log->file, log->block, part, at, err)) return false;
        size_t found = ckpt_log_parse(log->block, part, log->records + log->count,
                                      CKPT_LOG_RECORDS - log->count, &log->sequence, &last);
        if (!found) break;
        log->count += found;
        log->blocks = at / CKPT_BLOCK + last + 1;
        at += part;
    }
    log->sequence++;
    return true;
}

static CkptFile *open_log(CkptLog *log, const char *path, Error *err) {
    CkptFile *file = log->io->body->open(log->io, path, CKPT_IO_READ | CKPT_IO_WRITE | CKPT_IO_CREATE, err);
    uint64_t bytes, whole = (uint64_t)CKPT_LOG_RECORDS * CKPT_BLOCK;
    if (!file) return NULL;
    if (log->io->body->size(log->io, file, &bytes, err) &&
        (bytes >= whole || log->io->body->allocate(log->io, file, whole, err)))
        return file;
    log->io->body->close_file(log->io, file);
    return NULL;
}

/* The file of the next rewriting, empty and with its blocks, so that a disk that is full then is no reason to fail. */
static void make_spare(CkptLog *log) {
    char aside[4096 + 8];
    Error ignored;
    snprintf(aside, sizeof aside, "%s.new", log->path);
    CkptFile *file = log->io->body->remove(log->io, aside, &ignored) ? open_log(log, aside, &ignored) : NULL;
    log->spare = file != NULL;
    if (file) log->io->body->close_file(log->io, file);
}

bool ckpt_log_open(CkptLog *log, CkptIo *io, const char *folder, const char *name, Error *err) {
    bool (*live)(void *, const CkptRecord *) = log->live;
    *log = (CkptLog){.io = io, .live = live, .ctx = log->ctx};
    if (!file_join(log->path, folder, name, err)) return false;
    snprintf(log->folder, sizeof log->folder, "%s", folder);
    log->records = calloc(CKPT_LOG_RECORDS, sizeof *log->records);
    log->block = aligned_alloc(CKPT_BLOCK, CKPT_LOG_READ_BYTES);
    if (!log->records || !log->block) {
        error_set(err, "%s: no memory to read it", log->path);
        goto fail;
    }
    log->file = open_log(log, log->path, err);
    /* what another process wrote may be in the page cache only: it is acted upon only when it is durable */
    if (log->file && read_records(log, err) && io->body->sync(io, log->file, err) &&
        io->body->sync_directory(io, folder, err)) {
        make_spare(log);
        return true;
    }
fail:
    ckpt_log_close(log);
    return false;
}

void ckpt_log_close(CkptLog *log) {
    if (log->file) log->io->body->close_file(log->io, log->file);
    free(log->records);
    free(log->block);
    log->file = NULL;
    log->records = NULL;
    log->block = NULL;
}

static bool put(CkptLog *log, CkptFile *file, CkptRecord *record, uint64_t block, Error *err) {
    record->sequence = log->sequence++;
    ckpt_record_encode(record, log->block);
    return log->io->body->write(log->io, file, log->block, CKPT_BLOCK, block * CKPT_BLOCK, err) &&
           log->io->body->wait(log->io, 0, err); /* the block is used again */
}

/* The live records into a new file, which takes the log's name. */
static bool rewrite(CkptLog *log, Error *err) {
    char aside[4096 + 8];
    const CkptIoBody *body = log->io->body;
    size_t kept = 0;
    bool ok = true;
    for (size_t i = 0; i < log->count; i++)
        if (log->live(log->ctx, &log->records[i])) log->records[kept++] = log->records[i];
    log->count = kept;
    CHECK_OP(kept, <=, CKPT_LOG_RECORDS / 2);
    snprintf(aside, sizeof aside, "%s.new", log->path);
    if (!log->spare && !body->remove(log->io, aside, err)) return false;
    log->spare = false;
    CkptFile *file = open_log(log, aside, err);
    if (!file) return false;
    for (size_t i = 0; ok && i < kept; i++) ok = put(log, file, &log->records[i], i, err);
    ok = ok && body->sync(log->io, file, err) && body->rename(log->io, aside, log->path, err) &&
         body->sync_directory(log->io, log->folder, err);
    if (!ok) {
        body->close_file(log->io, file);
        log->doubtful = true;
        return false;
    }
    body->close_file(log->io, log->file);
    log->file = file;
    log->blocks = kept;
    log->doubtful = false;
    make_spare(log);
    return true;
}

bool ckpt_log_settle(CkptLog *log, Error *err) {
    return !log->doubtful || rewrite(log, err);
}

bool ckpt_log_append(CkptLog *log, const CkptRecord *records, size_t count, Error *err) {
    CHECK_OP(count, <=, CKPT_LOG_RECORDS / 2);
    if ((log->doubtful || log->blocks + count > CKPT_LOG_RECORDS) && !rewrite(log, err)) return false;
    log->doubtful = true; /* until it is known to be durable */
    for (size_t i = 0; i < count; i++) {
        CkptRecord record = records[i];
        if (!put(log, log->file, &record, log->blocks + i, err)) return false;
        log->records[log->count + i] = record;
    }
    if (!log->io->body->sync(log->io, log->file, err)) return false;
    log->count += count;
    log->blocks += count;
    log->doubtful = false;
    return true;
}
