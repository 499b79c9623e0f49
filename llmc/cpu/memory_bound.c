/* memory_bound.c: the kernels that read and write rows and multiply no matrices, in one unit: each alone would spend most
 * of its compile time in immintrin.h. */
#include "adamw.c"
#include "classifier.c"
#include "encoder.c"
#include "exact.c"
#include "gelu.c"
#include "layernorm.c"
#include "norm.c"
