/* file.c: see file.h. */
#define _POSIX_C_SOURCE   200809L
#define _FILE_OFFSET_BITS 64
#include "base/file.h"
#include "base/check.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BUFFER_BYTES = 1 << 18 };

static const char *hint_of(int error) {
    switch (error) {
    case ENOSPC: return " (the disk is full: free some space or write elsewhere)";
    case EDQUOT: return " (your quota is used up: free some space or write elsewhere)";
    case EACCES:
    case EPERM: return " (check who owns it and its permissions)";
    case EROFS: return " (the file system is read-only: write elsewhere)";
    case ENOENT: return " (check the spelling)";
    case EMFILE: return " (too many open files: raise 'ulimit -n')";
    case EFBIG: return " (the file system or 'ulimit -f' does not allow files this large)";
    case EIO: return " (the disk or the network mount failed: see dmesg)";
    default: return "";
    }
}

bool file_error(Error *err, const char *path, const char *what) {
    int error = errno;
    return error_set(err, "%s: cannot %s: %s%s", path, what, strerror(error), hint_of(error));
}

bool file_exists(const char *path) {
    return access(path, F_OK) == 0;
}

bool file_is_directory(const char *path) {
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

bool file_join(char out[FILE_PATH_BYTES], const char *directory, const char *name, Error *err) {
    size_t length = strlen(directory);
    const char *slash = length && directory[length - 1] == '/' ? "" : "/";
    int n = snprintf(out, FILE_PATH_BYTES, "%s%s%s", directory, length ? slash : "", name);
    if (n < 0 || n >= FILE_PATH_BYTES)
        return error_set(err, "%.200s...: the path is longer than %d bytes", directory, FILE_PATH_BYTES - 1);
    return true;
}

/* Reads until end of file or until size bytes are there; false with errno on failure. */
static bool read_fully(int fd, char *data, size_t size, size_t *got) {
    *got = 0;
    while (*got < size) {
        ssize_t n = read(fd, data + *got, size - *got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        if (n == 0) break;
        *got += (size_t)n;
    }
    return true;
}

bool file_read(const char *path, size_t bytes_max, char **data, size_t *bytes, Error *err) {
    CHECK(bytes_max < SIZE_MAX / 2);
    bool ok = false, from_stdin = !strcmp(path, "-");
    char *buffer = NULL;
    size_t used = 0, size = 0;
    struct stat s;
    int fd = from_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return file_error(err, path, "open");
    if (fstat(fd, &s) != 0) {
        file_error(err, path, "read");
        goto out;
    }
    if (S_ISREG(s.st_mode)) size = s.st_size > 0 && (uint64_t)s.st_size < bytes_max ? (size_t)s.st_size : 0;
    for (size = size ? size + 1 : 4096;; size *= 2) { /* one byte more than expected shows the end */
        if (size > bytes_max + 1) size = bytes_max + 1;
        char *grown = realloc(buffer, size + 1);
        if (!grown) {
            error_set(err, "%s: no memory for its %zu bytes", path, size);
            goto out;
        }
        buffer = grown;
        size_t got;
        if (!read_fully(fd, buffer + used, size - used, &got)) {
            file_error(err, path, "read");
            goto out;
        }
        used += got;
        if (used < size) break;
        if (used > bytes_max) {
            error_set(err, "%s: larger than the %zu bytes such a file may have", path, bytes_max);
            goto out;
        }
    }
    buffer[used] = 0;
    *data = buffer;
    *bytes = used;
    buffer = NULL;
    ok = true;
out:
    free(buffer);
    if (!from_stdin) close(fd);
    return ok;
}

bool file_make_directory(const char *path, Error *err) {
    char part[FILE_PATH_BYTES];
    size_t length = strlen(path);
    if (!length) return error_set(err, "cannot make a folder without a name");
    if (length >= sizeof part)
        return error_set(err, "%.200s...: the path is longer than %zu bytes", path, sizeof part - 1);
    memcpy(part, path, length + 1);
    for (size_t i = 1; i <= length; i++) {
        if (part[i] != '/' && part[i] != 0) continue;
        char saved = part[i];
        part[i] = 0;
        int error = mkdir(part, 0777) == 0 ? 0 : errno;
        if (error && !file_is_directory(part)) {
            errno = error == EEXIST ? ENOTDIR : error;
            return file_error(err, part, "make this folder");
        }
        part[i] = saved;
    }
    return true;
}

bool file_sync_directory_of(const char *path, Error *err) {
    char directory[FILE_PATH_BYTES];
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) : 0;
    CHECK(length < sizeof directory);
    if (slash == path) length = 1;
    memcpy(directory, slash ? path : ".", slash ? length : 1);
    directory[slash ? length : 1] = 0;
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return file_error(err, directory, "open this folder");
    bool ok = fsync(fd) == 0 || errno == EINVAL; /* EINVAL: a file system without fsync of folders */
    if (!ok) file_error(err, directory, "make this folder durable");
    close(fd);
    return ok;
}

bool file_writer_open(FileWriter *writer, const char *path, Error *err) {
    memset(writer, 0, sizeof *writer);
    writer->fd = -1;
    int n = snprintf(writer->aside, sizeof writer->aside, "%s.tmp.%ld", path, (long)getpid());
    if (n < 0 || n >= (int)sizeof writer->aside)
        return error_set(err, "%.200s...: the path is too long", path);
    memcpy(writer->path, path, strlen(path) + 1);
    if (file_is_directory(path)) return error_set(err, "%s: cannot write: it is a folder", path);
    writer->buffer = malloc(BUFFER_BYTES);
    if (!writer->buffer) return error_set(err, "%s: no memory for the write buffer", path);
    writer->fd = open(writer->aside, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (writer->fd < 0) return file_error(err, path, "write");
    return true;
}

static bool write_at(FileWriter *writer, uint64_t offset, const unsigned char *data, size_t bytes,
                     Error *err) {
    while (bytes) {
        size_t chunk = bytes < (1u << 30) ? bytes : 1u << 30;
        ssize_t n = pwrite(writer->fd, data, chunk, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return file_error(err, writer->path, "write");
        data += n, offset += (uint64_t)n, bytes -= (size_t)n;
    }
    return true;
}

static bool flush(FileWriter *writer, Error *err) {
    size_t bytes = writer->buffered;
    writer->buffered = 0;
    return write_at(writer, writer->bytes - bytes, writer->buffer, bytes, err);
}

bool file_writer_write(FileWriter *writer, const void *data, size_t bytes, Error *err) {
    CHECK(writer->fd >= 0);
    if (!bytes) return true;
    if (writer->buffered + bytes > BUFFER_BYTES && !flush(writer, err)) return false;
    writer->bytes += bytes;
    if (bytes > BUFFER_BYTES) return write_at(writer, writer->bytes - bytes, data, bytes, err);
    memcpy(writer->buffer + writer->buffered, data, bytes);
    writer->buffered += bytes;
    return true;
}

bool file_writer_rewrite(FileWriter *writer, uint64_t offset, const void *data, size_t bytes, Error *err) {
    CHECK(writer->fd >= 0 && bytes <= writer->bytes && offset <= writer->bytes - bytes);
    return flush(writer, err) && write_at(writer, offset, data, bytes, err);
}

bool file_writer_commit(FileWriter *writer, Error *err) {
    CHECK(writer->fd >= 0);
    if (!flush(writer, err)) return false;
    if (fsync(writer->fd) != 0) return file_error(err, writer->path, "make this file durable");
    int fd = writer->fd;
    writer->fd = -1;
    bool closed = close(fd) == 0, renamed = closed && rename(writer->aside, writer->path) == 0;
    if (!renamed) {
        file_error(err, writer->path, closed ? "rename the finished file to this name" : "write");
        unlink(writer->aside);
        return false;
    }
    free(writer->buffer);
    writer->buffer = NULL;
    return file_sync_directory_of(writer->path, err);
}

void file_writer_abort(FileWriter *writer) {
    if (writer->buffer && writer->fd >= 0) {
        close(writer->fd);
        unlink(writer->aside);
    }
    free(writer->buffer);
    writer->buffer = NULL;
    writer->fd = -1;
}

bool file_write(const char *path, const void *data, size_t bytes, Error *err) {
    FileWriter writer;
    bool ok = file_writer_open(&writer, path, err) && file_writer_write(&writer, data, bytes, err) &&
              file_writer_commit(&writer, err);
    file_writer_abort(&writer);
    return ok;
}
