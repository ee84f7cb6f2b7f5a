// The proposals of sample_proposals and proposal_conv, their shapes checked; the same on the CPU and on CUDA.
#pragma once

#include "common/tensor.h"

namespace vpgfast {

// float64 [P, 2], or [B, P, 2] where every video has its own.
struct Proposals {
  Proposals(const char* op, const Tensor& proposals, int64_t B, int64_t num_samples, int64_t samples_per_bin)
      : tensor(torch::stable::contiguous(proposals)), N(num_samples), per_bin(samples_per_bin) {
    check_dtype(op, "proposals", tensor, ScalarType::Double);
    each_video = tensor.dim() == 3;
    if (each_video) {
      check_sizes(op, "proposals", tensor, {B, -1, 2});
    } else {
      check_sizes(op, "proposals", tensor, {-1, 2});
    }
    STD_TORCH_CHECK(N >= 1 && per_bin >= 1, op, ": num_samples is ", N, " and samples_per_bin is ", per_bin,
                    "; both must be 1 or more");
    P = tensor.size(tensor.dim() - 2);
    ends = read<double>(tensor);
  }

  Tensor tensor;
  const double* ends;
  bool each_video;
  int64_t P, N, per_bin;
};

}  // namespace vpgfast
