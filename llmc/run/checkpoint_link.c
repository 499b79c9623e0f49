/* checkpoint_link.c: a run whose checkpoints are staged elsewhere (--staging): the link RUN/checkpoints leads there, so that
 * whatever is given the run folder finds them. See checkpoint.h. */
#define _DEFAULT_SOURCE
#include "base/file.h"
#include "base/log.h"
#include "run/checkpoint.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool is_same(const char *a, const char *b) {
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* What the link says; "": it is none. */
static void read_link(const char *path, char target[FILE_PATH_BYTES]) {
    ssize_t n = readlink(path, target, FILE_PATH_BYTES - 1);
    target[n > 0 ? n : 0] = 0;
}

bool checkpoint_check_place(const char *run, const char *staging, Error *err) {
    char here[FILE_PATH_BYTES], manifest[FILE_PATH_BYTES], target[FILE_PATH_BYTES];
    if (!file_join(here, run, CHECKPOINT_FOLDER, err) || !file_join(manifest, here, "manifest", err))
        return false;
    if (!*staging) {
        read_link(here, target);
        return !*target || file_is_directory(here) ||
               error_set(err, "%s leads to %s, which is not there (give --staging, or remove the link)", here,
                         target);
    }
    return is_same(here, staging) || !file_is_directory(manifest) ||
           error_set(
               err,
               "%s holds checkpoints of this run, and --staging is %s (leave --staging out, or move them "
               "there; --resume=never starts anew)",
               here, staging);
}

/* Aside and renamed, in place of another link or an empty folder. */
static bool make_link(const char *here, const char *target) {
    char aside[FILE_PATH_BYTES + 8];
    snprintf(aside, sizeof aside, "%s.new", here);
    if (rmdir(here) && errno != ENOENT && errno != ENOTDIR) return false;
    if (unlink(aside) && errno != ENOENT) return false;
    return !symlink(target, aside) && !rename(aside, here);
}

bool checkpoint_link(const char *run, const char *staging, Error *err) {
    char here[FILE_PATH_BYTES];
    if (!file_join(here, run, CHECKPOINT_FOLDER, err) || !file_make_directory(run, err)) return false;
    if (!*staging || is_same(here, staging)) return true;
    char *target = realpath(staging, NULL);
    if (!target) return file_error(err, staging, "find");
    if (!make_link(here, target))
        log_warn("%s: cannot be made a link to %s: %s; give commands %s instead of %s", here, target,
                 strerror(errno), target, run);
    free(target);
    return true;
}
