/* comm_self.c: the backend of one process: nothing to exchange, every operation is done at once. comm.c also gives it
 * every group of one rank, whatever the backend of its parent. */
#include "comm/backend.h"

static bool usable(const CommGroup *group, Error *err) {
    return group->size == 1 || error_set(err, "there are %d ranks", group->size);
}

static bool open_group(CommGroup *group, Error *err) {
    (void)err;
    group->algorithm = "alone";
    return true;
}

static void close_group(CommGroup *group) {
    (void)group;
}

static bool all_reduce(CommGroup *group, void *data, size_t count, CommType type, CommOp op, Error *err) {
    (void)group, (void)data, (void)count, (void)type, (void)op, (void)err;
    return true;
}

static bool reduce_scatter(CommGroup *group, void *data, const size_t *offsets, CommType type, CommOp op,
                           Error *err) {
    (void)group, (void)data, (void)offsets, (void)type, (void)op, (void)err;
    return true;
}

static bool all_gather(CommGroup *group, void *data, const size_t *offsets, CommType type, Error *err) {
    (void)group, (void)data, (void)offsets, (void)type, (void)err;
    return true;
}

static bool broadcast(CommGroup *group, void *data, size_t bytes, int root, Error *err) {
    (void)group, (void)data, (void)bytes, (void)root, (void)err;
    return true;
}

static bool send_bytes(CommGroup *group, const void *data, size_t bytes, int to, Error *err) {
    (void)group, (void)data, (void)bytes;
    return error_set(err, "a send to rank %d: there is no other rank", to);
}

static bool recv_bytes(CommGroup *group, void *data, size_t bytes, int from, Error *err) {
    (void)group, (void)data, (void)bytes;
    return error_set(err, "a receive from rank %d: there is no other rank", from);
}

static bool barrier(CommGroup *group, Error *err) {
    (void)group, (void)err;
    return true;
}

const CommBackend comm_backend_self = {
    .name = "self",
    .on_device = true, /* nothing is touched */
    .usable = usable,
    .open = open_group,
    .close = close_group,
    .all_reduce = all_reduce,
    .reduce_scatter = reduce_scatter,
    .all_gather = all_gather,
    .broadcast = broadcast,
    .send = send_bytes,
    .recv = recv_bytes,
    .barrier = barrier,
};
