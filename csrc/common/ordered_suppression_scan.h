// The arguments of ordered_suppression_scan, checked and made contiguous; the same on the CPU and on CUDA.
#pragma once

#include <optional>

#include "common/tensor.h"

namespace vpgfast {

struct SuppressionScan {
  SuppressionScan(const char* op, const Tensor& z_in, const Tensor& bias_in,
                  const std::optional<Tensor>& sentence_mask_in, bool reverse)
      : reverse(reverse) {
    check_sizes(op, "z", z_in, {-1, -1, -1});
    check_sizes(op, "bias", bias_in, {});
    check_dtype(op, "bias", bias_in, z_in.scalar_type());
    B = z_in.size(0), M = z_in.size(1), cells = z_in.size(2);
    z = torch::stable::contiguous(z_in);
    bias = bias_in;
    if (sentence_mask_in) {
      check_sizes(op, "sentence_mask", *sentence_mask_in, {B, M});
      check_dtype(op, "sentence_mask", *sentence_mask_in, ScalarType::Bool);
      sentence_mask = torch::stable::contiguous(*sentence_mask_in);
    }
  }
  // Of bool [B, M], or null where every sentence counts.
  const bool* sentences() const {
    return sentence_mask ? read<bool>(*sentence_mask) : nullptr;
  }

  Tensor z, bias;
  std::optional<Tensor> sentence_mask;
  int64_t B, M, cells;
  bool reverse;
};

}  // namespace vpgfast
