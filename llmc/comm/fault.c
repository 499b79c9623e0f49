/* fault.c: a rank that does something else than the others, on request, to try what happens then:
 *
 *   TOROID_FAULT="mismatch RANK STEP KIND"   KIND is operation, type, count or reduction
 *   TOROID_FAULT="busy RANK STEP SECONDS"    computes for that long before it begins its next operation
 *
 * It strikes once, at the first operation from that step on that has such a thing. */
#define _DEFAULT_SOURCE
#include "comm/fault.h"
#include "base/log.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void be_busy(double seconds) {
    for (double until = log_seconds() + seconds; log_seconds() < until;) continue;
}

/* Turns o into another operation; false: it has nothing of that kind. */
static bool differ(WorldOperation *o, const char *kind) {
    CommHeader *h = &o->header;
    bool reduces = h->operation == OPERATION_ALL_REDUCE || h->operation == OPERATION_REDUCE_SCATTER;
    if (!strcmp(kind, "operation") && h->operation != OPERATION_BARRIER)
        h->operation = OPERATION_BARRIER;
    else if (!strcmp(kind, "type") && reduces && h->type == COMM_FP32)
        h->type = COMM_INT32;
    else if (!strcmp(kind, "count") && h->operation == OPERATION_ALL_REDUCE && o->count) {
        h->bytes -= comm_type_bytes((CommType)h->type);
        o->count--;
    } else if (!strcmp(kind, "reduction") && reduces && h->op == COMM_SUM)
        h->op = COMM_MAX;
    else
        return false;
    return true;
}

void fault_strike(const CommGroup *group, int64_t step, WorldOperation *o) {
    static bool struck;
    if (struck) return;
    const char *text = getenv("TOROID_FAULT");
    struck = !text;
    char what[16], kind[16];
    int rank;
    long long at;
    if (!text || sscanf(text, "%15s %d %lld %15s", what, &rank, &at, kind) != 4) return;
    if (rank != group->world[group->rank] || step < at) return;
    struck = strcmp(what, "mismatch") != 0 || differ(o, kind);
    if (!strcmp(what, "busy")) be_busy(strtod(kind, NULL));
}
