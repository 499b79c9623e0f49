/* device.c: the CPU as a device: choice of instruction set and threads, memory, scratch. */
#define _GNU_SOURCE
#include "model/device.h"
#include "base/check.h"
#include "base/error.h"
#include "base/machine.h"
#include "cpu/dispatch.h"
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

Precision cpu_precision;
int cpu_threads = 1;
static char description[256];
static const char *isa_name;

static const CpuIsa *choose_isa(const char *wanted, Error *err) {
    bool automatic = !wanted || !*wanted || !strcmp(wanted, "auto");
    char built[96] = "";
    for (int i = cpu_isa_count - 1; i >= 0; i--) {
        if (automatic ? cpu_isas[i].supported() : !strcmp(wanted, cpu_isas[i].name)) {
            if (cpu_isas[i].supported()) return &cpu_isas[i];
            error_set(err, "instruction set '%s': this processor lacks it (use auto)", wanted);
            return NULL;
        }
        size_t used = strlen(built);
        snprintf(built + used, sizeof built - used, "%s%s", used ? ", " : "", cpu_isas[i].name);
    }
    error_set(err, "instruction set '%s': not in this build (it has: auto, %s)", wanted, built);
    return NULL;
}

static void processor_name(char *name, size_t size) {
    snprintf(name, size, "CPU");
    FILE *f = fopen("/proc/cpuinfo", "r");
    if (!f) return;
    char line[256];
    while (fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon) continue;
        colon[strcspn(colon, "\n")] = 0;
        snprintf(name, size, "%s", colon + 2);
        break;
    }
    fclose(f);
}

bool device_open(const DeviceConfig *config, Error *err) {
    const CpuIsa *isa = choose_isa(config->isa, err);
    if (!isa) return false;
    if (config->threads < 0 || config->threads > 4096)
        return error_set(err, "threads %d: must be 0 (one per processor) to 4096", config->threads);
    cpu_kernels = isa->kernels;
    isa_name = isa->name;
    cpu_threads = config->threads ? config->threads : omp_get_num_procs();
    omp_set_num_threads(cpu_threads);
    omp_set_dynamic(0);
    device_precision_set(config->precision);
    return true;
}

void device_precision_set(Precision precision) {
    cpu_precision = precision;
    char name[128];
    processor_name(name, sizeof name);
    const char *matmuls = "own matmuls";
#ifdef USE_BLAS
    if (precision == PRECISION_FP32) matmuls = "matmuls by " USE_BLAS;
#endif
    snprintf(description, sizeof description, "%s, %s kernels, %d thread%s, %s, %s", name, isa_name,
             cpu_threads, cpu_threads == 1 ? "" : "s", precision == PRECISION_BF16 ? "bf16" : "fp32",
             matmuls);
}

const char *device_describe(void) {
    return description;
}
int device_threads(void) {
    return cpu_threads;
}

double device_available_bytes(void) {
    return machine_available_bytes();
}
double device_peak_bytes(void) {
    return machine_peak_bytes();
}

DeviceHabits device_habits(void) {
    return (DeviceHabits){.batch_tokens = SIZE_MAX, .batch_sequences = 4};
}

#define HUGE_PAGE ((size_t)2 << 20)

void *device_alloc(size_t bytes) {
    if (bytes > SIZE_MAX - 2 * HUGE_PAGE) return NULL;
    size_t size = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE + HUGE_PAGE;
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    size_t before = (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
    if (before) munmap(p, before);
    if (HUGE_PAGE - before) munmap(p + size - (HUGE_PAGE - before), HUGE_PAGE - before);
#ifdef MADV_HUGEPAGE
    madvise(p + before, size - HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return p + before;
}

void device_free(void *memory, size_t bytes) {
    if (memory) munmap(memory, (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
}

/* Every thread zeroes its own part, so that pages are also first touched by several threads. */
void device_zero(void *memory, size_t bytes) {
    const size_t block = HUGE_PAGE;
#pragma omp parallel for schedule(static) if (bytes > block)
    for (size_t at = 0; at < bytes; at += block)
        memset((char *)memory + at, 0, bytes - at < block ? bytes - at : block);
}

void device_write(void *device, const void *host, size_t bytes) {
    memcpy(device, host, bytes);
}
void device_read(void *host, const void *device, size_t bytes) {
    memcpy(host, device, bytes);
}
void *device_host_alloc(size_t bytes) {
    return device_alloc(bytes);
}
void device_host_free(void *host, size_t bytes) {
    device_free(host, bytes);
}
void device_write_later(void *device, const void *host, size_t bytes) {
    memcpy(device, host, bytes);
}
void device_read_later(void *host, const void *device, size_t bytes) {
    memcpy(host, device, bytes);
}
void device_read_floats(float *host, const floatX *device, size_t n) {
    memcpy(host, device, n * sizeof(float));
}
void device_write_floats(floatX *device, const float *host, size_t n) {
    memcpy(device, host, n * sizeof(float));
}

/* --- beside the computing: memory is memory, and a kernel has returned when it is done --- */

bool device_memory_is_host(void) {
    return true;
}
uint64_t device_mark(void) {
    return 1;
}
bool device_is_done(uint64_t mark) {
    (void)mark;
    return true;
}
void device_wait(uint64_t mark) {
    (void)mark;
}
void device_fetch(void *host, const void *device, size_t bytes) {
    memcpy(host, device, bytes);
}
void device_put(void *device, const void *host, size_t bytes) {
    memcpy(device, host, bytes);
}
bool device_pin(void *host, size_t bytes) {
    (void)host, (void)bytes;
    return false;
}
void device_unpin(void *host) {
    (void)host;
}
void *device_stream_open(void) {
    CHECK(false); /* there is no other library's work */
    return NULL;
}
void device_stream_read(void *stream, void *host, const void *device, size_t bytes) {
    CHECK(!stream);
    memcpy(host, device, bytes);
}
void device_stream_write(void *stream, void *device, const void *host, size_t bytes) {
    CHECK(!stream);
    memcpy(device, host, bytes);
}
bool device_stream_is_done(void *stream) {
    return !stream;
}
void device_stream_wait(void *stream) {
    CHECK(!stream);
}
void device_stream_close(void *stream) {
    CHECK(!stream);
}
const char *device_name(void) {
    return "CPU";
}

void *cpu_scratch(int slot, size_t bytes) {
    static void *memory[NUM_SCRATCH];
    static size_t size[NUM_SCRATCH];
    CHECK(slot >= 0 && slot < NUM_SCRATCH);
    if (bytes > size[slot]) {
        device_free(memory[slot], size[slot]);
        memory[slot] = device_alloc(bytes);
        size[slot] = bytes;
        if (!memory[slot]) {
            fprintf(stderr, "error: no memory for %zu bytes of kernel scratch (use a smaller batch)\n",
                    bytes);
            exit(EXIT_FAILED); /* kernels cannot fail, and nothing is half-written between two of them */
        }
    }
    return memory[slot];
}
