/* instructions.cpp: what the shim makes of single instructions: tensor cores, asynchronous copies. */
#include "shim.h"
#include <cmath>
#include <deque>
#include <vector>

namespace shim {

float exp2_fast(float x) {
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0 : y;
}

/* --- tensor cores: lanes show one another their registers --- */

static float bf16_half(const Slot &slot, int reg, int high) {
    uint32_t word;
    memcpy(&word, slot + 4 * reg, sizeof word);
    word = high ? word & 0xffff0000u : word << 16;
    float x;
    memcpy(&x, &word, sizeof x);
    return x;
}

void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const Slot *slots = exchange(0xffffffffu, mine, sizeof mine, "mma.m16n8k16");
    int group = thread->lane / 4, in_group = thread->lane % 4;
    for (int i = 0; i < 4; i++) {
        int lower_row = i / 2, col = in_group * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) {
            int holder = k % 8 / 2, right = k / 8;
            sum += bf16_half(slots[group * 4 + holder], lower_row + 2 * right, k % 2) *
                   bf16_half(slots[col * 4 + holder], 4 + right, k % 2);
        }
        d[i] += sum;
    }
}

void ldmatrix_x4(uint32_t r[4], const void *row, bool transposed) {
    const Slot *slots = exchange(0xffffffffu, &row, sizeof row, "ldmatrix");
    int lane = thread->lane;
    aligned(row, 16);
    for (int m = 0; m < 4; m++) {
        r[m] = 0;
        for (int high = 0; high < 2; high++) {
            int i = lane / 4, j = lane % 4 * 2 + high;
            const char *address;
            memcpy(&address, slots[m * 8 + (transposed ? j : i)], sizeof address);
            uint16_t value;
            memcpy(&value, address + sizeof value * (size_t)(transposed ? i : j), sizeof value);
            r[m] |= (uint32_t)value << 16 * high;
        }
    }
}

/* --- asynchronous copies: the source is read as late as is allowed, the target is no number until then --- */

struct Copy {
    void *to;
    const void *from; /* NULL: zeros */
};
struct Copies {
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
};
enum { COPY_BYTES = 16 };

void copy_async_16(void *to, const void *global, bool valid) {
    aligned(to, COPY_BYTES);
    aligned(global, COPY_BYTES);
    if (!thread->copies) thread->copies = new Copies;
    memset(to, 0xff, COPY_BYTES);
    thread->copies->open.push_back({to, valid ? global : nullptr});
}

void copy_async_commit() {
    if (!thread->copies) thread->copies = new Copies;
    thread->copies->groups.push_back(std::move(thread->copies->open));
    thread->copies->open.clear();
}

void copy_async_wait(size_t newest) {
    while (thread->copies && thread->copies->groups.size() > newest) {
        for (const Copy &copy : thread->copies->groups.front()) {
            if (copy.from)
                memcpy(copy.to, copy.from, COPY_BYTES);
            else
                memset(copy.to, 0, COPY_BYTES);
        }
        thread->copies->groups.pop_front();
    }
}

void copies_dropped(Thread *t) {
    if (t->copies && !t->copies->open.empty()) die("returned with copies that belong to no group");
    if (t->copies && !t->copies->groups.empty()) die("returned with copies still on the way");
    delete t->copies;
    t->copies = nullptr;
}
} // namespace shim
