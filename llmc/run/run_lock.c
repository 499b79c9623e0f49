/* run_lock.c: see run_lock.h. */
#define _DEFAULT_SOURCE
#include "run/run_lock.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* Is it a name that a FileWriter writes aside under? */
static bool is_aside(const char *name) {
    const char *at = strstr(name, ".tmp.");
    if (!at || at == name || !at[5]) return false;
    for (at += 5; *at; at++)
        if (!isdigit((unsigned char)*at)) return false;
    return true;
}

static void remove_leftovers(int fd) {
    int again = dup(fd);
    DIR *folder = again >= 0 ? fdopendir(again) : NULL;
    if (!folder) {
        if (again >= 0) close(again);
        return;
    }
    for (struct dirent *e; (e = readdir(folder));)
        if (is_aside(e->d_name)) unlinkat(fd, e->d_name, 0);
    closedir(folder);
}

bool run_lock_take(RunLock *lock, const char *directory, Error *err) {
    if (lock->fd >= 0) return true;
    lock->fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock->fd < 0) return true; /* not there yet, or not a folder: whoever needs it will say so */
    if (flock(lock->fd, LOCK_EX | LOCK_NB) != 0) {
        bool taken = errno == EWOULDBLOCK;
        run_lock_release(lock);
        return !taken || error_set(err,
                                   "%s: another process is training in this folder (wait for it, stop it, or "
                                   "give another --run)",
                                   directory);
    }
    remove_leftovers(lock->fd);
    return true;
}

void run_lock_release(RunLock *lock) {
    if (lock->fd >= 0) close(lock->fd);
    lock->fd = -1;
}
