/* exact_sum.h: sums that do not depend on the order of their terms, and so not on the number of ranks (--reduce exact).
 *
 * Gradients: blocks of EXACT_BLOCK elements have a grid each (kernels.h: exact_add), agreed before the gradient of any
 * micro-batch is rounded to it; the rounded ones are integers, whose sums are the same in any order. The grids of a step
 * are predicted from the magnitudes that the micro-batches of the step before had, which all ranks know; where one of
 * them is larger than predicted, or all are far smaller, the step is computed again with grids of what was measured. Everything that
 * decides this is a maximum over all micro-batches of the step, whoever computed them.
 *
 * Doubles (losses, squares of norms): ExactSum is a fixed-point number as wide as the range of double; it loses
 * nothing, and is rounded once, when it is read. */
#ifndef LLMC_EXACT_SUM_H
#define LLMC_EXACT_SUM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- grids; levels as in kernels.h --- */

/* Micro-batches of a step, over all ranks, at most: then a gradient still has 15 bits. */
enum { EXACT_TERMS_MAX = 1 << 15 };
/* The bits that exact_add has for each of `terms` micro-batches. */
int exact_bits(int64_t terms);

/* In the order of what matters more. TOO_COARSE: much of what the grids resolve would be lost. */
typedef enum { EXACT_FITS, EXACT_TOO_COARSE, EXACT_TOO_LARGE, EXACT_NOT_FINITE } ExactVerdict;
/* The blocks of one tensor. most: what the micro-batches of all ranks had, against the levels they were rounded at. */
ExactVerdict exact_judge(const uint8_t *most, const uint8_t *levels, size_t blocks);
/* After EXACT_FITS: the levels of the next step, of the blocks of one tensor. */
void exact_predict(uint8_t *levels, const uint8_t *most, size_t blocks);

/* --- doubles --- */

/* Digit i counts 2^(16 i - 1088), the last one terms that are not finite. All zero: 0. */
enum { EXACT_DIGITS = 136 };
typedef struct {
    int64_t digits[EXACT_DIGITS];
} ExactSum;

/* Up to 2^40 terms. */
void exact_sum_add(ExactSum *sum, double x);
/* The same sum with digits that are 16 bits each (the highest: signed), so that those of 2^15 ranks can be added in
 * int32. */
void exact_sum_write(const ExactSum *sum, int32_t digits[EXACT_DIGITS]);
/* The value of added digits; a function of the sum alone, within 2 units of the last place of it. NaN if a term was not
 * finite. */
double exact_sum_read(const int32_t digits[EXACT_DIGITS]);
#endif
