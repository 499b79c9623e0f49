/* ckpt_read_all.c: many ranges by many threads: a disk or a store gives its best only to several requests at once. See
 * ckpt_reader.h. */
#define _POSIX_C_SOURCE 200809L
#include "base/check.h"
#include "ckpt/ckpt_reader_internal.h"
#include <pthread.h>

enum { THREADS_MAX = 16, THREADS = 8, ROW_MAX = 64 };

typedef struct {
    CkptReader *reader;
    const CkptTable *table;
    CkptId id;
    const CkptWanted *wanted;
    size_t count, next; /* the range that is cut next, */
    uint64_t at;        /* from this element */
    pthread_mutex_t mutex;
    bool failed;
    Error error;
} Job;

/* A part of a wanted range, and where it lies. */
typedef struct {
    CkptWanted wanted;
    const CkptTablePiece *piece; /* that all of it lies in, as whole chunks; NULL: it does not */
    uint64_t bytes, offset;      /* in the piece's file */
} Part;

/* What comes next, of at most `room` bytes, or of one chunk; cut where chunks end so that none is read twice. */
static bool next_part(Job *job, uint64_t room, Part *part) {
    while (job->next < job->count && job->at >= job->wanted[job->next].end) {
        job->next++;
        job->at = job->next < job->count ? job->wanted[job->next].begin : 0;
    }
    if (job->next == job->count) return false;
    CkptWanted *w = &part->wanted;
    *w = job->wanted[job->next];
    uint64_t element = ckpt_type_bytes(w->type);
    w->data = (char *)w->data + (job->at - w->begin) * element;
    w->begin = job->at;
    part->piece = NULL;
    part->bytes = part->offset = 0;
    const CkptTableTensor *tensor = ckpt_table_tensor(job->table, w->name);
    const CkptTablePiece *piece = tensor ? ckpt_table_piece(job->table, tensor, w->begin) : NULL;
    if (!piece || piece->end <= w->begin || tensor->type != (uint32_t)w->type) return true;
    uint64_t from = (w->begin - piece->begin) * element, to = (from + room) / CKPT_CHUNK * CKPT_CHUNK;
    if (to <= from) to = (from / CKPT_CHUNK + 1) * CKPT_CHUNK;
    uint64_t end = piece->begin + to / element;
    if (end > piece->end) end = piece->end;
    if (w->end > end) w->end = end;
    if (from % CKPT_CHUNK == 0 && w->end == end) part->piece = piece;
    part->bytes = (w->end - w->begin) * element;
    part->offset = piece->offset + from;
    return true;
}

static bool follows(const Part *a, const Part *b) {
    return a->piece && b->piece && a->piece->source == b->piece->source &&
           b->offset == a->offset + a->bytes && (char *)b->wanted.data == (char *)a->wanted.data + a->bytes;
}

/* Takes parts as long as they follow each other: tensors are small and many, requests should be large. Returns their
 * number; 0: nothing is left. */
static size_t take_row(Job *job, CkptWanted row[ROW_MAX]) {
    Part part, last = {0};
    size_t count = 0;
    uint64_t room = CKPT_READ_BYTES;
    pthread_mutex_lock(&job->mutex);
    while (count < ROW_MAX && !job->failed && next_part(job, room, &part)) {
        if (count && (!follows(&last, &part) || part.bytes > room)) break;
        row[count++] = part.wanted;
        job->at = part.wanted.end;
        last = part;
        if (!part.piece) break;
        CHECK_OP(part.bytes, <=, room);
        room -= part.bytes;
    }
    pthread_mutex_unlock(&job->mutex);
    return count;
}

static void *work(void *ctx) {
    Job *job = ctx;
    CkptWanted row[ROW_MAX];
    size_t count;
    Error err;
    while ((count = take_row(job, row))) {
        if (count > 1 ? ckpt_read_row(job->reader, job->table, row, count, &err)
                      : ckpt_reader_read(job->reader, job->id, row->name, row->type, row->begin, row->end,
                                         row->data, &err))
            continue;
        pthread_mutex_lock(&job->mutex);
        if (!job->failed) job->error = err;
        job->failed = true;
        pthread_mutex_unlock(&job->mutex);
    }
    return NULL;
}

bool ckpt_reader_read_all(CkptReader *reader, CkptId id, const CkptWanted *wanted, size_t count, int threads,
                          Error *err) {
    const CkptLoaded *l = ckpt_reader_find(reader, id, err);
    if (!l) return false;
    if (!l->table.head || !count)
        return count == 0 || error_set(err, "%s: checkpoint %s: no index of it validates (use an older one)",
                                       reader->source->place, ckpt_id_text(id).text);
    Job job = {.reader = reader, .table = &l->table, .id = id, .wanted = wanted, .count = count};
    job.at = wanted[0].begin;
    pthread_t started[THREADS_MAX];
    int num_started = 0, wanted_threads = threads > 0 ? threads : THREADS;
    if (wanted_threads > THREADS_MAX) wanted_threads = THREADS_MAX;
    pthread_mutex_init(&job.mutex, NULL);
    while (num_started < wanted_threads - 1 && !pthread_create(&started[num_started], NULL, work, &job))
        num_started++;
    work(&job); /* this thread too, so that it goes on where no other can be had */
    for (int i = 0; i < num_started; i++) pthread_join(started[i], NULL);
    pthread_mutex_destroy(&job.mutex);
    if (job.failed) *err = job.error;
    return !job.failed;
}
