// Reading and checking lists of intervals on the CPU.
#pragma once

#include <vector>

#include "common/intervals.h"
#include "common/tensor.h"

namespace vpgfast {

// The starts and the ends of `count` (start, end) pairs, each in an array of its own so that loops over them vectorise.
template <typename T>
struct IntervalArrays {
  template <typename scalar_t>
  void read(const scalar_t* pairs, int64_t count) {
    start.resize(count);
    end.resize(count);
    for (int64_t k = 0; k < count; ++k) {
      start[k] = static_cast<T>(pairs[2 * k]);
      end[k] = static_cast<T>(pairs[2 * k + 1]);
    }
  }
  std::vector<T> start, end;
};

template <typename scalar_t>
void check_intervals(const char* op, const char* name, const scalar_t* pairs, int64_t count) {
  int32_t inverted = 0;  // one look without branches; which interval it is matters only if there is one
#pragma omp simd reduction(| : inverted)
  for (int64_t k = 0; k < count; ++k) {
    inverted |= pairs[2 * k + 1] < pairs[2 * k];
  }
  for (int64_t k = 0; inverted != 0 && k < count; ++k) {
    const double start = static_cast<double>(pairs[2 * k]), end = static_cast<double>(pairs[2 * k + 1]);
    STD_TORCH_CHECK(!(end < start), op, ": interval ", k, " of ", name, " is (", start, ", ", end,
                    "); its end must not lie before its start");
  }
}

}  // namespace vpgfast
