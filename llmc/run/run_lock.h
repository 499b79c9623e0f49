/* run_lock.h: one training process at a time in a run folder.
 *
 * Two that write the same metrics and states would each look healthy and leave a mixture. The lock goes with the
 * process, however it ends; there is no file to be removed. Where a file system has no locks, nothing is locked. */
#ifndef LLMC_RUN_LOCK_H
#define LLMC_RUN_LOCK_H
#include "base/error.h"

typedef struct {
    int fd; /* -1: not taken */
} RunLock;

/* Takes the folder, if it is there and not taken yet, and removes what a killed process left half-written in it
 * (NAME.tmp.PID). False if another process has it. */
bool run_lock_take(RunLock *lock, const char *directory, Error *err);
void run_lock_release(RunLock *lock);
#endif
