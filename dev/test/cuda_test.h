/* cuda_test.h: what the kernel tests need of CUDA (or of its shim) beyond kernels.h and device.h. */
#ifndef CUDA_TEST_H
#define CUDA_TEST_H
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif

/* Memory that host and device both see; the host only between a cuda_test_sync and the next launch. Of exact size under
 * the shim. NULL if there is none. */
void *cuda_test_alloc(size_t bytes);
void cuda_test_free(void *memory);
void cuda_test_sync(void);
/* From now on the shim runs threads and blocks forward (1), in reverse (2), or at random, by this seed. */
void cuda_test_order(int n);

#ifdef __cplusplus
}
#endif
#endif
