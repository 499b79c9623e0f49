/* store_rate.c: see store_rate.h. */
#define _POSIX_C_SOURCE 200809L
#include "ckpt/store_rate.h"
#include "base/check.h"
#include "base/log.h"
#include <time.h>

void store_rate_open(StoreRate *rate, uint64_t bytes_per_second) {
    CHECK(pthread_mutex_init(&rate->lock, NULL) == 0);
    rate->bytes_per_second = bytes_per_second;
    rate->next = 0;
}

void store_rate_close(StoreRate *rate) {
    pthread_mutex_destroy(&rate->lock);
}

void store_sleep(double seconds, const atomic_bool *stop) {
    double end = log_seconds() + seconds, left;
    while ((left = end - log_seconds()) > 0 && !(stop && atomic_load(stop))) {
        double slice = left < 0.1 ? left : 0.1;
        struct timespec t = {0, (long)(slice * 1e9)};
        nanosleep(&t, NULL);
    }
}

size_t store_rate_take(StoreRate *rate, size_t wanted, const atomic_bool *stop) {
    CHECK(wanted > 0);
    if (!rate->bytes_per_second) return wanted;
    double per_second = (double)rate->bytes_per_second, burst = 0.125;
    size_t most = (size_t)(per_second * burst) + 1, taken = wanted < most ? wanted : most;
    pthread_mutex_lock(&rate->lock);
    double now = log_seconds();
    if (rate->next < now - burst) rate->next = now - burst;
    double wait = rate->next - now;
    rate->next += (double)taken / per_second;
    pthread_mutex_unlock(&rate->lock);
    if (wait > 0) store_sleep(wait, stop);
    return taken;
}
