/* ckpt_log.h: a manifest: a file of 4 KiB records with one writer at a time (dev/design/checkpoint-format.md).
 *
 * What always holds: a record that was appended successfully is durable; after a failed append nothing is appended to
 * that file any more: the live records are written aside and the log begins again without the doubtful ones. */
#ifndef LLMC_CKPT_LOG_H
#define LLMC_CKPT_LOG_H
#include "ckpt/ckpt_format.h"
#include "ckpt/ckpt_io.h"

enum {
    CKPT_LOG_RECORDS = 256, /* room in the file */
    CKPT_LOG_READ_BYTES =
        16 * CKPT_BLOCK /* readers go by such steps; one without a valid record is the end */
};

typedef struct {
    CkptIo *io;
    CkptFile *file;
    char path[4096], folder[4096];
    CkptRecord *records; /* all that are valid, in order (CKPT_LOG_RECORDS) */
    size_t count;
    uint64_t blocks, sequence; /* the next record's place and number */
    bool doubtful;             /* a sync failed */
    bool spare;                /* the file that it is rewritten to is there, empty */
    void *block;               /* CKPT_LOG_READ_BYTES, aligned */
    /* Is this record still needed? Asked when the log is rewritten. */
    bool (*live)(void *ctx, const CkptRecord *record);
    void *ctx;
} CkptLog;

/* Opens folder/name, made if absent; what is read in is durable afterwards. log->live and log->ctx are set before. */
bool ckpt_log_open(CkptLog *log, CkptIo *io, const char *folder, const char *name, Error *err);
void ckpt_log_close(CkptLog *log);
/* Appends records (their sequence is set here) and makes them durable: all, or, on failure, perhaps some. count is at
 * most half of CKPT_LOG_RECORDS. */
bool ckpt_log_append(CkptLog *log, const CkptRecord *records, size_t count, Error *err);

/* Before what a doubtful record speaks of is changed: afterwards no record is there whose append failed. */
bool ckpt_log_settle(CkptLog *log, Error *err);

/* The valid records in `bytes` bytes (whole blocks) of a log, appended to out; *sequence is that of the last so far
 * (0: none). *last: index of the block of the last one found. Returns how many. */
size_t ckpt_log_parse(const void *data, size_t bytes, CkptRecord *out, size_t max, uint64_t *sequence,
                      size_t *last);
#endif
