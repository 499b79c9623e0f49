/* runtime.cpp: the runtime functions of cuda_runtime.h: memory, streams, events, properties.
 *
 * A stream is a queue. Ordinarily work is done when it is pushed; with SHIM_ASYNC=1 as late as possible, so that a host
 * that reads a result without waiting for it, or frees or changes what a copy still needs, is found out. */
#include "cuda_runtime.h"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <deque>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

struct shim_stream {
    std::deque<std::function<void()>> work;
    uint64_t pushed, done;
    int device;
};
struct shim_event {
    int device;
    shim_stream *stream;
    uint64_t after; /* that many pieces of the stream's work */
    std::chrono::steady_clock::time_point time;
};

static std::recursive_mutex lock;
typedef std::lock_guard<std::recursive_mutex> Locked;
static shim_stream default_stream;
static std::vector<shim_stream *> streams = {&default_stream};
static std::map<const char *, size_t> pinned; /* blocks of cudaMallocHost */
static std::map<void *, size_t> guarded;      /* blocks of cudaMalloc, with SHIM_GUARD */
static int working;                           /* on the work of a stream: then device memory may be touched */

static bool is_set(const char *value) {
    return value && *value && *value != '0';
}
static thread_local int current; /* the device that this thread uses: 0 in a new one, as with CUDA */
static int devices() {
    const char *count = getenv("SHIM_DEVICES");
    return count && atoi(count) > 0 ? atoi(count) : 1;
}
static bool is_async() {
    static const bool yes = is_set(getenv("SHIM_ASYNC"));
    return yes;
}
static bool is_guarded() {
    static const bool yes = is_set(getenv("SHIM_GUARD"));
    return yes;
}
static void guard_all(int access) {
    for (const auto &block : guarded)
        if (mprotect(block.first, block.second, access)) shim::die("SHIM_GUARD: mprotect fails");
}

static shim_stream *stream_of(cudaStream_t stream) {
    return stream ? stream : &default_stream;
}

static void drain(shim_stream *s, uint64_t upto) {
    while (s->done < upto) {
        std::function<void()> work = std::move(s->work.front());
        s->work.pop_front();
        s->done++;
        if (working++ == 0) guard_all(PROT_READ | PROT_WRITE);
        work();
        if (--working == 0) guard_all(PROT_NONE);
    }
}

void shim::stream_push(cudaStream_t stream, std::function<void()> work) {
    Locked locked(lock);
    shim_stream *s = stream_of(stream);
    s->pushed++;
    s->work.push_back(std::move(work));
    if (!is_async()) drain(s, s->pushed);
}

void shim::stream_check(cudaStream_t stream, const char *what) {
    if (stream && stream->device != current)
        die("%s: its stream belongs to device %d, and this thread uses %d", what, stream->device, current);
}

/* --- device --- */

static struct Report {
    ~Report() {
        if (!getenv("SHIM_STATS")) return;
        const shim::Stats &s = shim::stats;
        fprintf(stderr,
                "shim: %llu launches, %llu blocks, %llu threads, %llu switches, %llu warp functions, %llu "
                "barriers, %llu waits, %llu waits for events\n",
                (unsigned long long)s.launches, (unsigned long long)s.blocks, (unsigned long long)s.threads,
                (unsigned long long)s.switches, (unsigned long long)s.warp_ops,
                (unsigned long long)s.barriers, (unsigned long long)s.waits,
                (unsigned long long)s.event_waits);
    }
} report;

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    default: return "invalid argument";
    }
}
cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *count) {
    *count = devices();
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= devices()) return cudaErrorInvalidValue;
    current = device;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    if (device < 0 || device >= devices()) return cudaErrorInvalidValue;
    const char *sms = getenv("SHIM_SMS");
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "CUDA shim on the CPU");
    p->major = 9;
    p->pciBusID = (int)(getpid() % 0x10000); /* a device for every process */
    p->multiProcessorCount = sms ? atoi(sms) : 4;
    p->maxThreadsPerMultiProcessor = 2048;
    p->l2CacheSize = 50 << 20;
    p->sharedMemPerBlockOptin = shim::SHARED_BYTES_MAX;
    p->sharedMemPerMultiprocessor = 228 << 10;
    p->totalGlobalMem = (size_t)16 << 30;
    return cudaSuccess;
}
/* One MHz: an emulation is far from any peak. */
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int) {
    *value = 1000;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *free_bytes = *total = (size_t)16 << 30;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    Locked locked(lock);
    shim::stats.waits++;
    for (size_t i = 0; i < streams.size(); i++) drain(streams[i], streams[i]->pushed);
    return cudaSuccess;
}

/* --- memory --- */

cudaError_t cudaMalloc(void **p, size_t bytes) {
    const size_t poisoned_max = (size_t)1 << 31;
    *p = nullptr;
    if (is_guarded()) {
        Locked locked(lock);
        size_t pages = (bytes + 4096) / 4096 * 4096;
        *p = mmap(nullptr, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (*p == MAP_FAILED) return cudaErrorMemoryAllocation;
        if (bytes < poisoned_max) memset(*p, 0xff, bytes);
        mprotect(*p, pages, PROT_NONE);
        guarded[*p] = pages;
        return cudaSuccess;
    }
    if (bytes > (size_t)1 << 40 || posix_memalign(p, 256, bytes ? bytes : 1))
        return cudaErrorMemoryAllocation;
    if (bytes < poisoned_max) memset(*p, 0xff, bytes);
    return cudaSuccess;
}
cudaError_t cudaMallocManaged(void **p, size_t bytes, unsigned) {
    return cudaMalloc(p, bytes);
}
cudaError_t cudaMallocHost(void **p, size_t bytes) {
    Locked locked(lock);
    if (posix_memalign(p, 256, bytes ? bytes : 1)) return cudaErrorMemoryAllocation;
    memset(*p, 0xff, bytes);
    pinned[static_cast<char *>(*p)] = bytes;
    return cudaSuccess;
}
cudaError_t cudaFree(void *p) {
    cudaDeviceSynchronize();
    Locked locked(lock);
    auto block = guarded.find(p);
    if (block == guarded.end()) {
        free(p);
        return cudaSuccess;
    }
    munmap(p, block->second);
    guarded.erase(block);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *p) {
    Locked locked(lock);
    pinned.erase(static_cast<char *>(p));
    return cudaFree(p);
}

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned) {
    Locked locked(lock);
    pinned[static_cast<char *>(p)] = bytes;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p) {
    Locked locked(lock);
    cudaDeviceSynchronize();
    return pinned.erase(static_cast<char *>(p)) ? cudaSuccess : cudaErrorInvalidValue;
}

static bool is_pinned(const void *p) {
    const char *at = static_cast<const char *>(p);
    auto block = pinned.upper_bound(at);
    if (block == pinned.begin()) return false;
    --block;
    return at < block->first + block->second;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    Locked locked(lock);
    if (!bytes) return cudaSuccess;
    if (kind == cudaMemcpyHostToDevice && !is_pinned(from)) {
        shim::stats.waits++;
        std::vector<char> staged(static_cast<const char *>(from), static_cast<const char *>(from) + bytes);
        shim::stream_push(stream, [=] { memcpy(to, staged.data(), bytes); });
    } else {
        shim::stream_push(stream, [=] { memmove(to, from, bytes); });
        if (kind == cudaMemcpyDeviceToHost && !is_pinned(to)) cudaStreamSynchronize(stream);
    }
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    return cudaStreamSynchronize(nullptr);
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream) {
    if (bytes) shim::stream_push(stream, [=] { memset(p, value, bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemset(void *p, int value, size_t bytes) {
    cudaMemsetAsync(p, value, bytes, nullptr);
    return cudaStreamSynchronize(nullptr);
}

/* --- streams and events --- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    Locked locked(lock);
    *stream = new shim_stream();
    (*stream)->device = current;
    streams.push_back(*stream);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    Locked locked(lock);
    cudaStreamSynchronize(stream);
    streams.erase(std::find(streams.begin(), streams.end(), stream));
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    Locked locked(lock);
    shim::stats.waits++;
    drain(stream_of(stream), stream_of(stream)->pushed);
    return cudaSuccess;
}
/* Lets the stream go one piece on, as cudaEventQuery. */
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    Locked locked(lock);
    shim_stream *s = stream_of(stream);
    if (s->done < s->pushed) drain(s, s->done + 1);
    return s->done < s->pushed ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    shim_stream *s = event->stream;
    uint64_t after = event->after;
    if (s) shim::stream_push(stream, [=] { drain(s, after); });
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = new shim_event();
    (*event)->device = current;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    Locked locked(lock);
    shim::stream_check(stream, "cudaEventRecord");
    if (event->device != (stream ? stream->device : current))
        shim::die("cudaEventRecord: an event of device %d in a stream of another", event->device);
    event->stream = stream_of(stream);
    shim::stream_push(stream, [=] { event->time = std::chrono::steady_clock::now(); });
    event->after = event->stream->pushed;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    Locked locked(lock);
    shim::stats.event_waits++;
    if (event->stream) drain(event->stream, event->after);
    return cudaSuccess;
}
/* Each question lets the stream go one piece on, so that whoever polls gets there. */
cudaError_t cudaEventQuery(cudaEvent_t event) {
    Locked locked(lock);
    if (!event->stream || event->stream->done >= event->after) return cudaSuccess;
    drain(event->stream, event->stream->done + 1);
    return event->stream->done >= event->after ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    *ms = std::chrono::duration<float, std::milli>(to->time - from->time).count();
    return cudaSuccess;
}
