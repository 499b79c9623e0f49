/* device.h: where a kernel set runs: memory, copies, and the element type that it stores.
 *
 * Pointers to floatX and to what kernels.h takes are device pointers: only a kernel set reads them. On the
 * CPU set they are ordinary memory; code outside a kernel set copies all the same, so that it works on both.
 */
#ifndef LLMC_DEVICE_H
#define LLMC_DEVICE_H
#include "base/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

/* The stored element: fp32; bf16 where a kernel set is built with FLOATX_BF16. */
#ifdef FLOATX_BF16
typedef struct {
    uint16_t bits;
} floatX;
#else
typedef float floatX;
#endif

/* How matmuls multiply: PRECISION_BF16 rounds their inputs to bf16 and accumulates in fp32. */
typedef enum { PRECISION_FP32, PRECISION_BF16 } Precision;

typedef struct {
    int threads; /* 0: one per processor this process may use */
    Precision precision;
    const char
        *isa; /* NULL or "auto": the best the processor has; else avx512bf16, avx512, avx2, neon, portable */
} DeviceConfig;

/* Chooses the kernels and their threads; call once, before any other function of device.h and kernels.h. An
 * isa that this processor or build lacks is an error. device_precision_set may change the precision between
 * steps. */
bool device_open(const DeviceConfig *config, Error *err);
void device_precision_set(Precision precision);
/* One line for people: processor, instruction set, threads, precision, BLAS. The string lives for ever. */
const char *device_describe(void);
int device_threads(void);
/* The most FLOP/s that matmuls of this precision could reach on all threads, measured now, for about `seconds`:
 * the best of short runs of multiply-adds on registers. */
double device_peak_flops(Precision precision, double seconds);

/* Bytes of device memory that are free now (0: unknown), and the most that this process has held at once. */
double device_available_bytes(void);
double device_peak_bytes(void);

/* What suits this device where nobody says otherwise: the most tokens and sequences of one forward and backward (more
 * gain nothing), and the bytes that training may take at that (0: no bound). */
typedef struct {
    size_t batch_tokens, batch_sequences;
    double training_bytes;
} DeviceHabits;
DeviceHabits device_habits(void);

/* Zeroed memory, 2 MiB aligned where that pays, or NULL. Touching it first is slow: allocate before the first
 * step. */
void *device_alloc(size_t bytes);
void device_free(void *memory, size_t bytes);
void device_zero(void *memory, size_t bytes);
/* Host to device and back; both wait for what was launched before. */
void device_write(void *device, const void *host, size_t bytes);
void device_read(void *host, const void *device, size_t bytes);

/* Host memory for copies in the order of launches, zeroed, or NULL; read and written by the host only when a mark
 * (device_mark) taken after the copy is done. */
void *device_host_alloc(size_t bytes);
void device_host_free(void *host, size_t bytes);
void device_write_later(void *device, const void *host, size_t bytes);
void device_read_later(void *host, const void *device, size_t bytes);

/* fp32 values of n stored elements, and the reverse (rounded to nearest even). */
void device_read_floats(float *host, const floatX *device, size_t n);
void device_write_floats(floatX *device, const float *host, size_t n);

/* --- beside the computing: for communication and checkpoints, from threads of their own --- */

/* Is device memory ordinary memory, which others may read and write without copies? Then there is nothing to wait for
 * either. */
bool device_memory_is_host(void);
/* A number for all that the caller has launched so far, and: has that been done? Numbers start at 1. */
uint64_t device_mark(void);
bool device_is_done(uint64_t mark);
void device_wait(uint64_t mark); /* 0: for nothing */
/* Copies that wait for nothing that was launched: only of memory that no kernel under way writes, or reads. When they
 * return, they are done. */
void device_fetch(void *host, const void *device, size_t bytes);
void device_put(void *device, const void *host, size_t bytes);
/* Host memory (whole pages) that is copied faster from now on, until device_unpin. False: it stays as it is. */
bool device_pin(void *host, size_t bytes);
void device_unpin(void *host);
/* A queue beside the computing, for work of other libraries (a cudaStream_t) and for copies, of which read goes to the
 * host and write to the device; has all of it been done, and: wait for it. Only where device memory is not host memory. */
void *device_stream_open(void);
void device_stream_read(void *stream, void *host, const void *device, size_t bytes);
void device_stream_write(void *stream, void *device, const void *host, size_t bytes);
bool device_stream_is_done(void *stream);
void device_stream_wait(void *stream);
void device_stream_close(void *stream);
/* The device's name in its machine; two processes with the same one share it. Lives for ever. */
const char *device_name(void);

#ifdef __cplusplus
}
#endif
#endif
