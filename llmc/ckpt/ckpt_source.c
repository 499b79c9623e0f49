/* ckpt_source.c: see ckpt_source.h; a staging folder through ckpt_io.h. A CkptIo is for one thread at a time, so there are
 * several slots, each with its own and with the segment that it read last left open. */
#define _POSIX_C_SOURCE 200809L
#include "ckpt/ckpt_source.h"
#include "base/check.h"
#include "base/file.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS_MAX = 16 };

typedef struct {
    CkptIo io;
    CkptFile *file; /* of name, NULL: none */
    char name[CKPT_FILE_NAME_BYTES];
    bool open, busy;
} Slot;

typedef struct {
    CkptSource source;
    char folder[FILE_PATH_BYTES];
    pthread_mutex_t mutex;
    pthread_cond_t freed;
    int num_slots;
    Slot slots[SLOTS_MAX];
} Folder;

/* A slot for this thread alone, one that has the file open if there is one. */
static Slot *take_slot(Folder *f, const char *name, Error *err) {
    Slot *slot = NULL;
    const char *why;
    pthread_mutex_lock(&f->mutex);
    while (!slot) {
        for (int i = 0; i < f->num_slots; i++) {
            Slot *s = &f->slots[i];
            if (s->busy) continue;
            if (!slot || (s->file && !strcmp(s->name, name))) slot = s;
        }
        if (!slot) pthread_cond_wait(&f->freed, &f->mutex);
    }
    slot->busy = true;
    pthread_mutex_unlock(&f->mutex);
    if (slot->open || (slot->open = ckpt_io_open(&slot->io, "plain", &why, err))) return slot;
    pthread_mutex_lock(&f->mutex);
    slot->busy = false;
    pthread_mutex_unlock(&f->mutex);
    return NULL;
}

static void close_slot_file(Slot *slot) {
    if (slot->file) slot->io.body->close_file(&slot->io, slot->file);
    slot->file = NULL;
}

static void give_slot(Folder *f, Slot *slot) {
    pthread_mutex_lock(&f->mutex);
    slot->busy = false;
    pthread_cond_signal(&f->freed);
    pthread_mutex_unlock(&f->mutex);
}

/* Only segments stay open: other files are replaced under their names. */
static bool open_in_slot(Folder *f, Slot *slot, const char *name, Error *err) {
    char path[FILE_PATH_BYTES];
    bool segment = !strncmp(name, "seg/", 4);
    if (segment && slot->file && !strcmp(slot->name, name)) return true;
    close_slot_file(slot);
    CHECK_OP(strlen(name), <, CKPT_FILE_NAME_BYTES);
    if (!file_join(path, f->folder, name, err)) return false;
    slot->file = slot->io.body->open(&slot->io, path, CKPT_IO_READ | (segment ? CKPT_IO_DIRECT : 0), err);
    if (slot->file) snprintf(slot->name, sizeof slot->name, "%s", name);
    return slot->file != NULL;
}

typedef struct {
    void (*each)(void *ctx, const char *name, uint64_t bytes);
    void *ctx;
} Each;

static void without_size(void *ctx, const char *name) {
    Each *e = ctx;
    e->each(e->ctx, name, 0);
}

static bool folder_list(CkptSource *source, const char *folder,
                        void (*each)(void *ctx, const char *name, uint64_t bytes), void *ctx, Error *err) {
    Folder *f = (Folder *)source;
    char path[FILE_PATH_BYTES];
    if (!file_join(path, f->folder, folder, err)) return false;
    Slot *slot = take_slot(f, "", err);
    if (!slot) return false;
    bool ok = slot->io.body->list(&slot->io, path, without_size, &(Each){each, ctx}, err);
    give_slot(f, slot);
    return ok;
}

static bool folder_size(CkptSource *source, const char *name, uint64_t *bytes, bool *found, Error *err) {
    Folder *f = (Folder *)source;
    Slot *slot = take_slot(f, name, err);
    if (!slot) return false;
    bool ok = true;
    *bytes = 0;
    *found = open_in_slot(f, slot, name, err);
    if (*found) ok = slot->io.body->size(&slot->io, slot->file, bytes, err);
    give_slot(f, slot);
    return ok;
}

static bool folder_read(CkptSource *source, const char *name, void *data, size_t bytes, uint64_t offset,
                        Error *err) {
    Folder *f = (Folder *)source;
    Slot *slot = take_slot(f, name, err);
    if (!slot) return false;
    bool ok = open_in_slot(f, slot, name, err) &&
              slot->io.body->read(&slot->io, slot->file, data, bytes, offset, err);
    give_slot(f, slot);
    return ok;
}

static void folder_close(CkptSource *source) {
    Folder *f = (Folder *)source;
    for (int i = 0; i < f->num_slots; i++) {
        if (!f->slots[i].open) continue;
        close_slot_file(&f->slots[i]);
        ckpt_io_close(&f->slots[i].io);
    }
    pthread_mutex_destroy(&f->mutex);
    pthread_cond_destroy(&f->freed);
    free(f);
}

bool ckpt_source_open_folder(CkptSource **source, const char *folder, int threads, Error *err) {
    *source = NULL;
    Folder *f = calloc(1, sizeof *f);
    if (!f) return error_set(err, "%s: no memory to read it", folder);
    if (!file_join(f->folder, folder, "", err)) {
        free(f);
        return false;
    }
    size_t length = strlen(f->folder);
    if (length > 1 && f->folder[length - 1] == '/') f->folder[length - 1] = 0;
    f->num_slots = threads < 1 ? 1 : threads > SLOTS_MAX ? SLOTS_MAX : threads;
    pthread_mutex_init(&f->mutex, NULL);
    pthread_cond_init(&f->freed, NULL);
    f->source = (CkptSource){.place = f->folder,
                             .list = folder_list,
                             .size = folder_size,
                             .read = folder_read,
                             .close = folder_close};
    *source = &f->source;
    return true;
}

bool ckpt_source_open(CkptSource **source, const char *place, Error *err) {
    char path[FILE_PATH_BYTES];
    if (!strncmp(place, "s3://", 5)) return ckpt_source_open_store(source, place, err);
    if (!file_join(path, place, "ckpt", err)) return false;
    if (file_is_directory(path)) return ckpt_source_open_store(source, place, err);
    return ckpt_source_open_folder(source, place, SLOTS_MAX, err);
}
