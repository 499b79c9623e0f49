/* shm_wait.c: see shm_wait.h. */
#define _GNU_SOURCE
#include "comm/shm_wait.h"
#include "base/log.h"
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    SPINS = 4000,       /* looks at the word before sleeping, about 50 us */
    SPINS_CROWDED = 60, /* the same where each look is preceded by giving way */
    SLEEP_NANOSECONDS = 10 * 1000 * 1000
};

/* Either this sees the sleeper, or the sleeper, which counts itself before it looks, sees the new value: so all four are
 * sequentially consistent. */
static void wake(ShmWord *word) {
    if (atomic_load(&word->sleepers)) syscall(SYS_futex, &word->value, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void shm_word_set(ShmWord *word, uint32_t value) {
    atomic_store(&word->value, value);
    wake(word);
}

void shm_word_add(ShmWord *word, uint32_t n) {
    atomic_fetch_add(&word->value, n);
    wake(word);
}

static bool reached(ShmWord *word, uint32_t value) {
    return (int32_t)(atomic_load_explicit(&word->value, memory_order_acquire) - value) >= 0;
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void sleep_on(ShmWord *word, uint32_t seen) {
    const struct timespec most = {0, SLEEP_NANOSECONDS};
    atomic_fetch_add(&word->sleepers, 1);
    /* The kernel, too, sleeps only if the value is still the one seen. */
    if (atomic_load(&word->value) == seen) syscall(SYS_futex, &word->value, FUTEX_WAIT, seen, &most, NULL, 0);
    atomic_fetch_sub(&word->sleepers, 1);
}

ShmWaited shm_wait(CommGroup *group, bool crowded, ShmWord *word, uint32_t value, Error *err) {
    if (reached(word, value)) return SHM_READY;
    for (int i = 0; i < (crowded ? SPINS_CROWDED : SPINS); i++) {
        if (crowded)
            sched_yield();
        else
            relax();
        if (reached(word, value)) return SHM_READY;
    }
    double changed = log_seconds();
    uint32_t last = atomic_load_explicit(&word->value, memory_order_relaxed);
    for (;;) {
        uint32_t seen = atomic_load_explicit(&word->value, memory_order_acquire);
        if ((int32_t)(seen - value) >= 0) return SHM_READY;
        if (comm_group_failed(group, err)) return SHM_FAILED;
        double now = log_seconds();
        if (seen != last) {
            last = seen;
            changed = now;
        } else if (now - changed > group->timeout_seconds) {
            return SHM_LATE;
        }
        sleep_on(word, seen);
    }
}
