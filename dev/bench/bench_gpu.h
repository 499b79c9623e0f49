/* bench_gpu.h: times of work on the GPU, by its own clock. */
#ifndef BENCH_GPU_H
#define BENCH_GPU_H
#include "bench.h"
#include "cuda/gpu.h"
#include <functional>
#include <vector>

/* Median seconds of one call, of `runs` >= 1; before them some warm up. */
static double seconds_of(const std::function<void()> &work, int runs) {
    const int warm_up = 3;
    cudaEvent_t from, to;
    std::vector<double> seconds;
    GPU_CHECK(cudaEventCreate(&from));
    GPU_CHECK(cudaEventCreate(&to));
    for (int i = -warm_up; i < runs; i++) {
        float ms = 0;
        GPU_CHECK(cudaEventRecord(from, gpu.stream));
        work();
        GPU_CHECK(cudaEventRecord(to, gpu.stream));
        GPU_CHECK(cudaEventSynchronize(to));
        GPU_CHECK(cudaEventElapsedTime(&ms, from, to));
        if (i >= 0) seconds.push_back(1e-3 * (double)ms);
    }
    GPU_CHECK(cudaEventDestroy(from));
    GPU_CHECK(cudaEventDestroy(to));
    return bench_median(seconds.data(), (int)seconds.size());
}
#endif
