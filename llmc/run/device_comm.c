/* device_comm.c: see device_comm.h. */
#include "run/device_comm.h"
#include "model/device.h"

/* Zeroed when it returns, too: copies of CommMemory do not wait for what device_alloc launches. */
static void *alloc_zeroed(size_t bytes) {
    char *memory = device_alloc(bytes), byte;
    if (memory && bytes) device_read(&byte, memory, 1);
    return memory;
}

const CommMemory *device_comm_memory(void) {
    static const CommMemory memory = {.alloc = alloc_zeroed,
                                      .free = device_free,
                                      .mark = device_mark,
                                      .is_done = device_is_done,
                                      .read = device_fetch,
                                      .write = device_put,
                                      .pin = device_pin,
                                      .unpin = device_unpin,
                                      .stream_open = device_stream_open,
                                      .stream_read = device_stream_read,
                                      .stream_write = device_stream_write,
                                      .stream_wait = device_stream_wait,
                                      .stream_is_done = device_stream_is_done,
                                      .stream_close = device_stream_close,
                                      .name = device_name};
    return device_memory_is_host() ? NULL : &memory;
}
