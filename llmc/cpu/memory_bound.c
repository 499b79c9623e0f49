/* memory_bound.c: the kernels that read and write rows and multiply no matrices, in one unit: each alone would spend most
 * of its compile time in immintrin.h. */
#include "cpu/adamw.c"
#include "cpu/classifier.c"
#include "cpu/encoder.c"
#include "cpu/exact.c"
#include "cpu/gelu.c"
#include "cpu/layernorm.c"
#include "cpu/norm.c"
