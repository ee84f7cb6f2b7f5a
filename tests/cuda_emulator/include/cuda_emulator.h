// What translated kernels call, between CUDA's names (cuda_runtime.h) and the emulator (../*.cpp).
#ifndef CUDA_EMULATOR_H_
#define CUDA_EMULATOR_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 : uint3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {
  }
};
using cudaStream_t = struct EmulatedStream*;

namespace cuda_emulator {

// Of the thread that runs. One object, so that its place tells it from the kernels' data.
struct Indices {
  uint3 thread, block;
  dim3 block_size, grid_size;
};
extern Indices indices;

// Where a barrier or a warp's meeting is written.
struct Place {
  const char* file = nullptr;
  int line = 0;
};
#define CUDA_EMULATOR_HERE cuda_emulator::Place place = {__builtin_FILE(), __builtin_LINE()}

struct Launch {
  Launch(const char* name, const void* function, dim3 grid, dim3 block, int64_t shared = 0, cudaStream_t = nullptr)
      : name(name), function(function), grid(grid), block(block), shared(shared) {
  }
  const char* name;
  const void* function;  // null where the call alone says which of a template's kernels it is
  dim3 grid, block;
  int64_t shared;
};
template <typename Result, typename... Arguments>
const void* address(int, Result (*function)(Arguments...)) {
  return reinterpret_cast<const void*>(function);
}

// Runs body(arguments) in every thread; `bytes` is how long the arguments are.
void run(const Launch&, void (*body)(void*), void* arguments, size_t bytes);

template <typename Kernel, typename... Arguments>
void launch(const Launch& launch, const Kernel& kernel, Arguments... arguments) {
  auto thread = [=] { kernel(arguments...); };
  run(launch, [](void* data) { (*static_cast<decltype(thread)*>(data))(); }, &thread, sizeof(thread));
}

void* dynamic_shared(size_t alignment);
void poison_shared(void* data, size_t bytes);  // when the block's first thread comes by
void barrier(Place);
int barrier_with_votes(bool vote, Place);  // how many of the block's threads vote for it
// Waits for the lanes of `mask` at this place. Returns the value of lane `source`, or, with source -1, the bits of the
// lanes whose value is not zero. Orders memory only if `fence`: a shuffle does not.
uint64_t meet(unsigned mask, uint64_t value, int source, bool fence, Place);
// The values of all lanes at this place, valid until the next meeting.
const uint64_t* gather(uint64_t value, Place);
int lane();
// What the hooks of the races build do not see. `size` bytes that the emulator reads or writes for the thread.
void access(const void* at, size_t size, bool writes);
void atomic(const void* at, size_t size, void* code);
void fence();  // before an atomic access it releases what the block has done, after one it acquires
// Asynchronous copies of a thread, in groups.
void copy_async(void* to, const void* from, size_t size, size_t zeros, Place);
void commit_copies();
void wait_for_copies(size_t groups_left);
[[noreturn]] void fail(const char* what, Place);

template <typename T>
T shuffle(unsigned mask, T value, int source, Place place) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = meet(mask, bits, source, false, place);
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

}  // namespace cuda_emulator
#endif
