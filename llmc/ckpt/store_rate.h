/* store_rate.h: a cap on bytes per second that several threads share (a token bucket of an eighth of a second). */
#ifndef LLMC_STORE_RATE_H
#define LLMC_STORE_RATE_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    pthread_mutex_t lock;
    uint64_t bytes_per_second; /* 0: no cap */
    double next;               /* when what was taken so far is paid for */
} StoreRate;

void store_rate_open(StoreRate *rate, uint64_t bytes_per_second);
void store_rate_close(StoreRate *rate);
/* How many of `wanted` bytes (>= 1) may go now: at least 1, after sleeping as long as the cap demands (less if *stop,
 * which may be NULL). */
size_t store_rate_take(StoreRate *rate, size_t wanted, const atomic_bool *stop);

/* Sleeps, in slices, so that *stop (may be NULL) ends it soon. */
void store_sleep(double seconds, const atomic_bool *stop);
#endif
