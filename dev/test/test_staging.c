/* test_staging.c: operations on device memory by a backend of the host: large ones go in pieces, in such an order that the
 * copies of one piece are under way while the backend works on another; every byte that is read is copied there, and every
 * byte that is written, and no other, is copied back. Device and backend are made up: a "device" whose copies are done
 * when they are waited for, and ranks that all hold what this one does. */
#include "comm/staging.h"
#include "test.h"
#include <stdlib.h>
#include <string.h>

/* --- a device --- */

enum { COPIES_MAX = 256, EVENTS_MAX = 4096, POISON = 0x5a };
typedef struct {
    bool used;
    int begun; /* copies that wait */
    struct {
        void *to;
        const void *from;
        size_t bytes;
    } copies[COPIES_MAX];
} Queue;
static Queue queues[2];

/* r: a copy to the host has begun, R: all of them are done; w, W: to the device; b: the backend works. */
static char events[EVENTS_MAX + 1];
static size_t num_events, pinned_bytes, copied_bytes;

static void note(char event) {
    if (num_events && events[num_events - 1] == event && event != 'b') return;
    if (num_events < EVENTS_MAX) events[num_events++] = event;
    events[num_events] = 0;
}
static void begin(Queue *q, void *to, const void *from, size_t bytes) {
    if (q->begun == COPIES_MAX) abort();
    q->copies[q->begun].to = to, q->copies[q->begun].from = from, q->copies[q->begun++].bytes = bytes;
    copied_bytes += bytes;
}
static void *stream_open(void) {
    Queue *q = queues[0].used ? &queues[1] : &queues[0];
    q->used = true;
    return q;
}
static void stream_close(void *stream) {
    ((Queue *)stream)->used = false;
}
static void stream_read(void *stream, void *host, const void *device, size_t bytes) {
    note('r');
    begin(stream, host, device, bytes);
}
static void stream_write(void *stream, void *device, const void *host, size_t bytes) {
    note('w');
    begin(stream, device, host, bytes);
}
static void stream_wait(void *stream) {
    Queue *q = stream;
    if (q->begun)
        note(q == &queues[1] ? 'R' : 'W'); /* [true], to where the backend works, is opened second */
    for (int i = 0; i < q->begun; i++) memcpy(q->copies[i].to, q->copies[i].from, q->copies[i].bytes);
    q->begun = 0;
}
static void *device_memory(size_t bytes) {
    char *p = malloc(bytes + 1);
    if (p) memset(p, POISON, bytes);
    return p;
}
static void device_memory_free(void *p, size_t bytes) {
    (void)bytes;
    free(p);
}
static bool pin(void *host, size_t bytes) {
    (void)host;
    pinned_bytes += bytes;
    return true;
}
static void unpin(void *host) {
    (void)host;
}
static uint64_t mark(void) {
    return 1;
}
static bool is_done(uint64_t number) {
    return number == 1;
}
static const CommMemory memory = {.alloc = device_memory,
                                  .free = device_memory_free,
                                  .mark = mark,
                                  .is_done = is_done,
                                  .pin = pin,
                                  .unpin = unpin,
                                  .stream_open = stream_open,
                                  .stream_close = stream_close,
                                  .stream_read = stream_read,
                                  .stream_write = stream_write,
                                  .stream_wait = stream_wait};

/* --- a backend: the others hold what this rank does, or, of all-gather, their rank --- */

enum { RANKS = 3 };
static char *mirrors; /* of alloc: one at a time */

static void *mirror_alloc(CommGroup *group, size_t bytes, Error *err) {
    (void)group, (void)err;
    free(mirrors);
    mirrors = malloc(bytes + 1);
    if (mirrors) memset(mirrors, 0x77, bytes + 1);
    return mirrors;
}
static const CommBackend backend = {.name = "test", .alloc = mirror_alloc};

static bool work(const WorldOperation *o, Error *err) {
    int32_t *x = o->data;
    (void)err;
    note('b');
    for (int r = 0; r < RANKS && o->offsets; r++)
        for (size_t i = o->offsets[r]; i < o->offsets[r + 1]; i++) {
            if (o->header.operation == OPERATION_REDUCE_SCATTER) x[i] = r == 1 ? RANKS * x[i] : -1;
            if (o->header.operation == OPERATION_ALL_GATHER && r != 1) x[i] = 1000 + r;
        }
    for (size_t i = 0; i < o->count && !o->offsets; i++) x[i] *= RANKS;
    return true;
}

/* --- tests --- */

static World world;
static Comm comm;

static void check_sizes(const size_t sizes[RANKS], CommOperation operation) {
    size_t offsets[RANKS + 1] = {0}, before = 5; /* elements that are not part of it */
    for (int r = 0; r < RANKS; r++) offsets[r + 1] = offsets[r] + sizes[r];
    size_t n = offsets[RANKS], all = n + 2 * before;
    Error err;
    int32_t *data = staging_alloc(&comm, all * sizeof *data, &err);
    TEST_CHECK(data && pinned_bytes >= all * sizeof *data, "no pinned mirror of %zu elements", all);
    if (!data) return;
    for (size_t i = 0; i < all; i++) data[i] = (int32_t)(i % 1009);
    bool shares = operation != OPERATION_ALL_REDUCE;
    WorldOperation o = {.comm = &comm,
                        .header = {.operation = operation, .type = COMM_INT32, .bytes = n * sizeof *data},
                        .data = data + before,
                        .offsets = shares ? offsets : NULL,
                        .count = shares ? 0 : n};
    staging_note(&world, &o);
    TEST_CHECK(o.on_device, "not seen as device memory");
    num_events = copied_bytes = 0;
    TEST_CHECK(staging_run(&o, work, &err), "staging_run fails");
    size_t wrong = 0;
    for (size_t i = 0; i < all; i++) {
        int32_t was = (int32_t)(i % 1009), want = was;
        size_t at = i - before; /* wraps around before it */
        bool inside = i >= before && at < n, own = inside && at >= offsets[1] && at < offsets[2];
        if (operation == OPERATION_ALL_REDUCE && inside) want = RANKS * was;
        if (operation == OPERATION_REDUCE_SCATTER && own) want = RANKS * was;
        if (operation == OPERATION_ALL_GATHER && inside && !own) want = at < offsets[1] ? 1000 : 1002;
        wrong += data[i] != want;
    }
    TEST_CHECK(!wrong, "operation %d of %zu elements: %zu are wrong", (int)operation, n, wrong);
    size_t moved = operation == OPERATION_ALL_REDUCE   ? 2 * n
                   : operation == OPERATION_ALL_GATHER ? n
                                                       : n + sizes[1];
    TEST_CHECK(copied_bytes == moved * sizeof *data,
               "operation %d of %zu elements: %zu bytes are copied, not %zu", (int)operation, n, copied_bytes,
               moved * sizeof *data);
    comm.group.id = 1; /* the queues stay */
    staging_free(&comm);
    comm.group.id = 0;
}

/* Of an all-reduce of three pieces: while the backend works on one, the next is on its way and the one before it too. */
static void test_order(void) {
    const size_t sizes[RANKS] = {500000, 500000, 500000};
    check_sizes(sizes, OPERATION_ALL_REDUCE);
    TEST_CHECK(!strcmp(events, "rRrbwRrbwRbwW"), "the order is %s", events);
    const size_t small[RANKS] = {10, 20, 30};
    check_sizes(small, OPERATION_REDUCE_SCATTER);
    TEST_CHECK(!strcmp(events, "rRbwW"), "the order of a small one is %s", events);
}

int main(void) {
    const int ranks[RANKS] = {0, 1, 2};
    world.memory = &memory;
    comm.world = &world;
    comm.group =
        (CommGroup){.rank = 1, .size = RANKS, .world = ranks, .backend = &backend, .memory = &memory};
    test_order();
    const size_t cases[][RANKS] = {
        {1, 1, 1},        {0, 7, 0},       {7, 0, 9},      {600000, 1, 600001}, {1000003, 0, 63},
        {65, 999999, 64}, {0, 0, 1500001}, {0, 524288, 0}, {524288, 524288, 1}, {333333, 1000003, 777777}};
    const CommOperation operations[] = {OPERATION_ALL_REDUCE, OPERATION_REDUCE_SCATTER, OPERATION_ALL_GATHER};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int k = 0; k < 3; k++) check_sizes(cases[i], operations[k]);
    staging_free(&comm);
    TEST_CHECK(!queues[0].used && !queues[1].used, "queues are left open");
    free(mirrors);
    return test_end("staging");
}
