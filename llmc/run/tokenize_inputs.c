/* tokenize_inputs.c: see tokenize_inputs.h. */
#define _POSIX_C_SOURCE   200809L
#define _FILE_OFFSET_BITS 64
#include "run/tokenize_inputs.h"
#include "base/file.h"
#include "base/log.h"
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { SKIPS_TOLD = 10 }; /* skipped files that are named; the rest is counted */

static bool is_stdin(const char *path) {
    return !strcmp(path, "-");
}

static bool add(TokenizeInputs *inputs, const char *path, uint64_t bytes, Error *err) {
    if (inputs->count == inputs->capacity) {
        size_t capacity = inputs->capacity ? 2 * inputs->capacity : 64;
        TokenizeInput *items = realloc(inputs->items, capacity * sizeof *items);
        if (!items) return error_set(err, "no memory to list the input files");
        inputs->items = items;
        inputs->capacity = capacity;
    }
    char *copy = strdup(path);
    if (!copy) return error_set(err, "no memory to list the input files");
    inputs->items[inputs->count++] = (TokenizeInput){.path = copy, .bytes = bytes};
    inputs->bytes += bytes;
    return true;
}

bool tokenize_is_text(const char *head, size_t bytes) {
    return !memchr(head, 0, bytes < TOKENIZE_HEAD_BYTES ? bytes : TOKENIZE_HEAD_BYTES);
}

/* Lists a file if it begins like text; otherwise it is skipped or, if the user named it, an error. */
static bool add_file(TokenizeInputs *inputs, const char *path, uint64_t bytes, bool named, Error *err) {
    char head[TOKENIZE_HEAD_BYTES];
    FILE *file = fopen(path, "rb");
    if (!file) return file_error(err, path, "open");
    size_t head_bytes = fread(head, 1, sizeof head, file);
    bool ok = !ferror(file) || file_error(err, path, "read");
    fclose(file);
    if (!ok) return false;
    if (tokenize_is_text(head, head_bytes)) return add(inputs, path, bytes, err);
    if (named) return tokenize_not_text(path, err);
    if (inputs->num_skipped++ < SKIPS_TOLD) log_info("%s: skipped: not text", path);
    return true;
}

/* Folders still to be read, as a stack. */
typedef struct {
    char **paths;
    size_t count, capacity;
} Folders;

static bool push_folder(Folders *folders, const char *path, Error *err) {
    if (folders->count == folders->capacity) {
        size_t capacity = folders->capacity ? 2 * folders->capacity : 16;
        char **paths = realloc(folders->paths, capacity * sizeof *paths);
        if (!paths) return error_set(err, "no memory to list the input files");
        folders->paths = paths;
        folders->capacity = capacity;
    }
    folders->paths[folders->count] = strdup(path);
    if (!folders->paths[folders->count]) return error_set(err, "no memory to list the input files");
    folders->count++;
    return true;
}

/* What another run of tokenize left is not its input. */
static bool is_passed_over(const char *name) {
    size_t length = strlen(name);
    return name[0] == '.' || (length > 10 && !strcmp(name + length - 10, ".tokenizer"));
}

static bool read_folder(TokenizeInputs *inputs, Folders *folders, const char *path, Error *err) {
    char full[FILE_PATH_BYTES];
    struct stat link, target;
    bool ok = true;
    DIR *dir = opendir(path);
    if (!dir) return file_error(err, path, "read this folder");
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (!entry) {
            if (errno) ok = file_error(err, path, "read this folder");
            break;
        }
        if (is_passed_over(entry->d_name)) continue;
        ok = file_join(full, path, entry->d_name, err);
        if (!ok) break;
        if (lstat(full, &link) != 0 || stat(full, &target) != 0) {
            log_warn("%s: skipped: %s", full, strerror(errno));
            continue;
        }
        if (S_ISDIR(link.st_mode))
            ok = push_folder(folders, full, err);
        else if (S_ISREG(target.st_mode) && target.st_size > 0)
            ok = add_file(inputs, full, (uint64_t)target.st_size, false, err);
        if (!ok) break;
    }
    closedir(dir);
    return ok;
}

static int compare_inputs(const void *a, const void *b) {
    return strcmp(((const TokenizeInput *)a)->path, ((const TokenizeInput *)b)->path);
}

/* Adds the files of a folder and those below, sorted by path. */
static bool add_folder(TokenizeInputs *inputs, const char *path, Error *err) {
    Folders folders = {0};
    size_t first = inputs->count;
    bool ok = push_folder(&folders, path, err);
    while (ok && folders.count) {
        char *next = folders.paths[--folders.count];
        ok = read_folder(inputs, &folders, next, err);
        free(next);
    }
    if (ok && inputs->count == first) ok = error_set(err, "%s: no text file in this folder", path);
    if (ok) qsort(inputs->items + first, inputs->count - first, sizeof *inputs->items, compare_inputs);
    while (folders.count) free(folders.paths[--folders.count]);
    free(folders.paths);
    return ok;
}

/* Copies stdin to a temporary file, *bytes long. */
static FILE *spool_stdin(uint64_t *bytes, Error *err) {
    char buffer[1 << 16];
    size_t n;
    FILE *spool = tmpfile();
    if (!spool) {
        error_set_errno(err,
                        "cannot make a temporary file for the text from stdin (write it to a file first)");
        return NULL;
    }
    *bytes = 0;
    while ((n = fread(buffer, 1, sizeof buffer, stdin)) > 0) {
        if (fwrite(buffer, 1, n, spool) != n) break;
        *bytes += n;
    }
    if (ferror(stdin) || ferror(spool) || fflush(spool) != 0) {
        error_set_errno(err,
                        "cannot copy the text from stdin to a temporary file (write it to a file first)");
        fclose(spool);
        return NULL;
    }
    return spool;
}

static bool add_input(TokenizeInputs *inputs, const char *path, bool spool, Error *err) {
    struct stat s;
    uint64_t bytes = 0;
    if (is_stdin(path)) {
        for (size_t i = 0; i < inputs->count; i++)
            if (is_stdin(inputs->items[i].path)) return error_set(err, "stdin (-) is given twice");
        if (spool && !(inputs->spool = spool_stdin(&bytes, err))) return false;
        return add(inputs, path, bytes, err);
    }
    if (stat(path, &s) != 0) return file_error(err, path, "read");
    if (S_ISDIR(s.st_mode)) return add_folder(inputs, path, err);
    if (!S_ISREG(s.st_mode)) return error_set(err, "%s: neither a file nor a folder (pipe it to '-')", path);
    return add_file(inputs, path, (uint64_t)s.st_size, true, err);
}

bool tokenize_inputs_open(TokenizeInputs *inputs, const char *const *paths, size_t count, bool spool,
                          Error *err) {
    if (!count) return error_set(err, "no input (name text files or folders, or - for stdin)");
    for (size_t i = 0; i < count; i++)
        if (!add_input(inputs, paths[i], spool, err)) return false;
    return true;
}

void tokenize_inputs_close(TokenizeInputs *inputs) {
    for (size_t i = 0; i < inputs->count; i++) free(inputs->items[i].path);
    free(inputs->items);
    if (inputs->spool) fclose(inputs->spool);
    *inputs = (TokenizeInputs){0};
}

bool tokenize_not_text(const char *path, Error *err) {
    return error_set(err, "%s: not text: it has bytes of value 0 (turn UTF-16 into UTF-8 with iconv)",
                     is_stdin(path) ? "stdin" : path);
}

FILE *tokenize_input_open(const TokenizeInputs *inputs, size_t i, Error *err) {
    const char *path = inputs->items[i].path;
    if (is_stdin(path) && inputs->spool) rewind(inputs->spool);
    FILE *file = !is_stdin(path) ? fopen(path, "rb") : inputs->spool ? inputs->spool : stdin;
    if (!file) file_error(err, path, "open");
    return file;
}

void tokenize_input_close(const TokenizeInputs *inputs, FILE *file) {
    if (file && file != inputs->spool && file != stdin) fclose(file);
}
