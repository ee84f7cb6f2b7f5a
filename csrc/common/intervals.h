// Overlap of two intervals (start, end) on a line, and its gradient; the same formulas on the CPU and on CUDA.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define VPGFAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define VPGFAST_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace vpgfast {

// Minimum and maximum that hand on a NaN of the first argument, as plain comparisons (they vectorise).
template <typename T>
VPGFAST_HOST_DEVICE T lesser(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
VPGFAST_HOST_DEVICE T larger(T a, T b) {
  return b > a ? b : a;
}

// IoU, 0 where both intervals are empty. Generalised: minus the share of the hull that neither covers, 0 where the hull
// is empty (GIoU of Rezatofighi et al., CVPR 2019, on a line).
template <bool generalized, typename T>
VPGFAST_HOST_DEVICE T interval_iou(T start_a, T end_a, T start_b, T end_b) {
  const T shared = larger(lesser(end_a, end_b) - larger(start_a, start_b), T{0});
  const T joined = (end_a - start_a) + (end_b - start_b) - shared;
  // Division by one in place of zero keeps the loop free of branches; NaN fails both comparisons and is kept.
  const T iou = joined <= T{0} ? T{0} : shared / (joined <= T{0} ? T{1} : joined);
  if constexpr (!generalized) {
    return iou;
  } else {
    const T hull = larger(end_a, end_b) - lesser(start_a, start_b);
    return hull <= T{0} ? iou : iou - (hull - joined) / (hull <= T{0} ? T{1} : hull);
  }
}

// Derivatives of the above by the ends of interval a; those by b's are the same with the arguments exchanged. Where two
// ends coincide the minimum's and maximum's derivative is shared half and half, as torch.minimum has it.
template <bool generalized, typename T>
VPGFAST_HOST_DEVICE void interval_iou_gradient(T start_a, T end_a, T start_b, T end_b, T& by_start, T& by_end) {
  const T overlap = lesser(end_a, end_b) - larger(start_a, start_b);
  const T shared = larger(overlap, T{0});
  const T joined = (end_a - start_a) + (end_b - start_b) - shared;
  // Share of `end_a` in min(end_a, end_b) and of `start_a` in max(start_a, start_b).
  const T lower_end = end_a < end_b ? T{1} : (end_a > end_b ? T{0} : T{0.5});
  const T upper_start = start_a > start_b ? T{1} : (start_a < start_b ? T{0} : T{0.5});
  const T shared_by_start = overlap > T{0} ? -upper_start : T{0};
  const T shared_by_end = overlap > T{0} ? lower_end : T{0};
  const T joined_by_start = T{-1} - shared_by_start;
  const T joined_by_end = T{1} - shared_by_end;

  const T inverse = joined > T{0} ? T{1} / joined : T{0};
  const T iou = shared * inverse;
  by_start = (shared_by_start - iou * joined_by_start) * inverse;
  by_end = (shared_by_end - iou * joined_by_end) * inverse;
  if constexpr (generalized) {
    const T hull = larger(end_a, end_b) - lesser(start_a, start_b);
    const T inverse_hull = hull > T{0} ? T{1} / hull : T{0};
    const T filled = joined * inverse_hull;
    by_start += (joined_by_start + filled * (T{1} - upper_start)) * inverse_hull;
    by_end += (joined_by_end - filled * (T{1} - lower_end)) * inverse_hull;
  }
}

// Target of a map cell in 2D-TAN's loss: IoU below `min_iou` is 0, above `max_iou` 1, linear in between.
template <typename T>
VPGFAST_HOST_DEVICE T scaled_iou(T iou, T min_iou, T scale) {
  return lesser(larger((iou - min_iou) * scale, T{0}), T{1});
}

}  // namespace vpgfast
