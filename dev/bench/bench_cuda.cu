/* bench_cuda.cu: what this GPU can do, and what the kernels make of it: bandwidth of a copy, a large matrix product, and
 * attention forward and backward.
 *
 *   bench_cuda [--B=16] [--NH=12] [--HS=64] [--T=1024,4096] [--window=0] [--runs=20]
 * A line each, of medians. FLOP of attention: 4 HS per head and pair of a query and a key that it sees, forward; 2.5 times
 * that backward. Copies count what is read and what is written. */
#include "bench_gpu.h"
#include "cuda/attention.cuh"
#include "cuda/device.cuh"
#include "cuda/matmul.cuh"
#include <string>

static int runs;

template <class T> static T *device_array(size_t n) {
    T *x = static_cast<T *>(device_alloc(n * sizeof *x));
    if (!x) {
        fprintf(stderr, "bench_cuda: no memory for %zu elements\n", n);
        exit(EXIT_FAILED);
    }
    return x;
}
/* Normal-sized random values: zeros would be multiplied with less power, and so at higher clocks. */
static __global__ void fill_kernel(floatX *x, size_t n, uint32_t seed) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint32_t h = ((uint32_t)i ^ seed) * 0x9e3779b9u;
    h = (h ^ h >> 16) * 0x85ebca6bu, h = (h ^ h >> 13) * 0xc2b2ae35u, h ^= h >> 16;
    x[i] = from_float<floatX>((float)(h >> 8) * 0x1p-23f - 1);
}
static floatX *random_array(size_t n, uint32_t seed) {
    floatX *x = device_array<floatX>(n);
    LAUNCH(fill_kernel, blocks_for(n, 256), 256, 0, gpu.stream, x, n, seed);
    return x;
}

static void bench_copy() {
    const size_t bytes = (size_t)1 << 30;
    char *from = device_array<char>(bytes), *to = device_array<char>(bytes);
    double s = seconds_of(
        [&] { GPU_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, gpu.stream)); }, runs);
    printf("copy of 1 GiB                     %8.0f GB/s read and written\n", 2e-9 * (double)bytes / s);
    device_free(from, bytes), device_free(to, bytes);
}

static void bench_product() {
    const size_t n = 8192, bytes = n * n * sizeof(floatX);
    floatX *a = random_array(n * n, 1), *b = random_array(n * n, 2), *out = device_array<floatX>(n * n);
    double s = seconds_of([&] { matmul_forward(out, a, b, NULL, NULL, n, n, n); }, runs);
    printf("product 8192^3                    %8.1f TFLOP/s\n", 2e-12 * (double)(n * n * n) / s);
    device_free(a, bytes), device_free(b, bytes), device_free(out, bytes);
}

static void bench_attention(size_t B, size_t T, size_t NH, size_t HS, size_t window) {
    size_t N = B * T * NH * HS, rows = B * NH * T, W = window && window < T ? window : T;
    floatX *qkv = random_array(3 * N, 1), *dout = random_array(N, 2);
    floatX *out = device_array<floatX>(N), *dqkv = device_array<floatX>(3 * N);
    float *lse = device_array<float>(rows);
    double pairs = (double)(B * NH) * ((double)W * (double)(W + 1) / 2 + (double)(T - W) * (double)W);
    double flop = 4 * (double)HS * pairs;
    double forward = seconds_of([&] { attention_forward(out, lse, qkv, B, T, NH, HS, window); }, runs);
    double backward =
        seconds_of([&] { attention_backward(dqkv, dout, out, lse, qkv, B, T, NH, HS, window); }, runs);
    printf("attention B %zu T %zu NH %zu HS %zu window %zu: forward %.1f TFLOP/s (%.3f ms), backward %.1f "
           "TFLOP/s "
           "(%.3f ms)\n",
           B, T, NH, HS, window, 1e-12 * flop / forward, 1e3 * forward, 2.5e-12 * flop / backward,
           1e3 * backward);
    device_free(qkv, 0), device_free(dout, 0), device_free(out, 0), device_free(dqkv, 0), device_free(lse, 0);
}

int main(int argc, char **argv) {
    Error err;
    DeviceConfig config = {};
    config.precision = PRECISION_BF16;
    auto number = [&](const char *name, const char *fallback) {
        return (size_t)atoll(bench_option(argc, argv, name, fallback));
    };
    size_t B = number("--B", "16"), NH = number("--NH", "12"), HS = number("--HS", "64"),
           window = number("--window", "0");
    runs = (int)number("--runs", "20");
    std::string lengths = bench_option(argc, argv, "--T", "1024,4096");
    bench_options_end(argc, argv);
    if (runs < 1 || !B || !NH || !HS || !device_open(&config, &err)) {
        fprintf(stderr, "bench_cuda: %s\n", runs < 1 || !B || !NH || !HS ? "bad option" : err.text);
        return EXIT_FAILED;
    }
    printf("%s\n", device_describe());
    bench_copy();
    bench_product();
    for (size_t at = 0; at < lengths.size();) { /* the same number of tokens at every length */
        size_t T = (size_t)atoll(lengths.c_str() + at), comma = lengths.find(',', at);
        if (!T) break;
        size_t batch = B * 1024 / T;
        bench_attention(batch ? batch : 1, T, NH, HS, window);
        at = comma == std::string::npos ? lengths.size() : comma + 1;
    }
    return EXIT_DONE;
}
