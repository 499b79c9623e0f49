/* check.h: CHECK for what only a bug can break: always on, prints the values, aborts.
 * What the world can break (a file, a flag, a peer) is an Error (error.h), never a CHECK. */
#ifndef LLMC_CHECK_H
#define LLMC_CHECK_H
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s: CHECK(%s) failed\n", __FILE__, __LINE__, __func__, #condition);      \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

/* CHECK_OP(a, <=, b) prints both values (as integers) when it fails. */
#define CHECK_OP(a, op, b)                                                                                   \
    do {                                                                                                     \
        long long check_a = (long long)(a), check_b = (long long)(b);                                        \
        if (!(check_a op check_b)) {                                                                         \
            fprintf(stderr, "%s:%d: %s: CHECK(%s %s %s) failed: %lld, %lld\n", __FILE__, __LINE__, __func__, \
                    #a, #op, #b, check_a, check_b);                                                          \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)
#endif
