/* fiber.h: stacks that hand the processor to one another: a switch costs a few nanoseconds on x86-64, where it is six
 * pushes and six pops; elsewhere it is ucontext's. AddressSanitizer is told of every switch. */
#ifndef SHIM_FIBER_H
#define SHIM_FIBER_H
#include <cstddef>
#if !defined(__x86_64__) && !defined(SHIM_UCONTEXT)
#define SHIM_UCONTEXT
#endif
#ifdef SHIM_UCONTEXT
#include <ucontext.h>
#endif

namespace shim {
struct Fiber {
    void *stack_pointer;
    const void *stack; /* lowest address */
    size_t stack_bytes;
    void *fake_stack; /* AddressSanitizer's */
#ifdef SHIM_UCONTEXT
    ucontext_t context;
#endif
};
/* The one that runs; the program's own stack is a fiber, too. */
extern Fiber *fiber_current;
/* Runs entry, which must not return, when it is first switched to. */
Fiber *fiber_new(void (*entry)());
void fiber_switch(Fiber *to);
} // namespace shim
#endif
