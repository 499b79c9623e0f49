/* event_file.h: records of TensorBoard's event files, made by hand: a protobuf Event in a TFRecord frame.
 *
 * frame: u64 length, u32 masked CRC-32C of the length, the Event, u32 masked CRC-32C of the Event; little-endian.
 * Event: 1 wall_time double, 2 step int64, 3 file_version string, 5 summary, 7 session_log; Summary: 1 repeated
 * Value {1 tag string, 2 simple_value float}; SessionLog: 1 status. */
#ifndef LLMC_EVENT_FILE_H
#define LLMC_EVENT_FILE_H
#include <stddef.h>
#include <stdint.h>

enum { EVENT_BYTES_MAX = 1024, EVENT_SCALARS_MAX = 16 };

typedef struct {
    const char *tag; /* at most 32 bytes */
    float value;
} EventScalar;

/* Each returns the bytes of one framed record in out. */

/* What every file begins with. */
size_t event_version(double wall_time, unsigned char out[EVENT_BYTES_MAX]);
/* Tells readers to forget all that earlier files hold of first_step and later. */
size_t event_restart(double wall_time, int64_t first_step, unsigned char out[EVENT_BYTES_MAX]);
size_t event_scalars(double wall_time, int64_t step, const EventScalar *scalars, int num_scalars,
                     unsigned char out[EVENT_BYTES_MAX]);
#endif
