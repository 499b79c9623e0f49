/* group.c: what every backend needs: the words for a fault, and the arithmetic of a reduction. */
#define _POSIX_C_SOURCE 200809L
#include "base/check.h"
#include "base/log.h"
#include "comm/backend.h"
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { DOING_BYTES = 128 };

/* How long a fault waits for the control plane to name its cause. A death is known there within a few ms, a stop when a
 * silence has lasted. */
static const double CAUSE_SECONDS = 0.1;

static const char *operation_name(uint32_t operation) {
    static const char *const names[] = {
        [OPERATION_ALL_REDUCE] = "all-reduce",
        [OPERATION_REDUCE_SCATTER] = "reduce-scatter",
        [OPERATION_ALL_GATHER] = "all-gather",
        [OPERATION_BROADCAST] = "broadcast",
        [OPERATION_SEND] = "send",
        [OPERATION_RECV] = "receive",
        [OPERATION_BARRIER] = "barrier",
    };
    if (operation < sizeof names / sizeof *names && names[operation]) return names[operation];
    return "unknown operation";
}

/* "all-reduce 17 of group 3, step 5" */
static const char *doing(const CommGroup *group, char out[DOING_BYTES]) {
    const CommHeader *h = &group->header;
    char of_group[32] = "";
    if (group->id) snprintf(of_group, sizeof of_group, " of group %u", (unsigned)group->id);
    if (!h->operation)
        snprintf(out, DOING_BYTES, "opening%s", of_group);
    else
        snprintf(out, DOING_BYTES, "%s %llu%s, step %lld", operation_name(h->operation),
                 (unsigned long long)h->sequence, of_group, (long long)group->step);
    return out;
}

const char *comm_group_host(const CommGroup *group, int rank) {
    CHECK(rank >= 0 && rank < group->size);
    return control_host(group->control, group->world[rank]);
}

/* "rank 3 (host)", always by the rank in the world, which is what a person launched. */
static const char *who(const CommGroup *group, int rank, char out[DOING_BYTES]) {
    snprintf(out, DOING_BYTES, "rank %d (%s)", group->world[rank], comm_group_host(group, rank));
    return out;
}

bool comm_group_failed(CommGroup *group, Error *err) {
    if (!control_failed(group->control, NULL)) return false;
    if (!err) return true;
    Error first;
    char me[DOING_BYTES], what[DOING_BYTES];
    control_failed(group->control, &first);
    who(group, group->rank, me);
    if (!strncmp(first.text, me, strlen(me)) && strstr(first.text, " step ")) {
        *err = first; /* it is about this rank and says what it did */
        return true;
    }
    error_set(err, "%.500s; %s was in %s", first.text, me, doing(group, what));
    return true;
}

bool comm_group_fault(CommGroup *group, int peer, const char *what, Error *err) {
    double begun = log_seconds();
    for (double now = begun; now - begun < CAUSE_SECONDS ||
                             (control_doubts(group->control) && now - begun < group->timeout_seconds);
         now = log_seconds()) {
        if (comm_group_failed(group, err)) return false;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    char me[DOING_BYTES], them[DOING_BYTES], where[DOING_BYTES];
    Error reason;
    who(group, group->rank, me);
    doing(group, where);
    char behind[DOING_BYTES + 64] = "";
    int last = control_laggard(group->control), world = group->world[group->rank];
    if (last >= 0 && last != world)
        snprintf(behind, sizeof behind, "; rank %d (%s) is behind all others", last,
                 control_host(group->control, last));
    if (peer >= 0)
        error_set(&reason, "%s: %s, with %s: %s%s", me, where, who(group, peer, them), what, behind);
    else
        error_set(&reason, "%s: %s: %s%s", me, where, what, behind);
    control_abort(group->control, reason.text);
    comm_group_failed(group, err);
    return false;
}

static const char *type_name(uint32_t type) {
    static const char *const names[] = {"fp32", "bf16", "int32", "uint8"};
    return type < sizeof names / sizeof *names ? names[type] : "unknown type";
}

/* "all-reduce 17 of 4000 bytes fp32 sum" */
static void describe_header(const CommHeader *h, char out[DOING_BYTES]) {
    int n = snprintf(out, DOING_BYTES, "%s %llu of %llu bytes", operation_name(h->operation),
                     (unsigned long long)h->sequence, (unsigned long long)h->bytes);
    bool typed = h->operation >= OPERATION_ALL_REDUCE && h->operation <= OPERATION_ALL_GATHER;
    if (typed) n += snprintf(out + n, (size_t)(DOING_BYTES - n), " %s", type_name(h->type));
    if (typed && h->operation != OPERATION_ALL_GATHER)
        n += snprintf(out + n, (size_t)(DOING_BYTES - n), " %s", h->op == COMM_SUM ? "sum" : "maximum");
    if (h->operation == OPERATION_BROADCAST)
        snprintf(out + n, (size_t)(DOING_BYTES - n), " from %llu", (unsigned long long)h->detail);
}

/* The field that differs, in words. */
static const char *difference(const CommHeader *a, const CommHeader *b) {
    bool message = a->operation >= OPERATION_SEND && a->operation <= OPERATION_RECV &&
                   b->operation >= OPERATION_SEND && b->operation <= OPERATION_RECV;
    if (a->group != b->group) return "group";
    if (a->operation != b->operation && !message) return "operation";
    if (a->type != b->type) return "type";
    if (a->bytes != b->bytes) return "count";
    if (a->op != b->op) return "reduction";
    if (a->sequence != b->sequence) return "sequence number";
    return a->operation == OPERATION_BROADCAST ? "root" : "shares of the ranks";
}

bool comm_group_mismatch(CommGroup *group, int peer, const CommHeader *theirs, Error *err) {
    if (comm_group_failed(group, err)) return false;
    char me[DOING_BYTES], them[DOING_BYTES], mine[DOING_BYTES], other[DOING_BYTES], of_group[32] = "";
    Error reason;
    describe_header(&group->header, mine);
    describe_header(theirs, other);
    if (group->id) snprintf(of_group, sizeof of_group, ", group %u", (unsigned)group->id);
    error_set(&reason, "ranks differ in %s at step %lld%s: %s is in %s, %s in %s",
              difference(&group->header, theirs), (long long)group->step, of_group,
              who(group, group->rank, me), mine, who(group, peer, them), other);
    control_abort(group->control, reason.text);
    control_failed(group->control, err);
    return false;
}

void comm_share_evenly(size_t count, int n, size_t *offsets) {
    size_t each = count / (size_t)n, more = count % (size_t)n;
    for (size_t r = 0; r <= (size_t)n; r++) offsets[r] = each * r + (r < more ? r : more);
}

/* --- reductions: plain loops that compilers turn into vector code --- */

static inline float bf16_to_float(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint16_t bf16_from_float(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (bits >> 16) | 0x40;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

/* NaN wins: a maximum that hides one would hide a fault. */
static inline float max_float(float a, float b) {
    return b > a || b != b ? b : a;
}

static void reduce_float(float *restrict y, const float *restrict x, size_t n, CommOp op) {
    if (op == COMM_SUM)
        for (size_t i = 0; i < n; i++) y[i] += x[i];
    else
        for (size_t i = 0; i < n; i++) y[i] = max_float(y[i], x[i]);
}

static void reduce_bf16(uint16_t *restrict y, const uint16_t *restrict x, size_t n, CommOp op) {
    if (op == COMM_SUM)
        for (size_t i = 0; i < n; i++) y[i] = bf16_from_float(bf16_to_float(y[i]) + bf16_to_float(x[i]));
    else
        for (size_t i = 0; i < n; i++) {
            float a = bf16_to_float(y[i]), b = bf16_to_float(x[i]);
            y[i] = b > a || b != b ? x[i] : y[i];
        }
}

static void reduce_int32(void *restrict y_any, const void *restrict x_any, size_t n, CommOp op) {
    if (op == COMM_SUM) { /* unsigned, so that wrapping around is defined */
        uint32_t *restrict y = y_any;
        const uint32_t *restrict x = x_any;
        for (size_t i = 0; i < n; i++) y[i] += x[i];
    } else {
        int32_t *restrict y = y_any;
        const int32_t *restrict x = x_any;
        for (size_t i = 0; i < n; i++) y[i] = x[i] > y[i] ? x[i] : y[i];
    }
}

static void reduce_uint8(uint8_t *restrict y, const uint8_t *restrict x, size_t n, CommOp op) {
    if (op == COMM_SUM)
        for (size_t i = 0; i < n; i++) y[i] = (uint8_t)(y[i] + x[i]);
    else
        for (size_t i = 0; i < n; i++) y[i] = x[i] > y[i] ? x[i] : y[i];
}

void comm_reduce(void *y, const void *x, size_t n, CommType type, CommOp op) {
    switch (type) {
    case COMM_FP32: reduce_float(y, x, n, op); return;
    case COMM_BF16: reduce_bf16(y, x, n, op); return;
    case COMM_INT32: reduce_int32(y, x, n, op); return;
    case COMM_UINT8: reduce_uint8(y, x, n, op); return;
    }
    CHECK(false && "a CommType");
}
