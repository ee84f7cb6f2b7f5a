// The threads of a block as fibers: functions with a stack each, of which one runs until it hands over to another.
#pragma once

#include <cstdint>

namespace cuda_emulator {

constexpr int kMostThreads = 1024;
constexpr int kScheduler = -1;  // what starts the fibers, on the stack that it was called on

// Makes fiber `fiber` begin with entry(), which must never return, when it is next changed to.
void start_fiber(int fiber, void (*entry)());
// On with fiber `to` (or the scheduler) where it left off. `from` comes back from this when it is changed to again,
// never if it is `leaving`.
void change_fiber(int from, int to, bool leaving = false);
// To be called first by an entry.
void fiber_has_begun();
bool on_a_fibers_stack(uintptr_t address);

}  // namespace cuda_emulator
