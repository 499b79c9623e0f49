/* ckpt_gc.c: see ckpt_gc.h: a staging folder. In order: every writer's lock, marks' lock, decide, DROP records of all writers,
 * then files; whatever interrupts it, what stays can be read and the next one goes on. */
#include "ckpt/ckpt_gc.h"
#include "base/check.h"
#include "base/file.h"
#include "ckpt/ckpt_log.h"
#include "ckpt/ckpt_reader.h"
#include "ckpt/ckpt_retain.h"
#include <stdlib.h>
#include <string.h>

enum { DROPS_MAX = 64 }; /* of one append */

typedef struct {
    char node[CKPT_NODE_BYTES];
    uint32_t rank;
    bool has_manifest, keeps;
    CkptFile *lock;
} Writer;

typedef struct {
    char (*names)[CKPT_FILE_NAME_BYTES];
    size_t count, room;
} Names;

typedef struct {
    const CkptGcConfig *config;
    CkptGcResult *result;
    CkptIo io;
    CkptSource *source;
    CkptFile *marks_lock;
    CkptScan scan;
    CkptInfo *infos; /* what the reader says */
    size_t num_infos;
    bool *goes;    /* [scan.num_checkpoints] */
    CkptId newest; /* of those that are whole */
    Writer *writers;
    size_t num_writers;
    Names manifests, segments, tables;
    char path[FILE_PATH_BYTES];
} Gc;

static const char *path_of(Gc *g, const char *folder, const char *name) {
    snprintf(g->path, sizeof g->path, "%s/%s%s%s", g->config->place, folder, *folder ? "/" : "", name);
    return g->path;
}

/* ---- what is there ---- */

static void note_name(void *ctx, const char *name) {
    Names *n = ctx;
    if (strlen(name) >= CKPT_FILE_NAME_BYTES) return;
    if (n->count == n->room) {
        n->room = n->room ? 2 * n->room : 64;
        n->names = realloc(n->names, n->room * sizeof *n->names);
        CHECK(n->names != NULL);
    }
    snprintf(n->names[n->count++], CKPT_FILE_NAME_BYTES, "%s", name);
}

static Writer *find_writer(Gc *g, const char *node, uint32_t rank) {
    for (size_t i = 0; i < g->num_writers; i++)
        if (g->writers[i].rank == rank && !strcmp(g->writers[i].node, node)) return &g->writers[i];
    return NULL;
}

/* g->writers has room. */
static Writer *note_writer(Gc *g, const char *node, uint32_t rank) {
    Writer *w = find_writer(g, node, rank);
    if (w) return w;
    w = &g->writers[g->num_writers++];
    *w = (Writer){.rank = rank};
    snprintf(w->node, sizeof w->node, "%s", node);
    return w;
}

static bool list_files(Gc *g, Error *err) {
    const CkptIoBody *body = g->io.body;
    char node[CKPT_NODE_BYTES];
    uint32_t rank, n;
    if (!body->list(&g->io, path_of(g, "manifest", ""), note_name, &g->manifests, err) ||
        !body->list(&g->io, path_of(g, "seg", ""), note_name, &g->segments, err) ||
        !body->list(&g->io, path_of(g, "table", ""), note_name, &g->tables, err))
        return false;
    g->writers = calloc(g->manifests.count + g->segments.count + 1, sizeof *g->writers);
    if (!g->writers) return error_set(err, "%s: no memory to list its writers", g->config->place);
    for (size_t i = 0; i < g->manifests.count; i++)
        if (ckpt_manifest_parse(g->manifests.names[i], node, &rank))
            note_writer(g, node, rank)->has_manifest = true;
    for (size_t i = 0; i < g->segments.count; i++)
        if (ckpt_segment_parse(g->segments.names[i], node, &rank, &n)) note_writer(g, node, rank);
    return true;
}

static const char *writer_lock_path(Gc *g, const Writer *w) {
    char name[CKPT_FILE_NAME_BYTES];
    snprintf(name, sizeof name, "writer.%s.%u", w->node, (unsigned)w->rank);
    return path_of(g, "lock", name);
}

static bool lock_writers(Gc *g, Error *err) {
    if (!g->io.body->make_directory(&g->io, path_of(g, "lock", ""), err)) return false;
    for (size_t i = 0; i < g->num_writers; i++) {
        Writer *w = &g->writers[i];
        bool busy = false;
        w->lock = g->io.body->lock(&g->io, writer_lock_path(g, w), true, &busy, err);
        if (w->lock) continue;
        return busy && error_set(err,
                                 "%s: a run writes checkpoints there (%s, rank %u), and lets go of old ones "
                                 "itself (end it first, or lower its --keep)",
                                 g->config->place, w->node, (unsigned)w->rank);
    }
    return true;
}

/* The reader's view; it is closed again, so that its own locks are not taken for a reader's. */
static bool look(Gc *g, Error *err) {
    CkptReader *reader;
    const CkptInfo *list;
    if (!ckpt_reader_open(&reader, g->config->place, err)) return false;
    g->num_infos = ckpt_reader_list(reader, &list);
    g->infos = calloc(g->num_infos + 1, sizeof *g->infos);
    if (g->infos && g->num_infos) memcpy(g->infos, list, g->num_infos * sizeof *g->infos);
    ckpt_reader_close(reader);
    if (!g->infos) return error_set(err, "%s: no memory to list its checkpoints", g->config->place);
    if (!ckpt_scan(&g->scan, g->source, err)) return false;
    g->goes = calloc(g->scan.num_checkpoints + 1, sizeof *g->goes);
    return g->goes || error_set(err, "%s: no memory to list its checkpoints", g->config->place);
}

/* ---- what goes ---- */

static CkptState state_of(const Gc *g, CkptId id) {
    for (size_t i = 0; i < g->num_infos; i++)
        if (ckpt_id_compare(g->infos[i].id, id) == 0) return g->infos[i].state;
    return CKPT_CORRUPT;
}

/* What is known of all that are here, before any of them is judged. */
typedef struct {
    CkptId best;
    bool uploads, elsewhere; /* elsewhere: there may be shards in other folders */
} Facts;

static Facts gather(Gc *g) {
    Facts f = {.uploads = g->config->has_store};
    for (size_t i = 0; i < g->scan.num_checkpoints; i++) {
        const CkptScanCheckpoint *c = &g->scan.checkpoints[i];
        CkptState state = state_of(g, c->id);
        f.uploads |= c->uploaded;
        if (c->dropped || state == CKPT_CORRUPT) continue;
        bool whole = c->committed || state == CKPT_RESTORABLE;
        f.elsewhere |= c->committed && state == CKPT_INCOMPLETE;
        if (whole && ckpt_id_compare(c->id, g->newest) > 0) g->newest = c->id;
        if (c->committed && c->best && ckpt_id_compare(c->id, f.best) > 0) f.best = c->id;
    }
    return f;
}

/* Newest first. What is restorable here and what was committed count for themselves: of a checkpoint over several folders
 * only the latter is known. */
static void decide(Gc *g) {
    Facts f = gather(g);
    int restorable = 0, committed = 0;
    for (size_t i = 0; i < g->scan.num_checkpoints; i++) {
        const CkptScanCheckpoint *c = &g->scan.checkpoints[i];
        CkptState state = state_of(g, c->id);
        if (c->dropped) {
            g->goes[i] = true;
            continue;
        }
        bool whole = state != CKPT_CORRUPT && (c->committed || state == CKPT_RESTORABLE);
        bool among = (state == CKPT_RESTORABLE && restorable < g->config->keep) ||
                     (whole && c->committed && committed < g->config->keep);
        restorable += state == CKPT_RESTORABLE;
        committed += whole && c->committed;
        if (among || c->pinned || g->newest.attempt == 0) continue;
        if (whole && (ckpt_id_compare(c->id, f.best) == 0 || (f.uploads && !c->uploaded))) continue;
        if (!whole && f.elsewhere && ckpt_id_compare(c->id, g->newest) > 0) continue;
        g->goes[i] = true;
        g->result->checkpoints++;
        if (g->config->each)
            g->config->each(g->config->ctx, c->id,
                            whole                   ? "older than those that are kept"
                            : state == CKPT_CORRUPT ? "corrupt"
                                                    : "incomplete");
    }
}

/* Is a shard in this segment one that stays? *held: a reader may be in it. */
static bool is_kept(Gc *g, const char *segment, bool *held) {
    bool kept = false;
    *held = false;
    for (size_t i = 0; i < g->scan.num_checkpoints; i++) {
        const CkptScanCheckpoint *c = &g->scan.checkpoints[i];
        for (size_t k = c->first; k < c->first + c->count; k++) {
            const CkptScanShard *s = &g->scan.shards[k];
            char name[CKPT_FILE_NAME_BYTES];
            Error ignored;
            bool busy = false;
            if (strncmp(s->name, "seg/", 4) != 0 || strcmp(s->name + 4, segment) != 0) continue;
            kept |= !s->dropped && !g->goes[i];
            ckpt_lock_name(name, c->id);
            CkptFile *lock = g->io.body->lock(&g->io, path_of(g, "", name), true, &busy, &ignored);
            if (lock && g->goes[i]) g->io.body->remove(&g->io, g->path, &ignored);
            if (lock) g->io.body->close_file(&g->io, lock);
            *held |= busy;
        }
    }
    return kept;
}

/* ---- letting go ---- */

static bool record_is_live(void *ctx, const CkptRecord *r) {
    const Gc *g = ctx;
    const CkptScanCheckpoint *c = ckpt_scan_find(&g->scan, r->id);
    return c && !g->goes[c - g->scan.checkpoints] && r->kind != CKPT_RECORD_DROP;
}

/* DROP of what goes of this writer's; and does anything of it stay? */
static bool drop(Gc *g, Writer *w, Error *err) {
    CkptRecord drops[DROPS_MAX];
    CkptLog log = {.live = record_is_live, .ctx = g};
    char name[CKPT_FILE_NAME_BYTES];
    size_t count = 0;
    bool open = false, ok = true;
    ckpt_manifest_name(name, w->node, w->rank);
    path_of(g, "manifest", "");
    for (size_t i = 0; ok && i < g->scan.num_checkpoints; i++) {
        const CkptScanCheckpoint *c = &g->scan.checkpoints[i];
        for (size_t k = c->first; ok && k < c->first + c->count; k++) {
            const CkptScanShard *s = &g->scan.shards[k];
            if (s->record.rank != w->rank || strcmp(s->record.node, w->node) != 0) continue;
            w->keeps |= !g->goes[i] || c->id.attempt >= g->newest.attempt;
            if (s->dropped || !g->goes[i] || g->config->dry_run) continue;
            if (!open) ok = open = ckpt_log_open(&log, &g->io, g->path, strrchr(name, '/') + 1, err);
            drops[count] = s->record;
            drops[count++].kind = CKPT_RECORD_DROP;
            if (ok && count == DROPS_MAX) {
                ok = ckpt_log_append(&log, drops, count, err);
                count = 0;
            }
        }
    }
    if (ok && count) ok = ckpt_log_append(&log, drops, count, err);
    if (open) ckpt_log_close(&log);
    return ok;
}

/* The file at g->path; absent: true. */
static bool remove_file(Gc *g, Error *err) {
    uint64_t bytes = 0;
    Error absent;
    CkptFile *file = g->io.body->open(&g->io, g->path, CKPT_IO_READ, &absent);
    if (!file) return true;
    bool ok = g->io.body->size(&g->io, file, &bytes, err);
    g->io.body->close_file(&g->io, file);
    if (!ok || (!g->config->dry_run && !g->io.body->remove(&g->io, g->path, err))) return false;
    g->result->files++;
    g->result->bytes += bytes;
    return true;
}

static bool remove_segments(Gc *g, Error *err) {
    char node[CKPT_NODE_BYTES];
    uint32_t rank, n;
    for (size_t i = 0; i < g->segments.count; i++) {
        const char *name = g->segments.names[i];
        bool held;
        if (!ckpt_segment_parse(name, node, &rank, &n) || is_kept(g, name, &held)) continue;
        if (held) {
            g->result->held++;
            find_writer(g, node, rank)->keeps = true; /* of the file, its manifest tells */
            continue;
        }
        path_of(g, "seg", name);
        if (!remove_file(g, err)) return false;
    }
    return g->config->dry_run || g->io.body->sync_directory(&g->io, path_of(g, "seg", ""), err);
}

static bool remove_tables(Gc *g, Error *err) {
    for (size_t i = 0; i < g->tables.count; i++) {
        CkptId id;
        const char *end;
        if (!ckpt_id_parse(g->tables.names[i], &id, &end)) continue;
        const CkptScanCheckpoint *c = ckpt_scan_find(&g->scan, id);
        if (c && !g->goes[c - g->scan.checkpoints] && !strcmp(end, ".tab")) continue;
        path_of(g, "table", g->tables.names[i]);
        if (!remove_file(g, err)) return false;
    }
    return true;
}

/* Behind their segments, so that nothing is left that no manifest tells of. */
static bool remove_writers(Gc *g, Error *err) {
    for (size_t i = 0; i < g->num_writers; i++) {
        const Writer *w = &g->writers[i];
        char name[CKPT_FILE_NAME_BYTES];
        if (w->keeps || !w->has_manifest || g->newest.attempt == 0) continue;
        ckpt_manifest_name(name, w->node, w->rank);
        for (int spare = 1; spare >= 0; spare--) {
            snprintf(g->path, sizeof g->path, "%s/%s%s", g->config->place, name, spare ? ".new" : "");
            if (!remove_file(g, err)) return false;
        }
        if (!g->config->dry_run && !g->io.body->remove(&g->io, writer_lock_path(g, w), err)) return false;
    }
    return g->config->dry_run || g->io.body->sync_directory(&g->io, path_of(g, "manifest", ""), err);
}

static void gc_close(Gc *g) {
    ckpt_marks_unlock(&g->io, g->marks_lock);
    for (size_t i = 0; i < g->num_writers; i++)
        if (g->writers[i].lock) g->io.body->close_file(&g->io, g->writers[i].lock);
    if (g->source) g->source->close(g->source);
    ckpt_scan_free(&g->scan);
    ckpt_io_close(&g->io);
    free(g->infos);
    free(g->goes);
    free(g->writers);
    free(g->manifests.names);
    free(g->segments.names);
    free(g->tables.names);
}

bool ckpt_gc_staging(const CkptGcConfig *config, CkptGcResult *result, Error *err) {
    Gc g = {.config = config, .result = result};
    const char *why;
    if (!ckpt_io_open(&g.io, "plain", &why, err)) return false;
    bool ok = list_files(&g, err);
    if (ok && g.num_writers) {
        ok = lock_writers(&g, err) && ckpt_marks_lock(&g.io, config->place, &g.marks_lock, err) &&
             ckpt_source_open_folder(&g.source, config->place, 1, err) && look(&g, err);
        if (ok) decide(&g);
        for (size_t i = 0; ok && i < g.num_writers; i++) ok = drop(&g, &g.writers[i], err);
        ok = ok && remove_segments(&g, err) && remove_tables(&g, err) && remove_writers(&g, err);
    }
    gc_close(&g);
    return ok;
}

bool ckpt_gc(const CkptGcConfig *config, CkptGcResult *result, Error *err) {
    CkptSource *source;
    *result = (CkptGcResult){0};
    CHECK_OP(config->keep, >=, 1);
    if (!ckpt_source_open(&source, config->place, err)) return false;
    bool store = source->store;
    source->close(source);
    return store ? ckpt_gc_store(config, result, err) : ckpt_gc_staging(config, result, err);
}
