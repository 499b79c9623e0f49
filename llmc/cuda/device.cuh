/* device.cuh: the GPU as a device: choice, stream, memory, copies. Each rank of a host takes the next GPU. */
#ifndef LLMC_CUDA_DEVICE_CUH
#define LLMC_CUDA_DEVICE_CUH
#include "base/check.h"
#include "cuda/gpu.h"
#include <atomic>

namespace device {
static char description[384];
static cudaDeviceProp properties;
static int index;
static double clock_hz;
static std::atomic<size_t> held, peak; /* bytes of device_alloc */

/* The place of this rank among those of its host, as the launcher says it; 0 if nobody does. */
static int local_rank() {
    const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID",
                                 "TOROID_RANK"};
    for (const char *name : names) {
        const char *value = getenv(name);
        if (value && *value >= '0' && *value <= '9') return atoi(value);
    }
    return 0;
}

/* FLOP per clock and multiprocessor, from NVIDIA's data sheets: bf16 on tensor cores with fp32 sums, or fp32. */
static double flops_per_clock(Precision precision) {
    if (precision == PRECISION_FP32) return gpu.cc == 80 ? 128 : 256;
    switch (gpu.cc) {
    case 80: return 2048;
    case 90: return 4096;
    case 100:
    case 103: return 8192;
    default: return 512; /* those for desktops; some for workstations have twice that */
    }
}

/* Runtime calls go to the device of the calling thread. */
static void select() {
    static thread_local bool selected;
    if (!selected) GPU_CHECK(cudaSetDevice(index));
    selected = true;
}
} // namespace device

bool device_open(const DeviceConfig *config, Error *err) {
    int count = 0, clock_khz = 0;
    if (config->isa && *config->isa && strcmp(config->isa, "auto"))
        return error_set(err, "instruction set '%s': this program computes on a GPU (use auto)", config->isa);
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count == 0) error = cudaErrorNoDevice;
    if (error != cudaSuccess)
        return error_set(err, "GPU: %s (see nvidia-smi, or use the program for the CPU)",
                         cudaGetErrorString(error));
    device::index = device::local_rank() % count;
    error = cudaSetDevice(device::index);
    if (error == cudaSuccess) error = cudaGetDeviceProperties(&device::properties, device::index);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, device::index);
    if (error == cudaSuccess && !gpu.stream)
        error = cudaStreamCreateWithFlags(&gpu.stream, cudaStreamNonBlocking);
    if (error != cudaSuccess)
        return error_set(err, "GPU %d: %s (see nvidia-smi)", device::index, cudaGetErrorString(error));
    gpu.cc = device::properties.major * 10 + device::properties.minor;
    gpu.sm_count = device::properties.multiProcessorCount;
    device::clock_hz = 1e3 * clock_khz;
    /* data sheets reckon with less than the highest clock of these */
    if (gpu.cc == 90 && device::clock_hz > 1.83e9) device::clock_hz = 1.83e9;
    if (gpu.cc < 80)
        return error_set(err, "GPU %d: %s has compute capability %d.%d (8.0 is the least)", device::index,
                         device::properties.name, device::properties.major, device::properties.minor);
    device_precision_set(config->precision);
    return true;
}

/* What is stored as bf16 is multiplied as bf16. */
static Precision precision_of(Precision wanted) {
    return sizeof(floatX) == sizeof(float) ? wanted : PRECISION_BF16;
}
void device_precision_set(Precision precision) {
    gpu.precision = precision_of(precision);
}

const char *device_describe(void) {
    const char *stored = sizeof(floatX) == sizeof(float) ? "fp32" : "bf16";
    snprintf(device::description, sizeof device::description,
             "GPU %d: %s, compute capability %d.%d, %d multiprocessors, %.0f GB, %s stored, %s matmuls",
             device::index, device::properties.name, device::properties.major, device::properties.minor,
             gpu.sm_count, 1e-9 * (double)device::properties.totalGlobalMem, stored,
             gpu.precision == PRECISION_BF16 ? "bf16" : "fp32");
    return device::description;
}

int device_threads(void) {
    return 1;
}

/* From data sheets: what can be measured in `seconds` depends on how warm the GPU is. */
double device_peak_flops(Precision precision, double seconds) {
    (void)seconds;
    return device::flops_per_clock(precision_of(precision)) * gpu.sm_count * device::clock_hz;
}

double device_available_bytes(void) {
    size_t available = 0, total;
    device::select();
    GPU_CHECK(cudaMemGetInfo(&available, &total));
    return (double)available;
}
double device_peak_bytes(void) {
    return (double)device::peak;
}

/* From 64k tokens on the kernels are as fast as they get. The bytes are a share of all, not of what is free: the same
 * command shall choose the same. */
DeviceHabits device_habits(void) {
    return {65536, 65536, 0.85 * (double)device::properties.totalGlobalMem};
}

void *device_alloc(size_t bytes) {
    void *memory = NULL;
    device::select();
    if (cudaMalloc(&memory, bytes ? bytes : 1) != cudaSuccess) {
        cudaGetLastError(); /* it is told by NULL, not by the next launch */
        return NULL;
    }
    size_t now = device::held += bytes, most = device::peak;
    while (now > most && !device::peak.compare_exchange_weak(most, now)) {
    }
    device_zero(memory, bytes);
    return memory;
}

void device_free(void *memory, size_t bytes) {
    if (!memory) return;
    device::held -= bytes;
    GPU_CHECK(cudaStreamSynchronize(gpu.stream));
    GPU_CHECK(cudaFree(memory));
}

void device_zero(void *memory, size_t bytes) {
    GPU_CHECK(cudaMemsetAsync(memory, 0, bytes, gpu.stream));
}

void device_write(void *device, const void *host, size_t bytes) {
    device::select();
    GPU_CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, gpu.stream));
    GPU_CHECK(cudaStreamSynchronize(gpu.stream));
}

void device_read(void *host, const void *device, size_t bytes) {
    device::select();
    GPU_CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, gpu.stream));
    GPU_CHECK(cudaStreamSynchronize(gpu.stream));
}

void *device_host_alloc(size_t bytes) {
    void *host = NULL;
    device::select();
    if (cudaMallocHost(&host, bytes ? bytes : 1) != cudaSuccess) {
        cudaGetLastError();
        return NULL;
    }
    memset(host, 0, bytes);
    return host;
}

void device_host_free(void *host, size_t bytes) {
    (void)bytes;
    if (!host) return;
    GPU_CHECK(cudaStreamSynchronize(gpu.stream));
    GPU_CHECK(cudaFreeHost(host));
}

void device_write_later(void *device, const void *host, size_t bytes) {
    device::select();
    GPU_CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, gpu.stream));
}

void device_read_later(void *host, const void *device, size_t bytes) {
    device::select();
    GPU_CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, gpu.stream));
}

static const size_t BLOCK_MAX = 8192; /* elements that are converted at once */

/* A piece at a time through the stack, so that several threads may. */
void device_read_floats(float *host, const floatX *device, size_t n) {
    if constexpr (sizeof(floatX) == sizeof(float)) {
        device_read(host, device, n * sizeof(float));
    } else {
        for (size_t at = 0; at < n; at += BLOCK_MAX) {
            floatX block[BLOCK_MAX];
            size_t here = n - at < BLOCK_MAX ? n - at : BLOCK_MAX;
            device_read(block, device + at, here * sizeof *block);
            for (size_t i = 0; i < here; i++) host[at + i] = to_float(block[i]);
        }
    }
}

void device_write_floats(floatX *device, const float *host, size_t n) {
    if constexpr (sizeof(floatX) == sizeof(float)) {
        device_write(device, host, n * sizeof(float));
    } else {
        for (size_t at = 0; at < n; at += BLOCK_MAX) {
            floatX block[BLOCK_MAX];
            size_t here = n - at < BLOCK_MAX ? n - at : BLOCK_MAX;
            for (size_t i = 0; i < here; i++) block[i] = from_float<floatX>(host[at + i]);
            device_write(device + at, block, here * sizeof *block);
        }
    }
}

/* --- beside the computing --- */

bool device_memory_is_host(void) {
    return false;
}

/* An event for each of the last MARKS marks. An older one's event says more than was asked for: that is late, not wrong. */
static const uint64_t MARKS = 4096;
static cudaEvent_t mark_events[MARKS];
static uint64_t marks;

uint64_t device_mark(void) {
    device::select();
    cudaEvent_t *event = &mark_events[++marks % MARKS];
    if (!*event) GPU_CHECK(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    GPU_CHECK(cudaEventRecord(*event, gpu.stream));
    return marks;
}

/* What cudaEventQuery and cudaStreamQuery say; "not ready" must not be taken for the next launch's error. */
static bool is_ready(cudaError_t error) {
    if (error != cudaErrorNotReady) GPU_CHECK(error);
    if (error == cudaErrorNotReady) cudaGetLastError();
    return error == cudaSuccess;
}

bool device_is_done(uint64_t mark) {
    device::select();
    return is_ready(cudaEventQuery(mark_events[mark % MARKS]));
}

void device_wait(uint64_t mark) {
    if (!mark) return;
    device::select();
    GPU_CHECK(cudaEventSynchronize(mark_events[mark % MARKS]));
}

/* Of the calling thread, and gone with it; as many as there are threads that copy. */
static cudaStream_t copy_stream() {
    struct Stream {
        cudaStream_t stream = NULL;
        ~Stream() {
            if (stream) cudaStreamDestroy(stream);
        }
    };
    static thread_local Stream own;
    device::select();
    if (!own.stream) GPU_CHECK(cudaStreamCreateWithFlags(&own.stream, cudaStreamNonBlocking));
    return own.stream;
}

void device_fetch(void *host, const void *device, size_t bytes) {
    cudaStream_t stream = copy_stream();
    GPU_CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream));
    GPU_CHECK(cudaStreamSynchronize(stream));
}

void device_put(void *device, const void *host, size_t bytes) {
    cudaStream_t stream = copy_stream();
    GPU_CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream));
    GPU_CHECK(cudaStreamSynchronize(stream));
}

bool device_pin(void *host, size_t bytes) {
    device::select();
    if (cudaHostRegister(host, bytes, cudaHostRegisterDefault) == cudaSuccess) return true;
    cudaGetLastError(); /* a limit of the system: copies are only slower */
    return false;
}

void device_unpin(void *host) {
    GPU_CHECK(cudaHostUnregister(host));
}

void *device_stream_open(void) {
    cudaStream_t stream;
    device::select();
    GPU_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

void device_stream_read(void *stream, void *host, const void *device, size_t bytes) {
    device::select();
    GPU_CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, (cudaStream_t)stream));
}

void device_stream_write(void *stream, void *device, const void *host, size_t bytes) {
    device::select();
    GPU_CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, (cudaStream_t)stream));
}

void device_stream_wait(void *stream) {
    device::select();
    GPU_CHECK(cudaStreamSynchronize((cudaStream_t)stream));
}

bool device_stream_is_done(void *stream) {
    device::select();
    return is_ready(cudaStreamQuery((cudaStream_t)stream));
}

void device_stream_close(void *stream) {
    device::select();
    GPU_CHECK(cudaStreamDestroy((cudaStream_t)stream));
}

const char *device_name(void) {
    static char name[32];
    snprintf(name, sizeof name, "%04x:%02x:%02x", (unsigned)device::properties.pciDomainID,
             (unsigned)device::properties.pciBusID, (unsigned)device::properties.pciDeviceID);
    return name;
}

void *gpu_scratch(int slot, size_t bytes) {
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
#endif
