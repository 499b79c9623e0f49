/* write_log.c: a block device that remembers: a FUSE file system with two files, `disk`, an image to be put under a loop
 * device, and `mark`, where a test says what it was promised. Every write and every flush of the disk, and every mark,
 * goes into a log in the order of arrival; images.c makes disks from it that a power cut may leave.
 *
 *   write_log IMAGE LOG FOLDER      serves in the foreground until FOLDER is unmounted
 *
 * What always holds: a write is in the log before the kernel is told that it is done. */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include "write_log.h"
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int image_fd;
static FILE *log_file;
static off_t image_bytes;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static int add(uint32_t kind, const char *data, size_t bytes, off_t offset) {
    LogEntry entry = {kind, (uint32_t)bytes, (uint64_t)offset};
    int result = 0;
    pthread_mutex_lock(&mutex);
    if (fwrite(&entry, sizeof entry, 1, log_file) != 1 ||
        (bytes && fwrite(data, 1, bytes, log_file) != bytes))
        result = -EIO;
    if (result == 0 && kind == LOG_WRITE && pwrite(image_fd, data, bytes, offset) != (ssize_t)bytes)
        result = -EIO;
    pthread_mutex_unlock(&mutex);
    return result;
}

static int lab_getattr(const char *path, struct stat *s, struct fuse_file_info *file) {
    (void)file;
    memset(s, 0, sizeof *s);
    s->st_nlink = 1;
    s->st_mode = S_IFREG | 0600;
    if (!strcmp(path, "/"))
        s->st_mode = S_IFDIR | 0700;
    else if (!strcmp(path, "/disk"))
        s->st_size = image_bytes;
    else if (strcmp(path, "/mark") != 0)
        return -ENOENT;
    return 0;
}

static int lab_open(const char *path, struct fuse_file_info *file) {
    (void)path;
    file->direct_io = !strcmp(path, "/mark");
    return 0;
}

static int lab_read(const char *path, char *data, size_t bytes, off_t offset, struct fuse_file_info *file) {
    (void)file;
    if (strcmp(path, "/disk") != 0) return 0;
    ssize_t n = pread(image_fd, data, bytes, offset);
    return n < 0 ? -errno : (int)n;
}

static int lab_write(const char *path, const char *data, size_t bytes, off_t offset,
                     struct fuse_file_info *file) {
    (void)file;
    int result = add(!strcmp(path, "/disk") ? LOG_WRITE : LOG_MARK, data, bytes, offset);
    return result < 0 ? result : (int)bytes;
}

static int lab_fsync(const char *path, int data_only, struct fuse_file_info *file) {
    (void)data_only, (void)file;
    return strcmp(path, "/disk") != 0 ? 0 : add(LOG_FLUSH, NULL, 0, 0);
}

int main(int argc, char **argv) {
    static const struct fuse_operations operations = {
        .getattr = lab_getattr, .open = lab_open, .read = lab_read, .write = lab_write, .fsync = lab_fsync};
    if (argc != 4) return fprintf(stderr, "usage: write_log IMAGE LOG FOLDER\n"), 2;
    image_fd = open(argv[1], O_RDWR);
    log_file = fopen(argv[2], "wb");
    if (image_fd < 0 || !log_file) return perror(image_fd < 0 ? argv[1] : argv[2]), 1;
    image_bytes = lseek(image_fd, 0, SEEK_END);
    char *arguments[] = {argv[0], (char[]){"-f"}, argv[3], NULL};
    int result = fuse_main(3, arguments, &operations, NULL);
    return fclose(log_file) == 0 && result == 0 ? 0 : 1;
}
