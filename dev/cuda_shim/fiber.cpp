/* fiber.cpp: see fiber.h. */
#include "fiber.h"
#include "shim.h"
#include <cstdlib>
#include <sys/mman.h>
#if defined(__SANITIZE_ADDRESS__)
#define SHIM_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SHIM_ASAN
#endif
#endif
#ifdef SHIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace shim {
#ifdef SHIM_ASAN
enum { STACK_BYTES = 512 << 10 }; /* its frames are large */
#else
enum { STACK_BYTES = 128 << 10 };
#endif
enum { GUARD_BYTES = 4096 };

static Fiber program;
Fiber *fiber_current = &program;
static Fiber *left; /* the one that ran before fiber_current */

#ifndef SHIM_UCONTEXT
/* Saves what a function must preserve, changes stacks, restores. */
extern "C" void shim_stack_switch(void **save, void *load);
asm(R"(
.text
.globl shim_stack_switch
.type shim_stack_switch,@function
shim_stack_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp,(%rdi)
    movq %rsi,%rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size shim_stack_switch,.-shim_stack_switch
)");
#endif

/* First thing on the stack that was switched to. */
static void arrived() {
#ifdef SHIM_ASAN
    __sanitizer_finish_switch_fiber(fiber_current->fake_stack, &left->stack, &left->stack_bytes);
#endif
}

static void (*fiber_entry)();

static void first_entry() {
    arrived();
    fiber_entry();
    abort();
}

Fiber *fiber_new(void (*entry)()) {
    fiber_entry = entry;
    Fiber *f = new Fiber();
    char *memory = static_cast<char *>(mmap(nullptr, STACK_BYTES + GUARD_BYTES, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE)) die("no memory for stacks");
    f->stack = memory + GUARD_BYTES;
    f->stack_bytes = STACK_BYTES;
#ifdef SHIM_UCONTEXT
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = memory + GUARD_BYTES;
    f->context.uc_stack.ss_size = STACK_BYTES;
    f->context.uc_link = nullptr;
    makecontext(&f->context, first_entry, 0);
#else
    /* As shim_stack_switch would have left it: six registers, where to go, and a stack aligned as after a call. */
    void **top = reinterpret_cast<void **>(memory + GUARD_BYTES + STACK_BYTES) - 1;
    *--top = reinterpret_cast<void *>(first_entry);
    f->stack_pointer = top - 6;
    *--top = nullptr; /* rbp: ends a debugger's walk */
#endif
    return f;
}

void fiber_switch(Fiber *to) {
    left = fiber_current;
    fiber_current = to;
    Fiber *from = left;
#ifdef SHIM_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
#ifdef SHIM_UCONTEXT
    swapcontext(&from->context, &to->context);
#else
    shim_stack_switch(&from->stack_pointer, to->stack_pointer);
#endif
    arrived();
}
} // namespace shim
