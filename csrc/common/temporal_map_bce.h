// The arguments of temporal_map_bce, checked and made contiguous; the same on the CPU and on CUDA.
#pragma once

#include <optional>

#include "common/tensor.h"

namespace vpgfast {

struct MapBceArguments {
  MapBceArguments(const char* op, const Tensor& logits_in, const Tensor& spans_in, const Tensor& mask_in,
                  const std::optional<Tensor>& sentence_mask_in, double min_iou, double max_iou)
      : min_iou(min_iou), scale(1.0 / (max_iou - min_iou)) {
    check_sizes(op, "logits", logits_in, {-1, -1, -1, -1});
    B = logits_in.size(0), M = logits_in.size(1), T = logits_in.size(2);
    check_sizes(op, "logits", logits_in, {B, M, T, T});
    check_sizes(op, "spans", spans_in, {B, M, 2});
    check_dtype(op, "spans", spans_in, logits_in.scalar_type());
    check_sizes(op, "mask", mask_in, {-1, -1, T, T});
    check_dtype(op, "mask", mask_in, ScalarType::Bool);
    STD_TORCH_CHECK((mask_in.size(0) == B || mask_in.size(0) == 1) && (mask_in.size(1) == M || mask_in.size(1) == 1),
                    op, ": mask has the wrong shape");
    STD_TORCH_CHECK(T < (int64_t{1} << 24), op, ": T is ", T, "; it must be below 2^24");
    logits = torch::stable::contiguous(logits_in);
    spans = torch::stable::contiguous(spans_in);
    mask = torch::stable::contiguous(mask_in);
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

  Tensor logits, spans, mask;
  std::optional<Tensor> sentence_mask;
  int64_t B, M, T;
  double min_iou, scale;
};

}  // namespace vpgfast
