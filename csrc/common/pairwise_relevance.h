// The arguments of pairwise_relevance, checked and made contiguous; the same on the CPU and on CUDA.
#pragma once

#include "common/tensor.h"

namespace vpgfast {

struct Relevance {
  Relevance(const char* op, const Tensor& a_in, const Tensor& b_in, const Tensor& w_in, const Tensor& bias_in) {
    check_sizes(op, "a", a_in, {-1, -1});
    N = a_in.size(0), M = b_in.size(0), H = a_in.size(1);
    check_sizes(op, "b", b_in, {M, H});
    check_sizes(op, "w", w_in, {H});
    check_sizes(op, "bias", bias_in, {});
    for (const Tensor* tensor : {&b_in, &w_in, &bias_in}) {
      check_dtype(op, "b, w or bias", *tensor, a_in.scalar_type());
    }
    a = torch::stable::contiguous(a_in);
    b = torch::stable::contiguous(b_in);
    w = torch::stable::contiguous(w_in);
    bias = bias_in;
  }

  Tensor a, b, w, bias;
  int64_t N, M, H;
};

}  // namespace vpgfast
