/* ckpt_read_all.c: many ranges by many threads: a disk or a store gives its best only to several requests at once. See
 * ckpt_reader.h. */
#define _POSIX_C_SOURCE 200809L
#include "ckpt/ckpt_reader_internal.h"
#include <pthread.h>

enum { THREADS_MAX = 16, THREADS = 8 };

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

/* The next part of a range, cut where parts of its piece end so that no chunk is read twice; false: none is left. */
static bool next_part(Job *job, CkptWanted *part) {
    pthread_mutex_lock(&job->mutex);
    while (job->next < job->count && job->at >= job->wanted[job->next].end) {
        job->next++;
        job->at = job->next < job->count ? job->wanted[job->next].begin : 0;
    }
    bool some = job->next < job->count && !job->failed;
    if (some) {
        *part = job->wanted[job->next];
        uint64_t element = ckpt_type_bytes(part->type), step = CKPT_READ_BYTES / element;
        part->data = (char *)part->data + (job->at - part->begin) * element;
        part->begin = job->at;
        const CkptTableTensor *tensor = ckpt_table_tensor(job->table, part->name);
        const CkptTablePiece *piece = tensor ? ckpt_table_piece(job->table, tensor, part->begin) : NULL;
        if (piece && piece->end > part->begin) {
            uint64_t until = piece->begin + ((part->begin - piece->begin) / step + 1) * step;
            if (until > piece->end) until = piece->end;
            if (until < part->end) part->end = until;
        }
        job->at = part->end;
    }
    pthread_mutex_unlock(&job->mutex);
    return some;
}

static void *work(void *ctx) {
    Job *job = ctx;
    CkptWanted part;
    Error err;
    while (next_part(job, &part)) {
        if (ckpt_reader_read(job->reader, job->id, part.name, part.type, part.begin, part.end, part.data,
                             &err))
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
