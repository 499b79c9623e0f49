/* store_tool.c: the store from the command line, for the tests that need a server and for trying one out by hand.
 *
 *   store_tool PLACE check
 *   store_tool PLACE put KEY FILE [RESUME_FILE]      store_tool PLACE put-new KEY FILE   (only if absent)
 *   store_tool PLACE get KEY FILE [OFFSET BYTES]     store_tool PLACE list [PREFIX]
 *   store_tool PLACE stat KEY                        store_tool PLACE delete KEY
 *   store_tool PLACE orphans PREFIX AGE_SECONDS
 * Settings from the environment: STORE_RATE (bytes/s), STORE_TIMEOUT, STORE_BACKOFF (seconds), STORE_ATTEMPTS,
 * STORE_PART (bytes), STORE_PARTS. Exit 0 done, 1 failed (one line on stderr), 2 usage. */
#define _XOPEN_SOURCE     700
#define _FILE_OFFSET_BITS 64
#include "base/file.h"
#include "base/log.h"
#include "ckpt/store.h"
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_bool stop;

static void on_signal(int signal) {
    (void)signal;
    atomic_store(&stop, true);
}

static double setting(const char *name) {
    const char *text = getenv(name);
    return text ? strtod(text, NULL) : 0;
}

static bool read_fd(void *ctx, void *data, size_t bytes, uint64_t offset, Error *err) {
    for (size_t got = 0; got < bytes;) {
        ssize_t n = pread(*(int *)ctx, (char *)data + got, bytes - got, (off_t)(offset + got));
        if (n <= 0) return error_set(err, "the file to be put ends before byte %" PRIu64, offset + bytes);
        got += (size_t)n;
    }
    return true;
}

static bool put(Store *store, int argc, char **argv, Error *err) {
    struct stat s;
    bool ok = false;
    int fd = open(argv[1], O_RDONLY);
    if (fd < 0 || fstat(fd, &s) != 0) return file_error(err, argv[1], "open");
    double start = log_seconds();
    ok = store_put(store, argv[0], (uint64_t)s.st_size, read_fd, &fd, argc > 2 ? argv[2] : NULL, &stop, NULL,
                   err);
    double seconds = log_seconds() - start;
    if (ok) printf("%.3f s, %.0f MB/s\n", seconds, (double)s.st_size / seconds / 1e6);
    close(fd);
    return ok;
}

static bool put_new(Store *store, char **argv, Error *err) {
    char *data = NULL;
    size_t bytes;
    bool existed = false, ok;
    if (!file_read(argv[1], 64 << 20, &data, &bytes, err)) return false;
    ok = store_put_small(store, argv[0], data, bytes, true, &existed, err);
    puts(existed ? "existed" : ok ? "put" : "failed");
    free(data);
    return ok || existed;
}

static bool get(Store *store, int argc, char **argv, Error *err) {
    uint64_t bytes = 0, offset = argc > 3 ? strtoull(argv[2], NULL, 10) : 0;
    bool found = true;
    if (argc > 3)
        bytes = strtoull(argv[3], NULL, 10);
    else if (!store_stat(store, argv[0], &bytes, &found, err))
        return false;
    if (!found) return error_set(err, "there is no '%s'", argv[0]);
    char *data = malloc(bytes ? bytes : 1);
    if (!data) return error_set(err, "no memory for %" PRIu64 " bytes", bytes);
    memset(data, 0xff, bytes ? bytes : 1);
    double start = log_seconds();
    bool ok = store_get(store, argv[0], data, bytes, offset, err);
    double seconds = log_seconds() - start;
    ok = ok && file_write(argv[1], data, bytes, err);
    if (ok) printf("%.3f s, %.0f MB/s\n", seconds, (double)bytes / seconds / 1e6);
    free(data);
    return ok;
}

static void print_item(void *ctx, const char *key, uint64_t bytes) {
    (void)ctx;
    printf("%" PRIu64 " %s\n", bytes, key);
}

/* -1: no such command, or not so many arguments. */
static int run(Store *store, const char *command, int argc, char **argv, Error *err) {
    bool found;
    int count = 0;
    uint64_t bytes;
    if (!strcmp(command, "check") && argc == 0) return store_check(store, err);
    if (!strcmp(command, "put") && (argc == 2 || argc == 3)) return put(store, argc, argv, err);
    if (!strcmp(command, "put-new") && argc == 2) return put_new(store, argv, err);
    if (!strcmp(command, "get") && (argc == 2 || argc == 4)) return get(store, argc, argv, err);
    if (!strcmp(command, "delete") && argc == 1) return store_delete(store, argv[0], err);
    if (!strcmp(command, "list") && argc <= 1)
        return store_list(store, argc ? argv[0] : "", print_item, NULL, err);
    if (!strcmp(command, "stat") && argc == 1) {
        if (!store_stat(store, argv[0], &bytes, &found, err)) return 0;
        if (found) printf("%" PRIu64 "\n", bytes);
        puts(found ? "found" : "absent");
        return 1;
    }
    if (!strcmp(command, "orphans") && argc == 2) {
        bool ok = store_abort_orphans(store, argv[0], strtod(argv[1], NULL), &count, err);
        printf("%d\n", count);
        return ok;
    }
    return -1;
}

int main(int argc, char **argv) {
    Store *store;
    Error err = {""};
    StoreConfig config = {.bytes_per_second_max = (uint64_t)setting("STORE_RATE"),
                          .timeout_seconds = setting("STORE_TIMEOUT"),
                          .attempts_max = (int)setting("STORE_ATTEMPTS"),
                          .backoff_seconds = setting("STORE_BACKOFF"),
                          .part_bytes = (size_t)setting("STORE_PART"),
                          .parts_in_flight = (int)setting("STORE_PARTS")};
    if (argc < 3) {
        fprintf(stderr, "usage: store_tool PLACE check|put|put-new|get|list|stat|delete|orphans ...\n");
        return EXIT_USAGE;
    }
    signal(SIGTERM, on_signal);
    int result = 0;
    if (store_open(&store, argv[1], &config, &err)) {
        result = run(store, argv[2], argc - 3, argv + 3, &err);
        store_close(store);
    }
    if (result < 0) fprintf(stderr, "store_tool: '%s' is no command, or has other arguments\n", argv[2]);
    if (!result) fprintf(stderr, "store_tool: %s\n", err.text);
    return result < 0 ? EXIT_USAGE : result ? EXIT_DONE : EXIT_FAILED;
}
