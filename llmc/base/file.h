/* file.h: small files read whole, and files written so that a reader sees the old one or the new one, never
 * half.
 *
 * A FileWriter writes aside (`PATH.tmp.PID`); only file_writer_commit, after all bytes are on the disk,
 * renames it to PATH. Every error is one line with the path, the reason and what to do about it. */
#ifndef LLMC_FILE_H
#define LLMC_FILE_H
#include "base/error.h"
#include <stddef.h>
#include <stdint.h>

enum { FILE_PATH_BYTES = 4096 };

/* Sets err to "path: cannot WHAT: reason of errno (hint)" and returns false. */
bool file_error(Error *err, const char *path, const char *what);

/* The whole file, at most bytes_max bytes, with a NUL behind it that *bytes does not count; free(*data).
 * path "-" is stdin. A longer file, a folder, or one that cannot be read is an error. */
bool file_read(const char *path, size_t bytes_max, char **data, size_t *bytes, Error *err);

bool file_exists(const char *path);
bool file_is_directory(const char *path);

/* Makes the folder and those above it, as mkdir -p; one that is there is no error. */
bool file_make_directory(const char *path, Error *err);

/* `directory/name` into out; false if it does not fit. */
bool file_join(char out[FILE_PATH_BYTES], const char *directory, const char *name, Error *err);

/* Makes names in the folder that holds `path` durable (fsync of the folder). */
bool file_sync_directory_of(const char *path, Error *err);

typedef struct {
    char path[FILE_PATH_BYTES]; /* the final name */
    char aside[FILE_PATH_BYTES];
    int fd; /* -1: not open */
    unsigned char *buffer;
    size_t buffered;
    uint64_t bytes; /* written so far, buffered ones included */
} FileWriter;

/* All of these: true, or false with err set; after a failure only file_writer_abort may follow (it always
 * may, also after a commit or a failed open, and then does nothing). A zeroed FileWriter may be aborted too.
 */
bool file_writer_open(FileWriter *writer, const char *path, Error *err);
bool file_writer_write(FileWriter *writer, const void *data, size_t bytes, Error *err);
/* Replaces bytes already written, such as a header whose counts are known only at the end. */
bool file_writer_rewrite(FileWriter *writer, uint64_t offset, const void *data, size_t bytes, Error *err);
/* fsync, rename, fsync of the folder: when it returns true the file is there for good. */
bool file_writer_commit(FileWriter *writer, Error *err);
/* Closes and removes the file aside, unless committed. */
void file_writer_abort(FileWriter *writer);

/* The whole content in one call: open, write, commit. */
bool file_write(const char *path, const void *data, size_t bytes, Error *err);
#endif
