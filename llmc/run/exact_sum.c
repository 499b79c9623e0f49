/* exact_sum.c: see exact_sum.h. */
#include "run/exact_sum.h"
#include "base/check.h"
#include <math.h>
#include <string.h>

/* --- grids --- */

int exact_bits(int64_t terms) {
    int bits = 30;
    CHECK(terms >= 1 && terms <= EXACT_TERMS_MAX);
    while ((int64_t)1 << (30 - bits) < terms) bits--;
    return bits;
}

ExactVerdict exact_judge(const uint8_t *most, const uint8_t *levels, size_t blocks) {
    enum { SPARE_MAX = 12 }; /* after a spike; more than exact_predict gives */
    int highest = 0, largest = 0;
    bool too_large = false;
    for (size_t i = 0; i < blocks; i++) {
        highest = levels[i] > highest ? levels[i] : highest;
        largest = most[i] > largest ? most[i] : largest;
        too_large = too_large || most[i] > levels[i];
    }
    if (largest == 255) return EXACT_NOT_FINITE;
    if (too_large) return EXACT_TOO_LARGE;
    return largest && highest > largest + SPARE_MAX ? EXACT_TOO_COARSE : EXACT_FITS;
}

/* A block may grow ROOM doublings from one step to the next. It falls a doubling a step at most, to HELD more than it had:
 * what was large is large again. And any block may grow to APART below the largest of its tensor: the row of a rare token
 * is still for long, and then has a gradient like the others'. */
void exact_predict(uint8_t *levels, const uint8_t *most, size_t blocks) {
    enum { ROOM = 4, HELD = 8, APART = 2, LEVEL_MAX = 254 };
    int largest = 0;
    for (size_t i = 0; i < blocks; i++) {
        int low = most[i] + ROOM, high = most[i] + HELD, level = levels[i] - 1;
        level = level < low ? low : level > high ? high : level;
        level = level > LEVEL_MAX ? LEVEL_MAX : level;
        largest = level > largest ? level : largest;
        levels[i] = (uint8_t)level;
    }
    for (size_t i = 0; i < blocks; i++)
        if (levels[i] < largest - APART) levels[i] = (uint8_t)(largest - APART);
}

/* --- doubles --- */

enum { DIGIT_BITS = 16, DIGIT_MASK = 0xffff, LOWEST = 1088, NOT_FINITE = EXACT_DIGITS - 1 };

/* The 53 bits of x, moved to a digit's border, are at most 68: in two halves. */
void exact_sum_add(ExactSum *sum, double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int field = (int)(bits >> 52 & 0x7ff);
    if (field == 0x7ff) {
        sum->digits[NOT_FINITE]++;
        return;
    }
    uint64_t mantissa = (bits & 0xfffffffffffff) | (uint64_t)(field > 0) << 52;
    int at = (field ? field : 1) - 1075 + LOWEST, shift = at % DIGIT_BITS;
    int64_t *digit = sum->digits + at / DIGIT_BITS, sign = bits >> 63 ? -1 : 1;
    uint64_t low = (mantissa & 0xffffffff) << shift, high = (mantissa >> 32) << shift;
    for (int i = 0; i < 3; i++) {
        digit[i] += sign * (int64_t)(low >> i * DIGIT_BITS & DIGIT_MASK);
        digit[i + 2] += sign * (int64_t)(high >> i * DIGIT_BITS & DIGIT_MASK);
    }
}

/* Digits but the highest into 0 .. 2^16 - 1. */
static void carry(int64_t digits[EXACT_DIGITS]) {
    for (int i = 0; i + 1 < NOT_FINITE; i++) {
        int64_t rest = digits[i] & DIGIT_MASK;
        digits[i + 1] += (digits[i] - rest) / (DIGIT_MASK + 1);
        digits[i] = rest;
    }
}

void exact_sum_write(const ExactSum *sum, int32_t digits[EXACT_DIGITS]) {
    ExactSum s = *sum;
    carry(s.digits);
    for (int i = 0; i < NOT_FINITE; i++) digits[i] = (int32_t)s.digits[i];
    digits[NOT_FINITE] = s.digits[NOT_FINITE] != 0;
}

double exact_sum_read(const int32_t digits[EXACT_DIGITS]) {
    int64_t s[EXACT_DIGITS];
    double value = 0;
    if (digits[NOT_FINITE]) return NAN;
    for (int i = 0; i < EXACT_DIGITS; i++) s[i] = digits[i];
    carry(s);
    bool negative = s[NOT_FINITE - 1] < 0;
    if (negative) { /* the magnitude, so that nothing cancels on the way */
        for (int i = 0; i < NOT_FINITE; i++) s[i] = -s[i];
        carry(s);
    }
    for (int i = NOT_FINITE - 1; i >= 0; i--) value += ldexp((double)s[i], i * DIGIT_BITS - LOWEST);
    return negative ? -value : value;
}
