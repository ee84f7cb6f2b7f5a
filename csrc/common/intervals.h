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
  // Division by one in place of zero keeps the loop free of branches (nothing is shared then); NaN is kept.
  const T iou = shared / (joined <= T{0} ? T{1} : joined);
  if constexpr (!generalized) {
    return iou;
  } else {
    const T hull = larger(end_a, end_b) - lesser(start_a, start_b);
    return iou - (hull - joined) / (hull <= T{0} ? T{1} : hull);
  }
}

// Derivatives of the above by the ends of both intervals. Where two ends coincide the minimum's and maximum's
// derivative is shared half and half, as torch.minimum has it.
template <bool generalized, typename T>
VPGFAST_HOST_DEVICE void interval_iou_gradients(T start_a, T end_a, T start_b, T end_b, T& by_start_a, T& by_end_a,
                                                T& by_start_b, T& by_end_b) {
  const T overlap = lesser(end_a, end_b) - larger(start_a, start_b);
  const T shared = larger(overlap, T{0});
  const T joined = (end_a - start_a) + (end_b - start_b) - shared;
  const T inside = overlap > T{0} ? T{1} : T{0};
  // Shares of `end_a` in min(end_a, end_b) and of `start_a` in max(start_a, start_b); b has what is left of one.
  const T end_share = end_a < end_b ? T{1} : (end_a > end_b ? T{0} : T{0.5});
  const T start_share = start_a > start_b ? T{1} : (start_a < start_b ? T{0} : T{0.5});

  const T inverse = joined > T{0} ? T{1} / joined : T{0};
  const T iou = shared * inverse;
  const T by_shared = inside * (T{1} + iou) * inverse, by_length = iou * inverse;
  by_start_a = by_length - start_share * by_shared;
  by_end_a = end_share * by_shared - by_length;
  by_start_b = by_length - (T{1} - start_share) * by_shared;
  by_end_b = (T{1} - end_share) * by_shared - by_length;
  if constexpr (generalized) {  // joined / hull, less one
    const T hull = larger(end_a, end_b) - lesser(start_a, start_b);
    const T inverse_hull = hull > T{0} ? T{1} / hull : T{0};
    const T filled = joined * inverse_hull;
    by_start_a += (inside * start_share - T{1} + filled * (T{1} - start_share)) * inverse_hull;
    by_end_a += (T{1} - inside * end_share - filled * (T{1} - end_share)) * inverse_hull;
    by_start_b += (inside * (T{1} - start_share) - T{1} + filled * start_share) * inverse_hull;
    by_end_b += (T{1} - inside * (T{1} - end_share) - filled * end_share) * inverse_hull;
  }
}

// Those by the ends of a alone.
template <bool generalized, typename T>
VPGFAST_HOST_DEVICE void interval_iou_gradient(T start_a, T end_a, T start_b, T end_b, T& by_start, T& by_end) {
  T by_start_b, by_end_b;
  interval_iou_gradients<generalized>(start_a, end_a, start_b, end_b, by_start, by_end, by_start_b, by_end_b);
}

// Target of a map cell in 2D-TAN's loss: IoU below `min_iou` is 0, above `max_iou` 1, linear in between.
template <typename T>
VPGFAST_HOST_DEVICE T scaled_iou(T iou, T min_iou, T scale) {
  return lesser(larger((iou - min_iou) * scale, T{0}), T{1});
}

}  // namespace vpgfast
