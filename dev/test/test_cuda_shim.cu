/* test_cuda_shim.cu: does the shim do what it is for? Its models of instructions against plain arithmetic, and kernels
 * with one fault each, which must be found: those that break a rule stop the program with its name, the others give a
 * wrong result in at least one order of threads. */
#include "cuda/gpu.h"
#include "test.h"
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>

static float *new_floats(size_t n) {
    return (float *)calloc(n ? n : 1, sizeof(float));
}

/* --- models --- */

static __global__ void mma_kernel(float *d, const bf16 *a, const bf16 *b, bool by_ldmatrix) {
    DYN_SHARED(bf16, tiles); /* a (16,16), then b (16,8) */
    for (unsigned i = threadIdx.x; i < 48; i += WARP)
        copy_async_16(tiles + i * 8, (i < 32 ? a : b - 256) + i * 8);
    copy_async_commit();
    copy_async_wait<0>();
    __syncwarp();
    int lane = lane_id(), g = lane / 4, t = lane % 4;
    uint32_t ra[4], rb[4];
    float sum[4] = {1, 2, 3, 4};
    if (by_ldmatrix) {
        ldmatrix_x4(ra, tiles + (lane % 16) * 16 + lane / 16 * 8);
        ldmatrix_x4_trans(rb, tiles + 256 + (lane % 16) * 8);
    } else {
        for (int i = 0; i < 4; i++)
            memcpy(&ra[i], tiles + (g + i % 2 * 8) * 16 + t * 2 + i / 2 * 8, sizeof ra[i]);
        for (int i = 0; i < 2; i++) {
            const bf16 *at = tiles + 256 + (t * 2 + i * 8) * 8 + g;
            rb[i] = at[0].bits | (uint32_t)at[8].bits << 16;
        }
    }
    mma_m16n8k16(sum, ra, rb);
    for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = sum[i];
}

static void check_mma(bool by_ldmatrix) {
    float values[384], *d = new_floats(128);
    bf16 *in = (bf16 *)aligned_alloc(16, 384 * sizeof *in);
    test_fill(values, 384, 1, 7);
    for (int i = 0; i < 384; i++) values[i] = to_float(in[i] = bf16_from_float(values[i]));
    LAUNCH(mma_kernel, 1, WARP, 384 * sizeof(bf16), gpu.stream, d, in, in + 256, by_ldmatrix);
    double worst = 0;
    for (int i = 0; i < 128; i++) {
        double want = 1 + i / 8 / 8 * 2 + i % 2;
        for (int k = 0; k < 16; k++)
            want += (double)values[i / 8 * 16 + k] * (double)values[256 + k * 8 + i % 8];
        double off = fabs((double)d[i] - want);
        if (!(off <= worst)) worst = off;
    }
    TEST_CHECK(worst < 1e-5, "mma %s: off by %g", by_ldmatrix ? "by ldmatrix" : "by hand", worst);
    free(in);
    free(d);
}

static void check_bf16() {
    const struct {
        float x;
        uint16_t want;
    } cases[] = {{1.0f, 0x3f80},       {1.00390625f, 0x3f80},   {1.01171875f, 0x3f82}, {-0.0f, 0x8000},
                 {INFINITY, 0x7f80},   {3.4028235e38f, 0x7f80}, {1e-45f, 0},           {NAN, 0x7fff},
                 {1.0039064f, 0x3f81}, {-1.01171875f, 0xbf82}};
    for (const auto &c : cases)
        TEST_CHECK(bf16_from_float(c.x).bits == c.want, "bf16 of %g: %04x", (double)c.x,
                   bf16_from_float(c.x).bits);
    int up = 0;
    for (uint32_t r = 0; r < 65536; r++) up += bf16_from_float_stochastic(1.001953125f, r).bits == 0x3f81;
    TEST_CHECK(up == 16384, "a quarter of the way up: up %d of 65536 times", up);
    TEST_CHECK(bf16_from_float_stochastic(NAN, 0xffff).bits == 0x7fff, "NaN stays");
    TEST_CHECK(bf16_from_float_stochastic(-INFINITY, 0xffff).bits == 0xff80, "infinity stays");
}

static __global__ void sum_kernel(float *out, const float *x, int rounds) {
    for (int i = 0; i < rounds; i++) {
        float sum = block_sum(x[threadIdx.x] + (float)i), twice = block_sum(2 * x[threadIdx.x]),
              max = block_max(x[threadIdx.x]);
        out[(size_t)i * blockDim.x + threadIdx.x] = sum + max + twice;
    }
}

static void check_reductions(unsigned threads) {
    float *x = new_floats(threads), *out = new_floats(threads * 3), sum = 0;
    for (unsigned i = 0; i < threads; i++) sum += x[i] = (float)(i * 7 % 13);
    float max = threads > 11 ? 12 : 0;
    LAUNCH(sum_kernel, 1, threads, 0, gpu.stream, out, x, 3);
    for (unsigned i = 0; i < threads * 3; i++) {
        float want = sum + (float)(i / threads * threads) + max + 2 * sum;
        TEST_CHECK(out[i] == want, "%u threads, %u: %g, want %g", threads, i, (double)out[i], (double)want);
    }
    free(x);
    free(out);
}

static __global__ void shuffle_kernel(int *out) {
    int lane = lane_id(), half = lane / 16;
    unsigned mask = half ? 0xffff0000u : 0x0000ffffu;
    out[lane * 4] = __shfl_down_sync(ALL_LANES, lane, 3, 8);
    out[lane * 4 + 1] = __shfl_sync(mask, lane, 5, 16);
    out[lane * 4 + 2] = (int)__ballot_sync(mask, lane % 3 == 0);
    out[lane * 4 + 3] = __shfl_up_sync(ALL_LANES, lane, 1);
}

static void check_shuffles() {
    int *out = (int *)new_floats(128);
    LAUNCH(shuffle_kernel, 1, WARP, 0, gpu.stream, out);
    for (int lane = 0; lane < WARP; lane++) {
        int down = lane % 8 + 3 < 8 ? lane + 3 : lane, ballot = 0;
        for (int l = lane / 16 * 16; l < lane / 16 * 16 + 16; l++)
            ballot |= (int)((unsigned)(l % 3 == 0) << l);
        TEST_CHECK(out[lane * 4] == down && out[lane * 4 + 1] == lane / 16 * 16 + 5, "lane %d: %d %d", lane,
                   out[lane * 4], out[lane * 4 + 1]);
        TEST_CHECK(out[lane * 4 + 2] == ballot && out[lane * 4 + 3] == (lane ? lane - 1 : 0),
                   "lane %d: %x %d", lane, (unsigned)out[lane * 4 + 2], out[lane * 4 + 3]);
    }
    free(out);
}

/* --- kernels that break a rule: the program stops, and says which --- */

enum Fault {
    BARRIER_IN_PART,
    BARRIERS_APART,
    MASK_WITHOUT_CALLER,
    MASK_OF_RETURNED,
    RETURN_IN_MASK,
    LANE_OUTSIDE,
    MISALIGNED,
    COPY_LEFT,
    FUNCTIONS_MEET,
    BLOCK_TOO_LARGE,
    SHARED_TOO_MUCH,
    OTHER_DEVICE,
    SHARED_OVERRUN, /* by AddressSanitizer */
};
static __global__ void broken_kernel(float *x, Fault fault) {
    DYN_SHARED(float, s);
    unsigned i = threadIdx.x;
    s[i] = 0;
    switch (fault) {
    case BARRIER_IN_PART:
        if (i < 40) __syncthreads();
        __syncwarp();
        break;
    case BARRIERS_APART:
        if (i < 40)
            __syncthreads();
        else
            __syncthreads();
        break;
    case MASK_WITHOUT_CALLER: x[i] = __shfl_xor_sync(0xffffu, x[i], 1); break;
    case MASK_OF_RETURNED:
        if (i % 2) return;
        __syncthreads();
        x[i] = warp_sum(x[i]);
        break;
    case RETURN_IN_MASK:
        if (i == 31) return;
        x[i] = warp_sum(x[i]);
        break;
    case LANE_OUTSIDE: x[i] = i < 16 ? __shfl_sync(0xffffu, x[i], 20) : 0; break;
    case MISALIGNED: store(x + 8 * i, load<4>(x + i)); break;
    case COPY_LEFT: copy_async_16(s, x); break;
    case FUNCTIONS_MEET:
        if (i % 2)
            __syncwarp();
        else
            __ballot_sync(ALL_LANES, 1);
        break;
    case SHARED_OVERRUN: s[i + 1] = 0; break;
    case SHARED_TOO_MUCH: {
        SHARED(float, more, [4200]);
        more[i] = x[i];
        break;
    }
    case OTHER_DEVICE:
    case BLOCK_TOO_LARGE: break;
    }
}

static bool has_asan() {
#if defined(__SANITIZE_ADDRESS__)
    return true;
#else
    return false;
#endif
}

static void check_fault(Fault fault, const char *expected) {
    int ends[2];
    char said[4096] = "";
    if (pipe(ends)) abort();
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        unsigned threads = fault == BLOCK_TOO_LARGE ? 1056 : 64;
        float *x = (float *)aligned_alloc(16, 1024 * sizeof *x);
        memset(x, 0, 1024 * sizeof *x);
        size_t smem = fault == SHARED_TOO_MUCH ? 32 << 10 : threads * sizeof(float);
        if (fault == OTHER_DEVICE) {
            setenv("SHIM_DEVICES", "2", 1);
            cudaStreamCreateWithFlags(&gpu.stream, cudaStreamNonBlocking);
            cudaSetDevice(1);
        }
        LAUNCH(broken_kernel, 1, threads, smem, gpu.stream, x, fault);
        _exit(0);
    }
    close(ends[1]);
    size_t n = 0;
    for (ssize_t got; n + 1 < sizeof said && (got = read(ends[0], said + n, sizeof said - 1 - n)) > 0;)
        n += (size_t)got;
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    TEST_CHECK(status != 0 && strstr(said, expected), "fault %d: status %d, wanted '%s', got: %.300s",
               (int)fault, status, expected, said);
}

/* --- kernels with a race: wrong in some order --- */

enum Race { NO_RACE, NO_BARRIER, NO_SECOND_BARRIER, COPY_NOT_WAITED, WARP_IN_STEP, UNWRITTEN };
/* Twice: every thread leaves a value and reads its opposite's. */
static __global__ void racing_kernel(float *out, const float *x, Race race) {
    DYN_SHARED(float, s);
    unsigned i = threadIdx.x, n = blockDim.x;
    float sum = 0;
    for (int round = 0; round < 2; round++) {
        if (race == COPY_NOT_WAITED) {
            if (i % 4 == 0) copy_async_16(s + i, x + i);
            copy_async_commit();
            copy_async_wait<1>();
        } else if (race != UNWRITTEN || i) {
            s[i] = x[i];
        }
        if (race == WARP_IN_STEP)
            sum += s[i ^ 1];
        else if (race != NO_BARRIER)
            __syncthreads();
        if (race != WARP_IN_STEP) sum += s[n - 1 - i] + (float)round;
        if (race != NO_SECOND_BARRIER) __syncthreads();
        if (race == NO_SECOND_BARRIER) s[i] = -1;
        copy_async_wait<0>();
        __syncthreads();
    }
    out[i] = sum;
}

static bool is_right(Race race, int order, int seed) {
    enum { N = 96 };
    float out[N], *x = (float *)aligned_alloc(16, N * sizeof *x);
    bool right = true;
    for (int i = 0; i < N; i++) x[i] = (float)(i + 1);
    shim_order_set(order, (uint64_t)seed);
    LAUNCH(racing_kernel, 1, N, N * sizeof(float), gpu.stream, out, x, race);
    for (int i = 0; i < N; i++) {
        float want = race == WARP_IN_STEP ? 2 * x[i ^ 1] : 2 * x[N - 1 - i] + 1;
        if (!(out[i] == want)) right = false;
    }
    free(x);
    return right;
}

static void check_race(Race race) {
    int right = 0, runs = 0;
    for (int order = SHIM_FORWARD; order <= SHIM_RANDOM; order++)
        for (int seed = 0; seed < (order == SHIM_RANDOM ? 4 : 1); seed++, runs++)
            right += is_right(race, order, seed);
    shim_order_set(SHIM_FORWARD, 0);
    if (race == NO_RACE)
        TEST_CHECK(right == runs, "without a race: right %d times of %d", right, runs);
    else
        TEST_CHECK(right < runs, "race %d was not seen in %d runs", (int)race, runs);
}

int main() {
    for (int order = SHIM_FORWARD; order <= SHIM_RANDOM; order++) {
        shim_order_set(order, 3);
        check_mma(false);
        check_mma(true);
        check_reductions(WARP);
        check_reductions(96);
        check_reductions(1024);
        check_shuffles();
    }
    shim_order_set(SHIM_FORWARD, 0);
    check_bf16();
    check_fault(BARRIER_IN_PART, "deadlock");
    check_fault(BARRIERS_APART, "divergent barrier");
    check_fault(MASK_WITHOUT_CALLER, "does not name lane 16");
    check_fault(MASK_OF_RETURNED, "have returned");
    check_fault(RETURN_IN_MASK, "returned while __shfl_xor_sync");
    check_fault(LANE_OUTSIDE, "reads lane 20");
    check_fault(MISALIGNED, "misaligned");
    check_fault(COPY_LEFT, "belong to no group");
    check_fault(FUNCTIONS_MEET, "meets");
    check_fault(BLOCK_TOO_LARGE, "cannot be launched");
    check_fault(SHARED_TOO_MUCH, "more than a block has");
    check_fault(OTHER_DEVICE, "belongs to device 0, and this thread uses 1");
    if (has_asan()) check_fault(SHARED_OVERRUN, "AddressSanitizer: heap-buffer-overflow");
    for (int race = NO_RACE; race <= UNWRITTEN; race++) check_race((Race)race);
    return test_end("cuda_shim");
}
