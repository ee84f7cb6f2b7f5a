// What the emulator's parts know of the launch that runs.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "fibers.h"
#include "include/cuda_emulator.h"

namespace cuda_emulator {

constexpr int kWarp = 32;

// What may be set from outside (host.cpp).
struct Settings {
  unsigned seed;
  int poison;      // the byte that uninitialised memory holds
  int processors;  // multiprocessors that the device says it has
  bool capture;    // a CUDA graph is being captured: the host may not wait for the device
  bool accesses;   // what kernels read and write is looked at, for races or traffic
  int ends = 0;  // not 0: only so many blocks at either end of a grid run, and torch's memory is as the system gave it
};
extern Settings settings;

// A place in the run. Segments count up over all launches: a new one begins with a block and after every barrier.
struct Now {
  const Launch* launch = nullptr;
  const char* arguments = nullptr;  // of the kernel, on the host's stack
  size_t argument_bytes = 0;
  int threads = 0;  // of a block
  int thread = kScheduler;
  uint32_t segment = 1;
  uint32_t launchs_first = 1, blocks_first = 1;  // segments
};
extern Now now;
inline bool in_a_kernel() {
  return now.thread != kScheduler;
}

struct Region {
  uintptr_t start;
  size_t size;
  bool contains(uintptr_t address) const {
    return address - start < size;
  }
};
// The block's shared memory, as far as it has been come by.
extern std::vector<Region> shared_regions;
bool is_shared(uintptr_t address);

// What a thread of a warp comes after, by the ticks of its lanes. A fence orders all that is before it. Any meeting, a
// shuffle too, orders the reads before it alone: their values have been needed for it. A lane's own tick is the one
// that it is in.
struct Clocks {
  uint32_t fences[32] = {}, meetings[32] = {};
};
const Clocks& clocks(int thread);

extern uint64_t launches;  // so far

// What a failed launch says: an assertion, or a configuration that no device takes.
struct Failure {
  int code = 0;
  std::string message;
};
extern Failure failure;

// Told by the machine: races.cpp, traffic.cpp, host.cpp.
void races_end_launch();
bool counts_traffic();
void note_traffic(uintptr_t at, size_t size, bool writes, bool atomic, uintptr_t code);
void traffic_ends_block();
void traffic_ends_launch();
void check_launch_limits();
int64_t most_shared(const void* function);  // bytes that a block of it may have, of fixed size and not

[[noreturn]] void stop(const std::string& what);
std::string to_string(const Place&);

}  // namespace cuda_emulator
