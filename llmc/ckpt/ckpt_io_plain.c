/* ckpt_io_plain.c: the pread/pwrite body of ckpt_io.h: works everywhere, and is what the io_uring body falls back to.
 *
 * The wish for O_DIRECT is honoured here too: a segment is written once and read by no one but a restore, so the page
 * cache would only cost a copy and push out other files. What always holds: every call ends all or nothing as far as the
 * caller is told: short reads and writes go on, signals are not seen. */
#define _GNU_SOURCE       /* O_DIRECT, fallocate */
#define _FILE_OFFSET_BITS 64
#include "ckpt/ckpt_io_plain.h"
#include "base/check.h"
#include "base/file.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ZEROS_BYTES = 1 << 18, READ_BOUNCE_BYTES = 2 << 20, CALL_BYTES_MAX = 1 << 30 };

static void plain_close(CkptIo *io) {
    io->body = NULL;
}

static CkptFile *plain_open(CkptIo *io, const char *path, int flags, Error *err) {
    (void)io;
    int mode = O_CLOEXEC | (flags & CKPT_IO_CREATE ? O_CREAT : 0);
    mode |= !(flags & CKPT_IO_WRITE) ? O_RDONLY : flags & CKPT_IO_READ ? O_RDWR : O_WRONLY;
    bool aligned = flags & CKPT_IO_DIRECT, direct = aligned;
    int fd;
    for (;;) {
        fd = open(path, mode | (direct ? O_DIRECT : 0), 0666);
        if (fd >= 0 || (errno != EINTR && !(direct && errno == EINVAL))) break;
        if (errno == EINVAL) direct = false; /* tmpfs before Linux 6.6, and others */
    }
    if (fd < 0) {
        file_error(err, path, flags & CKPT_IO_WRITE ? "open to write" : "open to read");
        return NULL;
    }
    size_t length = strlen(path) + 1;
    CkptFile *file = malloc(sizeof *file + length);
    CHECK(file != NULL);
    *file = (CkptFile){.fd = fd, .aligned = aligned, .direct = direct, .path = (char *)(file + 1)};
    memcpy(file->path, path, length);
    return file;
}

static void plain_close_file(CkptIo *io, CkptFile *file) {
    (void)io;
    if (!file) return;
    close(file->fd);
    free(file->bounce);
    free(file);
}

static bool plain_size(CkptIo *io, CkptFile *file, uint64_t *bytes, Error *err) {
    (void)io;
    struct stat s;
    if (fstat(file->fd, &s) < 0) return file_error(err, file->path, "ask for its size");
    *bytes = (uint64_t)s.st_size;
    return true;
}

/* From here on this file goes through the page cache. */
static bool drop_direct(CkptFile *file, Error *err) {
    int mode = fcntl(file->fd, F_GETFL);
    if (mode < 0 || fcntl(file->fd, F_SETFL, mode & ~O_DIRECT) < 0)
        return file_error(err, file->path, "go through the page cache");
    file->direct = false;
    return true;
}

/* Where fallocate is not known (some network file systems): zeros behind what is there. */
static bool allocate_by_writing(CkptFile *file, uint64_t from, uint64_t bytes) {
    void *zeros;
    if (posix_memalign(&zeros, CKPT_IO_ALIGN, ZEROS_BYTES)) return false;
    memset(zeros, 0, ZEROS_BYTES);
    bool ok = true;
    while (ok && from < bytes) {
        size_t part = ZEROS_BYTES - (size_t)(from % CKPT_IO_ALIGN);
        if (part > bytes - from) part = (size_t)(bytes - from);
        ssize_t n = pwrite(file->fd, zeros, part, (off_t)from);
        if (n > 0) from += (uint64_t)n;
        ok = n > 0 || errno == EINTR;
    }
    free(zeros);
    return ok;
}

static bool plain_allocate(CkptIo *io, CkptFile *file, uint64_t bytes, Error *err) {
    (void)io;
    struct stat s;
    int result;
    if (fstat(file->fd, &s) < 0) return file_error(err, file->path, "ask for its size");
    uint64_t before = (uint64_t)s.st_size;
    while ((result = fallocate(file->fd, 0, 0, (off_t)bytes)) < 0 && errno == EINTR) {
    }
    if (result == 0) return true;
    if (errno == EOPNOTSUPP && (!file->direct || drop_direct(file, err)) &&
        allocate_by_writing(file, before, bytes))
        return true;
    int error = errno;
    /* ext4 keeps what it had already allocated when the disk became full, as blocks behind the end */
    if (bytes > before && ftruncate(file->fd, (off_t)before) < 0 && error != ENOSPC) error = errno;
    errno = error;
    return error_set(
        err, "%s: cannot allocate %llu bytes: %s%s", file->path, (unsigned long long)bytes, strerror(error),
        error == ENOSPC || error == EDQUOT ? " (free some space or put the checkpoints elsewhere)"
        : error == EFBIG                   ? " (see 'ulimit -f')"
                                           : "");
}

void ckpt_io_plain_check_aligned(const CkptFile *file, const void *data, size_t bytes, uint64_t offset) {
    if (!file->aligned) return;
    CHECK_OP((uintptr_t)data % CKPT_IO_ALIGN, ==, 0);
    CHECK_OP(bytes % CKPT_IO_ALIGN, ==, 0);
    CHECK_OP(offset % CKPT_IO_ALIGN, ==, 0);
}

bool ckpt_io_plain_write(CkptFile *file, const void *data, size_t bytes, uint64_t offset, Error *err) {
    const char *from = data;
    while (bytes) {
        ssize_t n = pwrite(file->fd, from, bytes < CALL_BYTES_MAX ? bytes : CALL_BYTES_MAX, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EINVAL && file->direct) {
            if (!drop_direct(file, err)) return false;
            continue;
        }
        if (n == 0) errno = ENOSPC;
        if (n <= 0) return file_error(err, file->path, "write");
        from += n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return true;
}

static bool plain_write(CkptIo *io, CkptFile *file, const void *data, size_t bytes, uint64_t offset,
                        Error *err) {
    (void)io;
    ckpt_io_plain_check_aligned(file, data, bytes, offset);
    return ckpt_io_plain_write(file, data, bytes, offset, err);
}

static bool plain_wait(CkptIo *io, unsigned pending, Error *err) {
    (void)io, (void)pending, (void)err;
    return true;
}

/* As many of `bytes` bytes as there are before the end of the file. */
static bool read_some(CkptFile *file, void *data, size_t bytes, uint64_t offset, size_t *got, Error *err) {
    char *to = data;
    *got = 0;
    while (*got < bytes) {
        size_t part = bytes - *got < CALL_BYTES_MAX ? bytes - *got : CALL_BYTES_MAX;
        ssize_t n = pread(file->fd, to + *got, part, (off_t)(offset + *got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EINVAL && file->direct) {
            if (!drop_direct(file, err)) return false;
            continue;
        }
        if (n < 0) return file_error(err, file->path, "read");
        if (n == 0) break;
        *got += (size_t)n;
        /* what follows a short direct read is the end of the file, or is not aligned any more */
        if (file->direct && n % CKPT_IO_ALIGN) break;
    }
    return true;
}

static bool cut_off(CkptFile *file, size_t bytes, uint64_t offset, uint64_t end, Error *err) {
    return error_set(err, "%s: ends at byte %llu, but %zu bytes at %llu are needed (it was cut off)",
                     file->path, (unsigned long long)end, bytes, (unsigned long long)offset);
}

static bool make_bounce(CkptFile *file, Error *err) {
    if (file->bounce || !posix_memalign(&file->bounce, CKPT_IO_ALIGN, READ_BOUNCE_BYTES)) return true;
    file->bounce = NULL;
    return error_set(err, "%s: no memory to read it", file->path);
}

/* Whole blocks into file->bounce, from there to data. */
static bool read_bounced(CkptFile *file, char *data, size_t bytes, uint64_t offset, Error *err) {
    if (!make_bounce(file, err)) return false;
    for (size_t done = 0; done < bytes;) {
        uint64_t at = offset + done, from = at - at % CKPT_IO_ALIGN;
        size_t skip = (size_t)(at - from), got, part;
        size_t span = (skip + (bytes - done) + CKPT_IO_ALIGN - 1) & ~(size_t)(CKPT_IO_ALIGN - 1);
        if (!read_some(file, file->bounce, span < READ_BOUNCE_BYTES ? span : READ_BOUNCE_BYTES, from, &got,
                       err))
            return false;
        if (got <= skip) return cut_off(file, bytes, offset, from + got, err);
        part = got - skip < bytes - done ? got - skip : bytes - done;
        memcpy(data + done, (char *)file->bounce + skip, part);
        done += part;
    }
    return true;
}

/* O_DIRECT takes whole blocks into aligned memory. Where memory and file are aligned alike, as they are where a run goes on
 * with the layout that it was saved with, all but the ends goes straight there, and the blocks of the ends come along in the
 * same request: on a busy disk a small one waits as long as a large one. */
static bool read_direct(CkptFile *file, char *data, size_t bytes, uint64_t offset, Error *err) {
    size_t skip = (size_t)(offset % CKPT_IO_ALIGN), head = skip ? CKPT_IO_ALIGN - skip : 0;
    if ((uintptr_t)data % CKPT_IO_ALIGN != skip || bytes < head + CKPT_IO_ALIGN || bytes >= CALL_BYTES_MAX)
        return read_bounced(file, data, bytes, offset, err);
    size_t tail = (bytes - head) % CKPT_IO_ALIGN, middle = bytes - head - tail;
    if (!make_bounce(file, err)) return false;
    char *first = file->bounce, *last = first + CKPT_IO_ALIGN;
    struct iovec parts[3], *part = parts;
    if (head) *part++ = (struct iovec){first, CKPT_IO_ALIGN};
    *part++ = (struct iovec){data + head, middle};
    if (tail) *part++ = (struct iovec){last, CKPT_IO_ALIGN};
    ssize_t n = preadv(file->fd, parts, (int)(part - parts), (off_t)(offset - skip));
    if (n < (ssize_t)(skip + bytes)) /* an interruption, an end or an error: the long way tells which */
        return read_bounced(file, data, bytes, offset, err);
    memcpy(data, first + skip, head);
    memcpy(data + head + middle, last, tail);
    return true;
}

static bool plain_read(CkptIo *io, CkptFile *file, void *data, size_t bytes, uint64_t offset, Error *err) {
    (void)io;
    size_t got;
    if (file->direct) return read_direct(file, data, bytes, offset, err);
    if (!read_some(file, data, bytes, offset, &got, err)) return false;
    return got == bytes || cut_off(file, bytes, offset, offset + got, err);
}

static bool plain_sync(CkptIo *io, CkptFile *file, Error *err) {
    (void)io;
    int result;
    while ((result = fdatasync(file->fd)) < 0 && errno == EINTR) {
    }
    return result == 0 || file_error(err, file->path, "make its data durable");
}

static bool plain_rename(CkptIo *io, const char *from, const char *to, Error *err) {
    (void)io;
    return rename(from, to) == 0 || file_error(err, from, "rename");
}

static bool plain_remove(CkptIo *io, const char *path, Error *err) {
    (void)io;
    return unlink(path) == 0 || errno == ENOENT || file_error(err, path, "remove");
}

static bool plain_sync_directory(CkptIo *io, const char *path, Error *err) {
    (void)io;
    int result, fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return file_error(err, path, "open this folder");
    while ((result = fsync(fd)) < 0 && errno == EINTR) {
    }
    /* EINVAL: a file system whose folders need no fsync */
    bool ok =
        result == 0 || errno == EINVAL || file_error(err, path, "make the names in this folder durable");
    close(fd);
    return ok;
}

static bool plain_make_directory(CkptIo *io, const char *path, Error *err) {
    char above[FILE_PATH_BYTES];
    Error ignored;
    size_t length = strlen(path);
    if (!file_make_directory(path, err)) return false; /* which refuses what does not fit */
    memcpy(above, path, length + 1);
    for (bool last = true;; last = false) {
        char *slash = strrchr(above, '/');
        const char *parent = !slash ? "." : slash == above ? "/" : above;
        if (slash) *slash = 0;
        /* folders further up may be there for long, and not ours to open */
        if (!plain_sync_directory(io, parent, last ? err : &ignored) && last) return false;
        if (!slash || slash == above) return true;
    }
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool plain_list(CkptIo *io, const char *path, void (*each)(void *ctx, const char *name), void *ctx,
                       Error *err) {
    (void)io;
    DIR *directory = opendir(path);
    if (!directory) return errno == ENOENT || file_error(err, path, "list this folder");
    char **names = NULL;
    size_t count = 0, room = 0;
    bool ok = true;
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(directory);
        if (!entry) {
            ok = errno == 0 || file_error(err, path, "list this folder");
            break;
        }
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (count == room) {
            room = room ? 2 * room : 32;
            names = realloc(names, room * sizeof *names);
            CHECK(names != NULL);
        }
        names[count] = strdup(entry->d_name);
        CHECK(names[count++] != NULL);
    }
    closedir(directory);
    if (count) qsort(names, count, sizeof *names, by_name);
    for (size_t i = 0; i < count; i++) {
        if (ok) each(ctx, names[i]);
        free(names[i]);
    }
    free(names);
    return ok;
}

static bool plain_free_bytes(CkptIo *io, const char *path, uint64_t *bytes, Error *err) {
    (void)io;
    struct statvfs s;
    if (statvfs(path, &s) < 0) return file_error(err, path, "ask how much space is free");
    *bytes = (uint64_t)s.f_bavail * s.f_frsize;
    return true;
}

static CkptFile *plain_lock(CkptIo *io, const char *path, bool exclusive, bool *busy, Error *err) {
    struct stat held, named;
    *busy = false;
    for (;;) {
        int result;
        CkptFile *file = plain_open(io, path, CKPT_IO_READ | CKPT_IO_WRITE | CKPT_IO_CREATE, err);
        if (!file) return NULL;
        while ((result = flock(file->fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB)) < 0 && errno == EINTR) {
        }
        *busy = result < 0 && errno == EWOULDBLOCK;
        if (result < 0) {
            file_error(err, path, "lock");
        } else if (fstat(file->fd, &held) < 0) {
            file_error(err, path, "ask what was locked");
        } else if (stat(path, &named) == 0 && held.st_dev == named.st_dev && held.st_ino == named.st_ino) {
            return file;
        } else {
            plain_close_file(io, file);
            continue; /* removed by who held it before */
        }
        plain_close_file(io, file);
        return NULL;
    }
}

const CkptIoBody ckpt_io_plain_body = {
    .name = "pwrite",
    .close = plain_close,
    .open = plain_open,
    .close_file = plain_close_file,
    .size = plain_size,
    .allocate = plain_allocate,
    .write = plain_write,
    .wait = plain_wait,
    .read = plain_read,
    .sync = plain_sync,
    .rename = plain_rename,
    .remove = plain_remove,
    .make_directory = plain_make_directory,
    .sync_directory = plain_sync_directory,
    .list = plain_list,
    .free_bytes = plain_free_bytes,
    .lock = plain_lock,
};

bool ckpt_io_plain_open(CkptIo *io, Error *err) {
    (void)err;
    *io = (CkptIo){&ckpt_io_plain_body, NULL};
    return true;
}
