/* store_dir.c: a store in a folder (store.h): a disk, or a file system that many nodes share.
 *
 * An object is written aside, in the folder where it will stand, as .PID.N.aside; after fsync it gets its name, and the
 * folder is synced. Names that begin with '.' are never keys, so a list does not see what is unfinished. */
#define _XOPEN_SOURCE     700
#define _FILE_OFFSET_BITS 64
#include "base/check.h"
#include "base/file.h"
#include "ckpt/store_body.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { COPY_BYTES = 1 << 20, DEPTH_MAX = 32 };

typedef struct {
    char root[FILE_PATH_BYTES];
    Store *store; /* for its rate */
} StoreDir;

static bool path_of(const StoreDir *dir, const char *key, char path[FILE_PATH_BYTES], Error *err) {
    return file_join(path, dir->root, key, err);
}

/* Makes the folders above path, below the root, each durable in the one above it. */
static bool make_folders(const StoreDir *dir, char *path, Error *err) {
    size_t root = strlen(dir->root);
    bool ok = true;
    for (char *slash = path + root; ok && (slash = strchr(slash, '/')); slash++) {
        if (slash == path) continue;
        *slash = 0;
        if (mkdir(path, 0777) == 0)
            ok = file_sync_directory_of(path, err);
        else if (errno != EEXIST && !file_is_directory(path))
            ok = file_error(err, path, "make this folder");
        *slash = '/';
    }
    return ok;
}

static bool write_all(int fd, const unsigned char *data, size_t bytes) {
    while (bytes) {
        ssize_t n = write(fd, data, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        data += n, bytes -= (size_t)n;
    }
    return true;
}

static bool copy_source(StoreDir *dir, StoreSource *source, int fd, const char *path, Error *err) {
    unsigned char *buffer = malloc(COPY_BYTES);
    bool ok = buffer != NULL;
    if (!ok) error_set(err, "%s: no memory to copy", path);
    for (uint64_t at = 0; ok && at < source->bytes;) {
        size_t bytes = source->bytes - at < COPY_BYTES ? (size_t)(source->bytes - at) : COPY_BYTES;
        if (source->stop && atomic_load(source->stop))
            ok = error_set(err, "%s: stopped before it was done", path);
        ok = ok && store_source_read(source, buffer, bytes, at, err);
        for (size_t sent = 0; ok && sent < bytes;) {
            size_t n = store_rate_take(&dir->store->rate, bytes - sent, source->stop);
            if (!write_all(fd, buffer + sent, n)) ok = file_error(err, path, "write");
            sent += n;
        }
        at += bytes;
    }
    free(buffer);
    return ok;
}

/* Gives what is aside its name. only_if_absent: a hard link fails where there is one already; a file system without
 * them is asked first. */
static bool publish(const char *aside, const char *path, bool only_if_absent, bool *existed, Error *err) {
    if (only_if_absent) {
        if (link(aside, path) == 0) {
            unlink(aside);
            return file_sync_directory_of(path, err);
        }
        *existed = errno == EEXIST || file_exists(path);
        if (*existed) return error_set(err, "%s: there is another one already", path);
    }
    if (rename(aside, path) != 0) return file_error(err, path, "rename the finished file to this name");
    return file_sync_directory_of(path, err);
}

static bool put(StoreDir *dir, const char *key, StoreSource *source, bool only_if_absent, bool *existed,
                Error *err) {
    static atomic_uint counter;
    char path[FILE_PATH_BYTES], aside[FILE_PATH_BYTES];
    if (!path_of(dir, key, path, err) || !make_folders(dir, path, err)) return false;
    int n = snprintf(aside, sizeof aside, "%.*s.%ld.%u.aside", (int)(strrchr(path, '/') + 1 - path), path,
                     (long)getpid(), atomic_fetch_add(&counter, 1));
    if (n < 0 || n >= (int)sizeof aside) return error_set(err, "%.200s...: the path is too long", path);
    int fd = open(aside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0 && errno == ENOENT && make_folders(dir, path, err)) /* a remove took the empty folder away */
        fd = open(aside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) return file_error(err, path, "write");
    bool ok = copy_source(dir, source, fd, path, err);
    if (ok && fsync(fd) != 0) ok = file_error(err, path, "make this file durable");
    if (close(fd) != 0 && ok) ok = file_error(err, path, "write");
    ok = ok && publish(aside, path, only_if_absent, existed, err);
    if (!ok) unlink(aside);
    return ok;
}

static bool dir_put(void *state, const char *key, StoreSource *source, Error *err) {
    bool ignored;
    return put(state, key, source, false, &ignored, err);
}

typedef struct {
    const unsigned char *data;
} Bytes;

static bool read_bytes(void *ctx, void *data, size_t bytes, uint64_t offset, Error *err) {
    (void)err;
    memcpy(data, ((Bytes *)ctx)->data + offset, bytes);
    return true;
}

/* Does the file hold these bytes? */
static bool holds(const char *path, const void *data, size_t bytes) {
    char *text = NULL;
    size_t there = 0;
    Error ignored;
    if (!file_read(path, bytes, &text, &there, &ignored)) return false;
    bool same = there == bytes && !memcmp(text, data, bytes);
    free(text);
    return same;
}

static bool dir_put_small(void *state, const char *key, const void *data, size_t bytes, bool only_if_absent,
                          bool *existed, Error *err) {
    Bytes source_bytes = {data};
    StoreSource source = {.read = read_bytes, .ctx = &source_bytes, .bytes = bytes};
    char path[FILE_PATH_BYTES];
    if (put(state, key, &source, only_if_absent, existed, err)) return true;
    if (!*existed || !path_of(state, key, path, err) || !holds(path, data, bytes)) return false;
    *existed = false;
    return true;
}

static bool dir_get(void *state, const char *key, void *data, size_t bytes, uint64_t offset, Error *err) {
    char path[FILE_PATH_BYTES];
    if (!path_of(state, key, path, err)) return false;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return file_error(err, path, "open");
    bool ok = true;
    for (size_t got = 0; ok && got < bytes;) {
        ssize_t n = pread(fd, (char *)data + got, bytes - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) ok = file_error(err, path, "read");
        if (n == 0) ok = error_set(err, "%s: ends before byte %" PRIu64, path, offset + bytes);
        if (n > 0) got += (size_t)n;
    }
    close(fd);
    return ok;
}

static bool dir_stat(void *state, const char *key, uint64_t *bytes, bool *found, Error *err) {
    char path[FILE_PATH_BYTES];
    struct stat s;
    if (!path_of(state, key, path, err)) return false;
    if (stat(path, &s) != 0) return errno == ENOENT || errno == ENOTDIR || file_error(err, path, "look at");
    *found = S_ISREG(s.st_mode);
    *bytes = *found ? (uint64_t)s.st_size : 0;
    return true;
}

/* Empty folders above it go too: a list of checkpoints would otherwise walk through all that ever were. */
static bool dir_remove(void *state, const char *key, Error *err) {
    const StoreDir *dir = state;
    char path[FILE_PATH_BYTES];
    if (!path_of(dir, key, path, err)) return false;
    if (unlink(path) != 0 && errno != ENOENT && errno != ENOTDIR) return file_error(err, path, "remove");
    for (char *slash; (slash = strrchr(path, '/')) && (size_t)(slash - path) > strlen(dir->root);) {
        *slash = 0;
        if (rmdir(path) != 0) break;
    }
    return true;
}

/* ---- walking ---- */

typedef struct {
    char key[STORE_KEY_BYTES];
    uint64_t bytes;
} Found;

typedef struct {
    const char *prefix;
    bool unfinished; /* those aside rather than objects */
    Found *items;
    size_t count, size;
} Walk;

static bool add(Walk *walk, const char *key, uint64_t bytes, Error *err) {
    if (walk->count == walk->size) {
        size_t size = walk->size ? 2 * walk->size : 256;
        Found *grown = realloc(walk->items, size * sizeof *grown);
        if (!grown) return error_set(err, "no memory for a list of %zu objects", walk->count);
        walk->items = grown;
        walk->size = size;
    }
    Found *item = &walk->items[walk->count++];
    snprintf(item->key, sizeof item->key, "%s", key);
    item->bytes = bytes;
    return true;
}

static bool is_aside(const char *name) {
    size_t n = strlen(name);
    return *name == '.' && n > 6 && !strcmp(name + n - 6, ".aside");
}

/* Could something under this folder ("" or ending with '/') begin with the prefix? */
static bool leads_to(const char *folder, const char *prefix) {
    size_t n = strlen(folder), m = strlen(prefix);
    return !strncmp(folder, prefix, n < m ? n : m);
}

/* folder: the key's part so far, "" or ending with '/'. Files that vanish meanwhile are passed over. */
static bool walk_folder(const StoreDir *dir, const char *folder, int depth, Walk *walk, Error *err) {
    char path[FILE_PATH_BYTES], key[STORE_KEY_BYTES];
    if (depth > DEPTH_MAX || !leads_to(folder, walk->prefix)) return true;
    if (!path_of(dir, folder, path, err)) return false;
    DIR *d = opendir(path);
    if (!d) return errno == ENOENT || errno == ENOTDIR || file_error(err, path, "list");
    bool ok = true;
    for (struct dirent *e; ok && (e = readdir(d));) {
        struct stat s;
        bool aside = is_aside(e->d_name);
        int n = snprintf(key, sizeof key, "%s%s", folder, e->d_name);
        if (n < 0 || n + 1 >= (int)sizeof key || (*e->d_name == '.' && !aside)) continue;
        if (fstatat(dirfd(d), e->d_name, &s, 0) != 0) continue;
        if (S_ISDIR(s.st_mode) && !aside) {
            strcat(key, "/");
            ok = walk_folder(dir, key, depth + 1, walk, err);
        } else if (S_ISREG(s.st_mode) && aside == walk->unfinished && (aside || store_key_is_valid(key))) {
            uint64_t value = aside ? (uint64_t)s.st_mtime : (uint64_t)s.st_size;
            if (aside || !strncmp(key, walk->prefix, strlen(walk->prefix))) ok = add(walk, key, value, err);
        }
    }
    closedir(d);
    return ok;
}

static int compare_found(const void *a, const void *b) {
    return strcmp(((const Found *)a)->key, ((const Found *)b)->key);
}

static bool dir_list(void *state, const char *prefix, StoreEach *each, void *ctx, Error *err) {
    Walk walk = {.prefix = prefix};
    bool ok = walk_folder(state, "", 0, &walk, err);
    if (walk.count) qsort(walk.items, walk.count, sizeof *walk.items, compare_found);
    for (size_t i = 0; ok && i < walk.count; i++) each(ctx, walk.items[i].key, walk.items[i].bytes);
    free(walk.items);
    return ok;
}

static bool dir_abort_orphans(void *state, const char *prefix, double age_seconds, int *aborted, Error *err) {
    Walk walk = {.prefix = prefix, .unfinished = true};
    bool ok = walk_folder(state, "", 0, &walk, err);
    for (size_t i = 0; ok && i < walk.count; i++) {
        char path[FILE_PATH_BYTES];
        if (difftime(time(NULL), (time_t)walk.items[i].bytes) < age_seconds) continue;
        ok = path_of(state, walk.items[i].key, path, err);
        if (ok && unlink(path) == 0) (*aborted)++;
    }
    free(walk.items);
    return ok;
}

static bool dir_check(void *state, Error *err) {
    const StoreDir *dir = state;
    char path[FILE_PATH_BYTES];
    if (!file_make_directory(dir->root, err)) return false;
    if (!file_join(path, dir->root, ".check.aside", err)) return false;
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return file_error(err, dir->root, "write into this folder");
    close(fd);
    unlink(path);
    return true;
}

static void dir_close(void *state) {
    free(state);
}

bool store_dir_open(Store *store, const char *place, Error *err) {
    static const StoreBody body = {dir_close, dir_check, dir_put,    dir_put_small,    dir_get,
                                   dir_stat,  dir_list,  dir_remove, dir_abort_orphans};
    StoreDir *dir = calloc(1, sizeof *dir);
    if (!dir) return error_set(err, "%s: no memory", place);
    size_t n = strlen(place);
    while (n > 1 && place[n - 1] == '/') n--;
    if (!n || n + STORE_KEY_BYTES + 64 >= sizeof dir->root) {
        free(dir);
        return error_set(err, "'%.100s': no folder's name, or one that is too long", place);
    }
    memcpy(dir->root, place, n);
    dir->store = store;
    store->body = &body;
    store->state = dir;
    snprintf(store->describe, sizeof store->describe, "%.1000s", dir->root);
    return true;
}
