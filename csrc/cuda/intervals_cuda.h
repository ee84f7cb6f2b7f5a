// Reading and checking intervals on CUDA.
#pragma once

#include <cassert>

#include "common/intervals.h"
#include "cuda/launch.h"

namespace vpgfast {

template <typename T>
struct alignas(2 * sizeof(T)) Interval {
  T start, end;
};

// Interval `k` of a list of (start, end) pairs. An inverted one is a device-side assertion, as a bad index is in torch:
// to report it on the host would stall every call.
template <typename T, typename scalar_t>
__device__ __forceinline__ Interval<T> read_interval(const scalar_t* pairs, int64_t k) {
  const Interval<T> interval{static_cast<T>(pairs[2 * k]), static_cast<T>(pairs[2 * k + 1])};
  assert(!(interval.end < interval.start) && "vpgfast: an interval's end must not lie before its start");
  return interval;
}

// Cell (i, j) of a map of `size` clips, below 2^24, as fractions of the duration.
template <typename T>
__device__ __forceinline__ Interval<T> map_cell(int i, int j, int size) {
  return {static_cast<T>(i) / static_cast<T>(size), static_cast<T>(j + 1) / static_cast<T>(size)};
}

}  // namespace vpgfast
