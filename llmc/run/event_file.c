/* event_file.c: see event_file.h. */
#include "run/event_file.h"
#include "base/check.h"
#include "base/crc32c.h"
#include <string.h>

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };
enum { HEADER_BYTES = 12, VALUE_BYTES_MAX = 48 };

typedef struct {
    unsigned char *data;
    size_t used, size;
} Bytes;

static void put_byte(Bytes *b, unsigned value) {
    CHECK_OP(b->used, <, b->size);
    b->data[b->used++] = (unsigned char)(value & 0xff);
}

static void put_fixed(Bytes *b, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) put_byte(b, (unsigned)(value >> 8 * i & 0xff));
}

static void put_varint(Bytes *b, uint64_t value) {
    for (; value >= 0x80; value >>= 7) put_byte(b, (unsigned)(value & 0x7f) | 0x80);
    put_byte(b, (unsigned)value);
}

static void put_tag(Bytes *b, unsigned field, unsigned wire) {
    put_varint(b, field << 3 | wire);
}

static void put_bytes(Bytes *b, unsigned field, const void *data, size_t bytes) {
    put_tag(b, field, WIRE_BYTES);
    put_varint(b, bytes);
    CHECK_OP(bytes, <=, b->size - b->used);
    memcpy(b->data + b->used, data, bytes);
    b->used += bytes;
}

static Bytes event_begin(double wall_time, unsigned char *out) {
    Bytes b = {out, HEADER_BYTES, EVENT_BYTES_MAX - 4};
    uint64_t bits;
    memcpy(&bits, &wall_time, 8);
    put_tag(&b, 1, WIRE_64);
    put_fixed(&b, bits, 8);
    return b;
}

static void put_step(Bytes *b, int64_t step) {
    put_tag(b, 2, WIRE_VARINT);
    put_varint(b, (uint64_t)step);
}

/* Puts the frame around the event; returns its whole size. */
static size_t event_end(const Bytes *event) {
    size_t bytes = event->used - HEADER_BYTES;
    Bytes header = {event->data, 0, HEADER_BYTES}, footer = {event->data, event->used, event->used + 4};
    put_fixed(&header, bytes, 8);
    put_fixed(&header, crc32c_mask(crc32c(0, event->data, 8)), 4);
    put_fixed(&footer, crc32c_mask(crc32c(0, event->data + HEADER_BYTES, bytes)), 4);
    return footer.used;
}

size_t event_version(double wall_time, unsigned char out[EVENT_BYTES_MAX]) {
    static const char version[] = "brain.Event:2";
    Bytes b = event_begin(wall_time, out);
    put_bytes(&b, 3, version, sizeof version - 1);
    return event_end(&b);
}

size_t event_restart(double wall_time, int64_t first_step, unsigned char out[EVENT_BYTES_MAX]) {
    static const unsigned char start[] = {1 << 3 | WIRE_VARINT, 1};
    Bytes b = event_begin(wall_time, out);
    put_step(&b, first_step);
    put_bytes(&b, 7, start, sizeof start);
    return event_end(&b);
}

size_t event_scalars(double wall_time, int64_t step, const EventScalar *scalars, int num_scalars,
                     unsigned char out[EVENT_BYTES_MAX]) {
    unsigned char summary_data[EVENT_SCALARS_MAX * (VALUE_BYTES_MAX + 2)];
    Bytes b = event_begin(wall_time, out), summary = {summary_data, 0, sizeof summary_data};
    CHECK_OP(num_scalars, <=, EVENT_SCALARS_MAX);
    for (int i = 0; i < num_scalars; i++) {
        unsigned char value_data[VALUE_BYTES_MAX];
        Bytes value = {value_data, 0, sizeof value_data};
        uint32_t bits;
        memcpy(&bits, &scalars[i].value, 4);
        put_bytes(&value, 1, scalars[i].tag, strlen(scalars[i].tag));
        put_tag(&value, 2, WIRE_32);
        put_fixed(&value, bits, 4);
        put_bytes(&summary, 1, value.data, value.used);
    }
    put_step(&b, step);
    put_bytes(&b, 5, summary.data, summary.used);
    return event_end(&b);
}
