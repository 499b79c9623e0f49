/* train_gpt2.cu: the CUDA engine: all kernels of llmc/model/kernels.h and the device of llmc/model/device.h, in one
 * translation unit. It is linked under train_gpt2.c and test_gpt2.c in place of llmc/cpu. Compiled by nvcc it is the GPU
 * program; by a C++ compiler with dev/cuda_shim it runs on the CPU, for tests. */
#include "cuda/adamw.cuh"
#include "cuda/attention.cuh"
#include "cuda/classifier.cuh"
#include "cuda/decode.cuh"
#include "cuda/device.cuh"
#include "cuda/encoder.cuh"
#include "cuda/exact.cuh"
#include "cuda/gelu.cuh"
#include "cuda/gpu.h"
#include "cuda/layernorm.cuh"
#include "cuda/matmul.cuh"
#include "cuda/norm.cuh"
