/* metrics.c: see metrics.h. */
#define _POSIX_C_SOURCE   200809L
#define _FILE_OFFSET_BITS 64
#include "run/metrics.h"
#include "base/check.h"
#include "base/json.h"
#include "base/log.h"
#include "run/event_file.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES_MAX = 1024, EVENTS_NAMES_MAX = 1000 };

static double wall_time(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Rounded to thousandths, more than any clock reading is good for. */
static double milli(double value) {
    return floor(value * 1e3 + 0.5) / 1e3;
}

size_t metrics_format(const ProgressStep *s, char *out, size_t size) {
    JsonWriter w;
    json_writer_open(&w, out, size);
    json_object_begin(&w, NULL);
    json_int(&w, "step", s->step);
    json_int(&w, "tokens", s->tokens);
    if (s->has_loss) json_double(&w, "loss", s->loss);
    if (s->has_val) json_double(&w, "val_loss", s->val_loss);
    if (s->has_loss) {
        json_double(&w, "norm", s->norm);
        json_double(&w, "lr", s->learning_rate);
        json_double(&w, "ms", milli(s->step_seconds * 1e3));
        json_float(&w, "tokens_per_second", (float)s->tokens_per_second);
        json_float(&w, "mfu", (float)s->mfu);
    }
    if (s->memory_bytes) json_int(&w, "memory_bytes", (int64_t)s->memory_bytes);
    json_double(&w, "seconds", milli(s->seconds));
    if (s->skipped) json_bool(&w, "skipped", true);
    json_object_end(&w);
    if (!json_writer_done(&w) || w.used + 2 > size) return 0;
    out[w.used] = '\n';
    out[w.used + 1] = 0;
    return w.used + 1;
}

/* Appends, or else leaves the file as it was. */
static bool append(int fd, const char *path, uint64_t *size, const void *data, size_t bytes, Error *err) {
    size_t done = 0;
    while (done < bytes) {
        ssize_t n = write(fd, (const char *)data + done, bytes - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            file_error(err, path, "write");
            if (ftruncate(fd, (off_t)*size) != 0) return false; /* the torn line goes at the next start */
            return false;
        }
        done += (size_t)n;
    }
    *size += bytes;
    return true;
}

/* The step of a line, or -1 if it is no line of ours. */
static int64_t step_of_line(JsonDocument *document, const char *line, size_t bytes) {
    Error ignored;
    if (!json_parse(document, line, bytes, &ignored)) return -1;
    const JsonNode *step = json_get(document, document->nodes, "step");
    return step && step->is_int && step->integer >= 0 ? step->integer : -1;
}

/* Copies the lines of steps up to resumed_step, each step once and in order, and renames the copy into place. */
static bool keep_lines(Metrics *m, int64_t resumed_step, Error *err) {
    char *line = NULL;
    size_t line_size = 0;
    ssize_t n;
    JsonDocument document = {0};
    FileWriter writer = {0};
    bool ok = false;
    FILE *in = fopen(m->path, "r");
    if (!in) return errno == ENOENT || file_error(err, m->path, "open");
    if (!file_writer_open(&writer, m->path, err)) goto out;
    while ((n = getline(&line, &line_size, in)) > 0) {
        int64_t step = line[n - 1] == '\n' ? step_of_line(&document, line, (size_t)n - 1) : -1;
        if (step <= m->last_step || step > resumed_step) continue;
        m->last_step = step;
        if (!file_writer_write(&writer, line, (size_t)n, err)) goto out;
    }
    if (ferror(in)) {
        file_error(err, m->path, "read");
        goto out;
    }
    m->bytes = writer.bytes;
    ok = file_writer_commit(&writer, err);
out:
    file_writer_abort(&writer);
    json_free(&document);
    free(line);
    fclose(in);
    return ok;
}

/* The record of an earlier run in this folder is not this one's to throw away. */
static bool set_aside(const Metrics *m, const char *folder, Error *err) {
    char old[FILE_PATH_BYTES];
    struct stat s;
    if (stat(m->path, &s) != 0 || s.st_size == 0) return true;
    if (!file_join(old, folder, "metrics.jsonl.old", err)) return false;
    if (rename(m->path, old) != 0) return file_error(err, old, "write");
    log_warn("%s: of an earlier run, which this one does not go on with; it is kept as %s", m->path, old);
    return true;
}

/* A new event file, named by time so that TensorBoard reads it behind the older ones. */
static bool open_events(Metrics *m, const char *folder, int64_t resumed_step, Error *err) {
    unsigned char record[EVENT_BYTES_MAX];
    double now = wall_time();
    long long second = (long long)now;
    for (int i = 0; i < EVENTS_NAMES_MAX && m->events_fd < 0; i++) {
        char name[64];
        snprintf(name, sizeof name, "events.out.tfevents.%010lld.toroid", second + i);
        if (!file_join(m->events_path, folder, name, err)) return false;
        m->events_fd = open(m->events_path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
        if (m->events_fd < 0 && errno != EEXIST) break;
    }
    if (m->events_fd < 0) return file_error(err, m->events_path, "make this file");
    size_t bytes = event_version(now, record);
    if (!append(m->events_fd, m->events_path, &m->events_bytes, record, bytes, err)) return false;
    int64_t first = resumed_step ? resumed_step + 1 : 0;
    bytes = event_restart(now, first, record);
    return append(m->events_fd, m->events_path, &m->events_bytes, record, bytes, err);
}

bool metrics_open(Metrics *m, const char *folder, int64_t resumed_step, Error *err) {
    memset(m, 0, sizeof *m);
    m->fd = m->events_fd = -1;
    m->last_step = -1;
    if (!file_join(m->path, folder, "metrics.jsonl", err)) return false;
    if (resumed_step > 0 ? !keep_lines(m, resumed_step, err) : !set_aside(m, folder, err)) return false;
    m->fd = open(m->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (m->fd < 0) return file_error(err, m->path, "write");
    if (!open_events(m, folder, resumed_step, err)) {
        metrics_close(m);
        return false;
    }
    return file_sync_directory_of(m->path, err);
}

bool metrics_step(Metrics *m, const ProgressStep *s, Error *err) {
    char line[LINE_BYTES_MAX];
    unsigned char record[EVENT_BYTES_MAX];
    EventScalar scalars[EVENT_SCALARS_MAX];
    int n = 0;
    CHECK(m->fd >= 0 && m->events_fd >= 0);
    CHECK_OP(s->step, >, m->last_step);
    size_t bytes = metrics_format(s, line, sizeof line);
    CHECK(bytes > 0);
    if (!append(m->fd, m->path, &m->bytes, line, bytes, err)) return false;
    m->last_step = s->step;
    if (s->has_loss) {
        scalars[n++] = (EventScalar){"loss/train", (float)s->loss};
        scalars[n++] = (EventScalar){"norm", (float)s->norm};
        scalars[n++] = (EventScalar){"lr", (float)s->learning_rate};
        scalars[n++] = (EventScalar){"tokens_per_second", (float)s->tokens_per_second};
        if (isfinite(s->mfu)) scalars[n++] = (EventScalar){"mfu", (float)s->mfu};
    }
    if (s->has_val) scalars[n++] = (EventScalar){"loss/val", (float)s->val_loss};
    if (!n) return true;
    bytes = event_scalars(wall_time(), s->step, scalars, n, record);
    return append(m->events_fd, m->events_path, &m->events_bytes, record, bytes, err);
}

bool metrics_sync(Metrics *m, Error *err) {
    CHECK(m->fd >= 0 && m->events_fd >= 0);
    if (fsync(m->fd) != 0) return file_error(err, m->path, "make this file durable");
    return fsync(m->events_fd) == 0 || file_error(err, m->events_path, "make this file durable");
}

void metrics_close(Metrics *m) {
    if (m->path[0] && m->fd >= 0) close(m->fd);
    if (m->path[0] && m->events_fd >= 0) close(m->events_fd);
    m->fd = m->events_fd = -1;
}
