/* dispatch.h: which instruction sets this binary has kernels for, and the choice among them. */
#ifndef LLMC_DISPATCH_H
#define LLMC_DISPATCH_H
#include "cpu/isa.h"
#include <stdbool.h>

typedef struct {
    const char *name;
    const CpuKernels *kernels;
    bool (*supported)(void); /* by this processor */
} CpuIsa;

/* The sets of this build, from the most portable to the fastest. */
extern const CpuIsa cpu_isas[];
extern const int cpu_isa_count;

/* The chosen table; NULL until device_open. */
extern const CpuKernels *cpu_kernels;
#endif
