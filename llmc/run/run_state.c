/* run_state.c: see run_state.h. */
#define _POSIX_C_SOURCE   200809L
#define _FILE_OFFSET_BITS 64
#include "run/run_state.h"
#include "base/check.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "model/device.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VERSION = 1, BLOCK_BYTES = 1 << 20 };

typedef struct {
    char magic[8];
    uint32_t version, records;
    uint64_t bytes;
    uint32_t table_crc, header_crc;
} Header;

typedef struct {
    char name[RUN_STATE_NAME_BYTES];
    uint32_t crc;
    uint64_t offset, bytes;
} Entry;

_Static_assert(sizeof(Header) == 32 && sizeof(Entry) == 64, "the file's layout");

static const char magic[8] = {'t', 'o', 'r', 'o', 'i', 'd', 'r', 's'};
enum { STATE_NEW, STATE_NEWEST, STATE_PREVIOUS, STATE_NAMES };
static const char *const names[STATE_NAMES] = {"state.new.bin", "state.bin", "state.prev.bin"};

static uint32_t header_crc(const Header *header) {
    return crc32c(0, header, offsetof(Header, header_crc));
}

bool run_state_exists(const char *directory) {
    char path[FILE_PATH_BYTES];
    Error err;
    for (int i = 0; i < STATE_NAMES; i++)
        if (file_join(path, directory, names[i], &err) && file_exists(path)) return true;
    return false;
}

/* --- saving --- */

/* One record's data, with its checksum. block: BLOCK_BYTES of scratch. */
static bool write_record(FileWriter *writer, const RunRecord *record, uint32_t *crc, unsigned char *block,
                         Error *err) {
    *crc = 0;
    for (size_t at = 0; at < record->bytes; at += BLOCK_BYTES) {
        size_t n = record->bytes - at < BLOCK_BYTES ? record->bytes - at : BLOCK_BYTES;
        const unsigned char *from = (const unsigned char *)record->data + at;
        if (record->on_device) {
            device_read(block, from, n);
            from = block;
        }
        *crc = crc32c(*crc, from, n);
        if (!file_writer_write(writer, from, n, err)) return false;
    }
    return true;
}

/* The names and places; the checksums come later. */
static void fill_table(Entry *table, const RunRecord *records, size_t count, uint64_t *bytes) {
    uint64_t at = sizeof(Header) + count * sizeof *table;
    for (size_t i = 0; i < count; i++) {
        size_t length = strlen(records[i].name);
        CHECK(length >= 1 && length < sizeof table[i].name);
        for (size_t j = 0; j < i; j++) CHECK(strcmp(records[i].name, records[j].name) != 0);
        memcpy(table[i].name, records[i].name, length);
        table[i].offset = at, table[i].bytes = records[i].bytes;
        at += records[i].bytes;
    }
    *bytes = at;
}

/* The whole file, durable under the name state.new.bin. */
static bool write_new(const char *path, const RunRecord *records, size_t count, Error *err) {
    bool ok = false;
    FileWriter writer = {.fd = -1};
    Header header = {.version = VERSION, .records = (uint32_t)count};
    Entry *table = calloc(count + 1, sizeof *table);
    unsigned char *block = malloc(BLOCK_BYTES);
    if (!table || !block) {
        error_set(err, "%s: no memory to write it", path);
        goto out;
    }
    memcpy(header.magic, magic, sizeof magic);
    fill_table(table, records, count, &header.bytes);
    if (!file_writer_open(&writer, path, err)) goto out;
    if (!file_writer_write(&writer, &header, sizeof header, err)) goto out;
    if (!file_writer_write(&writer, table, count * sizeof *table, err)) goto out;
    for (size_t i = 0; i < count; i++)
        if (!write_record(&writer, &records[i], &table[i].crc, block, err)) goto out;
    header.table_crc = crc32c(0, table, count * sizeof *table);
    header.header_crc = header_crc(&header);
    if (!file_writer_rewrite(&writer, 0, &header, sizeof header, err)) goto out;
    if (!file_writer_rewrite(&writer, sizeof header, table, count * sizeof *table, err)) goto out;
    ok = file_writer_commit(&writer, err);
out:
    file_writer_abort(&writer);
    free(table);
    free(block);
    return ok;
}

bool run_state_save(const char *directory, const RunRecord *records, size_t count, Error *err) {
    CHECK(count <= RUN_STATE_RECORDS_MAX);
    char paths[STATE_NAMES][FILE_PATH_BYTES];
    if (!file_make_directory(directory, err)) return false;
    for (int i = 0; i < STATE_NAMES; i++)
        if (!file_join(paths[i], directory, names[i], err)) return false;
    /* From here on: whatever happens between two lines, the newest complete state has one of the names. */
    if (!write_new(paths[STATE_NEW], records, count, err)) return false;
    if (rename(paths[STATE_NEWEST], paths[STATE_PREVIOUS]) != 0 && errno != ENOENT)
        return file_error(err, paths[STATE_NEWEST], "rename the previous state");
    if (rename(paths[STATE_NEW], paths[STATE_NEWEST]) != 0)
        return file_error(err, paths[STATE_NEW], "rename the finished state");
    return file_sync_directory_of(paths[STATE_NEWEST], err);
}

/* --- reading --- */

typedef struct {
    TensorFile file;
    Entry *table;
    size_t count;
} State;

static void state_close(State *state) {
    tensor_file_close(&state->file);
    free(state->table);
    state->table = NULL;
}

static bool damaged(const State *state, const char *what, Error *err) {
    return error_set(err, "%s: damaged: %s", state->file.path, what);
}

/* Names end, places follow one another to the end of the file. */
static bool check_table(const State *state, Error *err) {
    uint64_t at = sizeof(Header) + state->count * sizeof *state->table;
    for (size_t i = 0; i < state->count; i++) {
        const Entry *e = &state->table[i];
        if (!e->name[0] || !memchr(e->name, 0, sizeof e->name))
            return damaged(state, "the name of a record", err);
        if (e->offset != at || e->bytes > state->file.bytes - at)
            return damaged(state, "the place of a record", err);
        at += e->bytes;
    }
    return at == state->file.bytes || damaged(state, "bytes behind the last record", err);
}

static bool state_open(State *state, const char *path, Error *err) {
    Header header;
    state->table = NULL;
    if (!tensor_file_open(&state->file, path, err)) return false;
    if (state->file.bytes < sizeof header) {
        damaged(state, "truncated inside its header", err);
        goto fail;
    }
    if (!tensor_file_read(&state->file, 0, &header, sizeof header, err)) goto fail;
    if (memcmp(header.magic, magic, sizeof magic) != 0 || header.header_crc != header_crc(&header)) {
        damaged(state, "its header does not match its checksum", err);
        goto fail;
    }
    if (header.version != VERSION) {
        error_set(err, "%s: a run state of version %u; this program reads %d", path, header.version, VERSION);
        goto fail;
    }
    state->count = header.records;
    if (header.bytes != state->file.bytes || state->count > RUN_STATE_RECORDS_MAX ||
        state->count * sizeof(Entry) > state->file.bytes - sizeof header) {
        error_set(err, "%s: damaged: has %llu bytes, should have %llu", path,
                  (unsigned long long)state->file.bytes, (unsigned long long)header.bytes);
        goto fail;
    }
    state->table = malloc(state->count * sizeof *state->table + 1);
    if (!state->table) {
        error_set(err, "%s: no memory to read it", path);
        goto fail;
    }
    if (!tensor_file_read(&state->file, sizeof header, state->table, state->count * sizeof *state->table,
                          err))
        goto fail;
    if (header.table_crc != crc32c(0, state->table, state->count * sizeof *state->table)) {
        damaged(state, "its list of records does not match its checksum", err);
        goto fail;
    }
    if (check_table(state, err)) return true;
fail:
    state_close(state);
    return false;
}

static const Entry *state_entry(const State *state, const char *name, Error *err) {
    for (size_t i = 0; i < state->count; i++)
        if (!strcmp(state->table[i].name, name)) return &state->table[i];
    error_set(err, "%s: has no record '%s' (made by another version?)", state->file.path, name);
    return NULL;
}

/* Reads a record into memory, or with memory NULL only checks it. block: BLOCK_BYTES of scratch. */
static bool read_entry(const State *state, const Entry *e, unsigned char *memory, bool on_device,
                       unsigned char *block, Error *err) {
    uint32_t crc = 0;
    for (uint64_t at = 0; at < e->bytes; at += BLOCK_BYTES) {
        size_t n = e->bytes - at < BLOCK_BYTES ? (size_t)(e->bytes - at) : BLOCK_BYTES;
        unsigned char *to = memory && !on_device ? memory + at : block;
        if (!tensor_file_read(&state->file, e->offset + at, to, n, err)) return false;
        crc = crc32c(crc, to, n);
        if (memory && on_device) device_write(memory + at, to, n);
    }
    if (crc == e->crc) return true;
    return error_set(err, "%s: damaged: record '%s' does not match its checksum", state->file.path, e->name);
}

/* What is done with one file of the folder. */
typedef bool (*Visit)(State *state, void *ctx, unsigned char *block, Error *err);

/* Visits the files, newest first, until one succeeds. The error is the newest file's; an older one that had
 * to do is warned about. */
static bool visit_newest(const char *directory, Visit visit, void *ctx, Error *err) {
    bool ok = false, failed = false;
    Error why;
    unsigned char *block = malloc(BLOCK_BYTES);
    if (!block) return error_set(err, "%s: no memory to read its run state", directory);
    for (int i = 0; i < STATE_NAMES && !ok; i++) {
        char path[FILE_PATH_BYTES];
        State state;
        if (!file_join(path, directory, names[i], err)) break;
        if (!file_exists(path)) continue;
        if (state_open(&state, path, &why)) {
            ok = visit(&state, ctx, block, &why);
            state_close(&state);
        }
        if (ok && failed) log_warn("%s; using %s instead", err->text, path);
        if (!ok && !failed) *err = why;
        failed |= !ok;
    }
    free(block);
    return ok || failed
               ? ok
               : error_set(err, "%s: no run state (%s) in this folder", directory, names[STATE_NEWEST]);
}

typedef struct {
    const RunRecord *records;
    size_t count;
} Wanted;

static bool load_records(State *state, void *ctx, unsigned char *block, Error *err) {
    const Wanted *wanted = ctx;
    for (size_t i = 0; i < wanted->count; i++) {
        const RunRecord *r = &wanted->records[i];
        const Entry *e = state_entry(state, r->name, err);
        if (!e) return false;
        if (e->bytes != r->bytes)
            return error_set(err, "%s: record '%s' has %llu bytes, not %zu (is it of another model?)",
                             state->file.path, r->name, (unsigned long long)e->bytes, r->bytes);
    }
    for (size_t i = 0; i < wanted->count; i++) {
        const RunRecord *r = &wanted->records[i];
        if (!read_entry(state, state_entry(state, r->name, err), r->data, r->on_device, block, err))
            return false;
    }
    return true;
}

bool run_state_load(const char *directory, const RunRecord *records, size_t count, Error *err) {
    Wanted wanted = {records, count};
    return visit_newest(directory, load_records, &wanted, err);
}

typedef struct {
    const char *name;
    RunStatePlace *place;
} Search;

static bool find_record(State *state, void *ctx, unsigned char *block, Error *err) {
    const Search *search = ctx;
    const Entry *e = state_entry(state, search->name, err);
    if (!e || !read_entry(state, e, NULL, false, block, err)) return false;
    *search->place = (RunStatePlace){state->file, e->offset, e->bytes};
    state->file.fd = -1; /* it is the caller's now */
    return true;
}

bool run_state_find(const char *directory, const char *name, RunStatePlace *place, Error *err) {
    Search search = {name, place};
    return visit_newest(directory, find_record, &search, err);
}
