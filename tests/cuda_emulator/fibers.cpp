// Fibers: a few lines of assembly on x86-64, ucontext (which asks the kernel at every change) elsewhere.

#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>

#if !defined(__x86_64__)
#define CUDA_EMULATOR_UCONTEXT 1
#endif
#if defined(CUDA_EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulator {
namespace {

constexpr size_t kStack = size_t{256} << 10, kGuard = 4096;
// Not a power of two: the stacks' tops take turns in the caches' sets.
constexpr size_t kDistance = kStack + 2 * kGuard;

char* allocate_stacks() {
  void* memory = mmap(nullptr, kMostThreads * kDistance, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::abort();
  }
  for (int fiber = 0; fiber < kMostThreads; ++fiber) {
    mprotect(static_cast<char*>(memory) + fiber * kDistance, kGuard, PROT_NONE);
  }
  return static_cast<char*>(memory);
}
char* const stacks = allocate_stacks();
char* stack_of(int fiber) {
  return stacks + fiber * kDistance + kGuard;
}

#if defined(CUDA_EMULATOR_UCONTEXT)
ucontext_t contexts[kMostThreads + 1];  // the first is the scheduler's
#else
void* stack_pointers[kMostThreads + 1];
#endif

#if defined(__SANITIZE_ADDRESS__)
const void* schedulers_stack = nullptr;
size_t schedulers_size = 0;
#endif

}  // namespace

#if defined(CUDA_EMULATOR_UCONTEXT)
static void switch_fiber(int from, int to) {
  swapcontext(&contexts[from + 1], &contexts[to + 1]);
}
void start_fiber(int fiber, void (*entry)()) {
  ucontext_t& context = contexts[fiber + 1];
  getcontext(&context);
  context.uc_stack.ss_sp = stack_of(fiber);
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_of(fiber), kStack);
#endif
}
#else
// Keeps the registers that a function must keep and the stack's pointer, and goes on where `to` was kept.
extern "C" void cuda_emulator_switch(void** from, void* to);
asm(R"(
.text
.globl cuda_emulator_switch
.hidden cuda_emulator_switch
.type cuda_emulator_switch, @function
cuda_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulator_switch, .-cuda_emulator_switch
)");
static void switch_fiber(int from, int to) {
  cuda_emulator_switch(&stack_pointers[from + 1], stack_pointers[to + 1]);
}
void start_fiber(int fiber, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_of(fiber), kStack);
#endif
  auto** top = reinterpret_cast<void**>(stack_of(fiber) + kStack - 64);
  *--top = nullptr;  // what the entry would return to; the stack is then aligned as by a call
  *--top = reinterpret_cast<void*>(entry);
  for (int kept = 0; kept < 6; ++kept) {
    *--top = nullptr;
  }
  stack_pointers[fiber + 1] = top;
}
#endif

void change_fiber(int from, int to, [[maybe_unused]] bool leaving) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(leaving ? nullptr : &fake, to == kScheduler ? schedulers_stack : stack_of(to),
                                 to == kScheduler ? schedulers_size : kStack);
#endif
  switch_fiber(from, to);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void fiber_has_begun() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &schedulers_stack, &schedulers_size);
#endif
}

bool on_a_fibers_stack(uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(stacks) < kMostThreads * kDistance;
}

}  // namespace cuda_emulator
