// The arguments of ordered_spans and ordered_candidates, checked and made contiguous; the same on the CPU and on CUDA.
#pragma once

#include <limits>

#include "common/tensor.h"

namespace vpgfast {

constexpr int32_t kBefore = -1;   // of a choice: the one at the position before
constexpr int32_t kSkipped = -2;  // the sentence has no span

struct OrderedSpans {
  OrderedSpans(const Tensor& gains_in, const Tensor& present_in, int64_t min_length, int64_t max_length)
      : B(gains_in.dim() == 3 ? gains_in.size(0) : -1),
        M(B < 0 ? -1 : gains_in.size(1)),
        T(B < 0 ? -1 : gains_in.size(2)),
        min(min_length) {
    const char* op = "ordered_spans";
    check_sizes(op, "gains", gains_in, {-1, -1, -1});
    check_sizes(op, "present", present_in, {B, M});
    check_dtype(op, "present", present_in, ScalarType::Bool);
    STD_TORCH_CHECK(min >= 1, op, ": min_length is ", min, "; it must be 1 or more");
    STD_TORCH_CHECK(T < std::numeric_limits<int32_t>::max(), op, ": T is ", T, "; it must be below 2^31 - 1");
    width = max_length < T ? max_length - min + 1 : T - min + 1;
    gains = torch::stable::contiguous(gains_in);
    present = torch::stable::contiguous(present_in);
  }

  Tensor gains, present;
  int64_t B, M, T, min;
  int64_t width;  // how many lengths a span may have; 0 or less: none
};

struct OrderedCandidates {
  OrderedCandidates(const Tensor& spans_in, const Tensor& scores_in, const Tensor& present_in)
      : B(scores_in.dim() == 3 ? scores_in.size(0) : -1),
        M(B < 0 ? -1 : scores_in.size(1)),
        P(B < 0 ? -1 : scores_in.size(2)) {
    const char* op = "ordered_candidates";
    check_sizes(op, "scores", scores_in, {-1, -1, -1});
    check_sizes(op, "spans", spans_in, {B, M, P, 2});
    check_sizes(op, "present", present_in, {B, M});
    check_dtype(op, "spans", spans_in, ScalarType::Double);
    check_dtype(op, "scores", scores_in, ScalarType::Double);
    check_dtype(op, "present", present_in, ScalarType::Bool);
    spans = torch::stable::contiguous(spans_in);
    scores = torch::stable::contiguous(scores_in);
    present = torch::stable::contiguous(present_in);
  }

  Tensor spans, scores, present;
  int64_t B, M, P;
};

}  // namespace vpgfast
