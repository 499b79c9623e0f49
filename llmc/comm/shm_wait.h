/* shm_wait.h: waiting for a word in shared memory.
 *
 * A waiter spins briefly, then sleeps in the kernel until the word changes, 10 ms at a time; with more ranks than
 * processors it gives way while it spins. Whoever changes a word pays for a wake-up only if somebody sleeps on it. */
#ifndef LLMC_COMM_SHM_WAIT_H
#define LLMC_COMM_SHM_WAIT_H
#include "comm/backend.h"
#include <stdatomic.h>

/* In shared memory, zero at first. value only grows (modulo 2^32). */
typedef struct {
    _Atomic uint32_t value, sleepers;
} ShmWord;

typedef enum {
    SHM_READY,
    SHM_FAILED, /* some rank failed: err says which and why */
    SHM_LATE    /* the word has not changed for timeout_seconds; err is not set */
} ShmWaited;

/* Makes what was written before visible to those who wait for the word, and wakes them. */
void shm_word_set(ShmWord *word, uint32_t value);
void shm_word_add(ShmWord *word, uint32_t n);

/* Until the word is at least `value`. crowded: there are more ranks here than processors. */
ShmWaited shm_wait(CommGroup *group, bool crowded, ShmWord *word, uint32_t value, Error *err);
#endif
