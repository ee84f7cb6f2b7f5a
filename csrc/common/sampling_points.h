// Where a proposal is sampled, and which clips each point reads; the same on the CPU and on CUDA.
#pragma once

#include <cstdint>

#include "common/intervals.h"

namespace vpgfast {

// `count` points from start to end, both included; a single one lies in the middle.
//
// In double, and product and sum rounded one after the other, never fused: as BMN's released sample mask was made. A
// point at exactly -1 reads nothing and one just above it reads clip 0 whole, so the last bit matters there.
struct SamplingPoints {
  VPGFAST_HOST_DEVICE SamplingPoints(double start, double end, int64_t count)
      : first(count == 1 ? (start + end) / 2 : start), step(count == 1 ? 0.0 : (end - start) / (count - 1)) {
  }
  VPGFAST_HOST_DEVICE double operator[](int64_t m) const {
#if defined(__CUDA_ARCH__)
    return __dadd_rn(first, __dmul_rn(static_cast<double>(m), step));
#else
    const volatile double along = static_cast<double>(m) * step;
    return first + along;
#endif
  }
  double first, step;
};

// Linear interpolation at t between clip `lower` and the next, with weight 0 for what lies outside 0 .. T-1: the border
// rule of BMN's mask, lower = trunc(t) and upper = ceil(t), by which t in (-1, 0) reads clip 0 whole.
struct Neighbours {
  VPGFAST_HOST_DEVICE Neighbours(double t, int64_t T) : lower(0), lower_weight(0), upper_weight(0) {
    if (!(t > -1 && t < static_cast<double>(T)) ||
        T == 0) {  // also NaN, of a proposal whose length is no finite number
      return;
    }
    lower = static_cast<int64_t>(t);
    const double fraction = t < 0 ? 0.0 : t - static_cast<double>(lower);
    lower_weight = 1 - fraction;
    upper_weight = lower + 1 < T ? fraction : 0.0;
  }
  int64_t lower;
  double lower_weight, upper_weight;
};

}  // namespace vpgfast
