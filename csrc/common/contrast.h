// Windows of a curve and their contrast, the mean inside minus the mean outside; the same on the CPU and on CUDA.
//
// Positions lie between clips: a window is a pair of a start and an end. With n the weight of all usable clips, D(p)
// the weight of those before p, P(p) the sum of weight times value of those before p, E(p) = n P(p) - P(T) D(p), and A
// = D(end) - D(start) the weight inside,
//
//   contrast = (E(end) - E(start)) / (A (n - A)).
//
// All bounds below are of what is computed, not of what is meant: differences, products and quotients of rounded
// numbers rise and fall as those of exact ones do.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>

#include "common/intervals.h"
#include "common/tensor.h"

namespace vpgfast {

struct Window {
  double score;
  int64_t start, end;
};

// Whether `a` comes before `b`: by score, then the earlier start, then the shorter one.
VPGFAST_HOST_DEVICE bool comes_before(const Window& a, const Window& b) {
  return a.score != b.score ? a.score > b.score : a.start != b.start ? a.start < b.start : a.end < b.end;
}

// The first and the last position of a range.
struct Range {
  int64_t first, last;
};

// One curve. `piece` of a position is where the clips begin that are usable up to it without a gap: a window must start
// there or later.
struct Curve {
  const double* D;
  const double* E;
  const int32_t* piece;
  int64_t T;
  int64_t min_length, max_length;
  double n;            // D(T)
  double least, most;  // weight of any window, except of the one that holds every usable clip

  VPGFAST_HOST_DEVICE bool is_window(int64_t start, int64_t end) const {
    return end - start >= min_length && end - start <= max_length && start >= piece[end];
  }

  // With nothing outside (or as little as no float64 can tell from nothing), 0.
  VPGFAST_HOST_DEVICE double contrast(int64_t start, int64_t end) const {
    const double A = D[end] - D[start], spread = A * (n - A);
    return spread > 0 ? (E[end] - E[start]) / spread : 0.0;
  }

  VPGFAST_HOST_DEVICE double iou(int64_t start, int64_t end, int64_t other_start, int64_t other_end) const {
    const double shared = D[lesser(end, other_end)] - D[larger(start, other_start)];
    const double joined = (D[end] - D[start]) + (D[other_end] - D[other_start]) - larger(shared, 0.0);
    return joined > 0 ? larger(shared, 0.0) / joined : 0.0;
  }

  // Whether a window may be kept beside another one.
  VPGFAST_HOST_DEVICE bool apart(int64_t start, int64_t end, int64_t other_start, int64_t other_end,
                                 double threshold) const {
    const bool same = start == other_start && end == other_end;
    return !same && iou(start, end, other_start, other_end) <= threshold;
  }

  // Leaves only starts and ends that are in some window; false if there is none.
  VPGFAST_HOST_DEVICE bool narrow(Range& starts, Range& ends) const {
    ends.first = larger(ends.first, starts.first + min_length);
    ends.last = lesser(ends.last, starts.last + max_length);
    starts.last = lesser(starts.last, ends.last - min_length);
    if (ends.first > ends.last) {
      return false;
    }
    starts.first = larger(starts.first, larger<int64_t>(ends.first - max_length, piece[ends.first]));
    return starts.first <= starts.last;
  }

  // At least the contrast of every window with these starts and ends, except of the one that holds every usable clip;
  // -inf if there is none. `rise`: the largest E(end) less the smallest E(start).
  VPGFAST_HOST_DEVICE double bound(const Range& starts, const Range& ends, double rise) const {
    const double from = larger(D[ends.first] - D[larger<int64_t>(starts.last, 0)], least);
    const double to = lesser(D[ends.last] - D[starts.first], most);
    if (!(from <= to)) {
      return -std::numeric_limits<double>::infinity();
    }
    // A (n - A) is concave: smallest at one end of the range of A. What it is rounded to may lie 2 roundings off.
    const double slack = 0x1p-50, at_from = from * (n - from), at_to = to * (n - to);
    const double spread = lesser(at_from, at_to) * (1 - slack);
    if (!(spread > 0)) {
      return rise >= 0 ? std::numeric_limits<double>::infinity() : 0.0;
    }
    if (rise >= 0) {
      return rise / spread;
    }
    const double middle = from <= n / 2 && n / 2 <= to ? n * n / 4 : 0.0;
    return rise / (larger(larger(at_from, at_to), middle) * (1 + slack));
  }

  // Whether every window with these starts and ends overlaps the other one more than `threshold`: as an end moves away
  // from the other window's, IoU falls, so the least is at a corner. Beyond rounding.
  VPGFAST_HOST_DEVICE bool all_overlap(const Range& starts, const Range& ends, int64_t other_start, int64_t other_end,
                                       double threshold) const {
    const double limit = threshold + 0x1p-40;
    return iou(starts.first, ends.first, other_start, other_end) > limit &&
           iou(starts.first, ends.last, other_start, other_end) > limit &&
           iou(starts.last, ends.first, other_start, other_end) > limit &&
           iou(starts.last, ends.last, other_start, other_end) > limit;
  }
};

// The arguments of temporal_contrast_spans, checked and made contiguous.
struct ContrastSpans {
  ContrastSpans(const Tensor& curves_in, const std::optional<Tensor>& mask_in, const std::optional<Tensor>& weights_in,
                int64_t min_length, int64_t max_length, int64_t top_k) {
    const char* op = "temporal_contrast_spans";
    check_sizes(op, "curves", curves_in, {-1, -1, -1});
    B = curves_in.size(0), M = curves_in.size(1), T = curves_in.size(2);
    STD_TORCH_CHECK(min_length >= 1, op, ": min_length is ", min_length, "; it must be 1 or more");
    STD_TORCH_CHECK(top_k >= 0, op, ": top_k is ", top_k, "; it must be 0 or more");
    STD_TORCH_CHECK(T < std::numeric_limits<int32_t>::max(), op, ": T is ", T, "; it must be below 2^31 - 1");
    shortest = min_length;
    longest = std::min(max_length, T);
    curves = torch::stable::contiguous(curves_in);
    if (mask_in) {
      check_sizes(op, "mask", *mask_in, {B, T});
      check_dtype(op, "mask", *mask_in, ScalarType::Bool);
      mask = torch::stable::contiguous(*mask_in);
    }
    if (weights_in) {
      check_sizes(op, "weights", *weights_in, {B, T});
      check_dtype(op, "weights", *weights_in, ScalarType::Double);
      weights = torch::stable::contiguous(*weights_in);
    }
    scores = torch::stable::new_empty(curves, {B, M, top_k}, ScalarType::Double);
    spans = torch::stable::new_empty(curves, {B, M, top_k, 2}, ScalarType::Long);
    pairs = torch::stable::new_empty(curves, {B, M}, ScalarType::Long);
  }

  // Null where all are usable, or of equal weight.
  const bool* usable() const {
    return mask ? read<bool>(*mask) : nullptr;
  }
  const double* weight() const {
    return weights ? read<double>(*weights) : nullptr;
  }

  int64_t B, M, T, shortest, longest;
  Tensor curves;
  std::optional<Tensor> mask, weights;
  Tensor scores, spans, pairs;  // the results; pairs of blocks that were looked at, for each curve
};

}  // namespace vpgfast
