// The arguments, results and incoming gradients of anchor_cross_attention, checked.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>

#include "common/tensor.h"

namespace vpgfast {

// Kernels walk over [B, H, N, width] tensors with the strides that they have, so that heads split off a projection are
// not copied; only the channels of a row must lie side by side.
inline Tensor with_whole_rows(const Tensor& tensor) {
  return tensor.stride(3) == 1 || tensor.size(3) == 1 ? tensor : torch::stable::contiguous(tensor);
}

// Laid out as `tensor` where its channels lie side by side; else contiguous.
inline Tensor empty_grad(const Tensor& tensor) {
  Tensor grad = torch::stable::empty_like(tensor);
  return grad.stride(3) == 1
             ? grad
             : torch::stable::new_empty(tensor, {tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3)});
}

struct AnchorAttention {
  AnchorAttention(const Tensor& q_content_in, const Tensor& q_pos_in, const Tensor& k_content_in,
                  const Tensor& k_pos_in, const Tensor& v_in, const std::optional<Tensor>& key_mask_in,
                  const std::optional<Tensor>& intervals_in) {
    const char* op = "anchor_cross_attention";
    check_sizes(op, "q_content", q_content_in, {-1, -1, -1, -1});
    check_sizes(op, "q_pos", q_pos_in, {-1, -1, -1, -1});
    check_sizes(op, "v", v_in, {-1, -1, -1, -1});
    B = q_content_in.size(0), H = q_content_in.size(1), Q = q_content_in.size(2), d = q_content_in.size(3);
    T = v_in.size(2), e = q_pos_in.size(3), f = v_in.size(3);
    STD_TORCH_CHECK(T < (int64_t{1} << 31), op, ": T is ", T, "; it must be below 2^31");
    check_sizes(op, "q_pos", q_pos_in, {B, H, Q, e});
    check_sizes(op, "k_content", k_content_in, {B, H, T, d});
    check_sizes(op, "k_pos", k_pos_in, {k_pos_in.size(0) == 1 ? 1 : B, H, T, e});
    check_sizes(op, "v", v_in, {B, H, T, f});
    for (const Tensor* tensor : {&q_pos_in, &k_content_in, &k_pos_in, &v_in}) {
      check_dtype(op, "q_pos, k_content, k_pos or v", *tensor, q_content_in.scalar_type());
    }
    q_content = with_whole_rows(q_content_in);
    q_pos = with_whole_rows(q_pos_in);
    k_content = with_whole_rows(k_content_in);
    k_pos = with_whole_rows(k_pos_in);
    v = with_whole_rows(v_in);
    if (key_mask_in) {
      check_sizes(op, "key_mask", *key_mask_in, {B, T});
      check_dtype(op, "key_mask", *key_mask_in, ScalarType::Bool);
      key_mask = torch::stable::contiguous(*key_mask_in);
    }
    if (intervals_in) {
      check_sizes(op, "intervals", *intervals_in, {B, Q, 2});
      check_dtype(op, "intervals", *intervals_in, ScalarType::Double);
      intervals = torch::stable::contiguous(*intervals_in);
    }
  }
  double scale() const {
    return 1.0 / std::sqrt(static_cast<double>(d + e));
  }
  // Whether one k_pos serves several videos, whose gradients for it are then summed.
  bool shares_k_pos() const {
    return k_pos.size(0) != B;
  }
  // Videos are divided into this many groups; within a group that gradient is summed in order, and the groups' sums are
  // added up at the end: the same sum whatever runs in parallel, in little memory.
  int64_t k_pos_slots() const {
    return shares_k_pos() ? std::min<int64_t>(B, 8) : B;
  }

  Tensor q_content, q_pos, k_content, k_pos, v;
  std::optional<Tensor> key_mask, intervals;
  int64_t B, H, Q, T, d, e, f;
};

struct AttentionOutputs {
  AttentionOutputs(const AnchorAttention& a, bool need_weights) {
    // In memory [B, Q, H, f]: joining the heads again then costs nothing.
    out = torch::stable::transpose(torch::stable::new_empty(a.v, {a.B, a.Q, a.H, a.f}), 1, 2);
    centroid = torch::stable::new_empty(a.v, {a.B, a.Q}, accumulate_dtype(a.v));
    mass = a.intervals ? torch::stable::new_empty(a.v, {a.B, a.Q}, accumulate_dtype(a.v))
                       : torch::stable::new_empty(a.v, {0}, accumulate_dtype(a.v));
    weights = need_weights ? torch::stable::new_empty(a.v, {a.B, a.H, a.Q, a.T}) : torch::stable::new_empty(a.v, {0});
  }
  Tensor out, centroid, mass, weights;
};

struct AttentionGrads {
  AttentionGrads(const AnchorAttention& a, const Tensor& out_in, const Tensor& centroid_in, const Tensor& mass_in,
                 const Tensor& weights_in) {
    const char* op = "anchor_cross_attention_backward";
    check_sizes(op, "grad_out", out_in, {a.B, a.H, a.Q, a.f});
    check_dtype(op, "grad_out", out_in, a.v.scalar_type());
    check_sizes(op, "grad_centroid", centroid_in, {a.B, a.Q});
    check_dtype(op, "grad_centroid", centroid_in, accumulate_dtype(a.v));
    out = with_whole_rows(out_in);
    centroid = torch::stable::contiguous(centroid_in);
    if (a.intervals) {
      check_sizes(op, "grad_mass", mass_in, {a.B, a.Q});
      check_dtype(op, "grad_mass", mass_in, accumulate_dtype(a.v));
    }
    mass = torch::stable::contiguous(mass_in);
    if (weights_in.numel() > 0) {
      check_sizes(op, "grad_weights", weights_in, {a.B, a.H, a.Q, a.T});
      check_dtype(op, "grad_weights", weights_in, a.v.scalar_type());
    }
    weights = torch::stable::contiguous(weights_in);
  }
  bool has_weights() const {
    return weights.numel() > 0;
  }
  Tensor out, centroid, mass, weights;
};

}  // namespace vpgfast
