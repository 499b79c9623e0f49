/* comm_self.c: the backend of one process: nothing to exchange, every operation is done at once (world.c). Every group of
 * one rank has it, whatever the backend of its parent. */
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

const CommBackend comm_backend_self = {
    .name = "self",
    .on_device = true, /* nothing is touched */
    .usable = usable,
    .open = open_group,
    .close = close_group,
};
