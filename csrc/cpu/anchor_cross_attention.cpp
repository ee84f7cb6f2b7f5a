// anchor_cross_attention on the CPU. See vpgfast/ops/anchor_cross_attention.py for what it computes.
//
// One task is one head of one video. Keys and values are read a block of clips at a time, where they lie if they can
// be; the logits of some queries with all clips are kept in the cache, never the attention of the whole batch.

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "common/anchor_cross_attention.h"
#include "cpu/attention_blocks.h"
#include "cpu/intervals_cpu.h"
#include "cpu/vector_math.h"

namespace vpgfast {
namespace {

// scratch.query = scaled queries `first` onward; scratch.weights = their attention over all clips.
template <typename scalar_t, typename T>
VPGFAST_ALWAYS_INLINE void attend(const Head<scalar_t>& head, int64_t first, int64_t count, Scratch<T>& scratch) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  pack<T>(head.q_content, first, count, head.scale, scratch.query, scratch.query_row);
  pack<T>(head.q_pos, first, count, head.scale, scratch.query + scratch.pos, scratch.query_row);
  for (int64_t t = 0; t < head.clips; t += kClips) {
    const int64_t clips = std::min(kClips, head.clips - t);
    products_with_clips(head.k_content, t, clips, scratch.query, scratch.query_row, count, scratch, scratch.weights,
                        false, [&](int64_t i, int64_t some) { ask_for_next_block(head.k_content, i, some); });
    products_with_clips(head.k_pos, t, clips, scratch.query + scratch.pos, scratch.query_row, count, scratch,
                        scratch.weights, true,
                        [&](int64_t i, int64_t some) { ask_for_next_block(head.k_pos, i, some); });
  }
  const auto clips = static_cast<int32_t>(head.clips);
  for (int64_t q = 0; q < count; ++q) {
    T* __restrict row = scratch.weights + q * scratch.row;
    if (head.mask != nullptr) {
      for (int32_t t = 0; t < clips; ++t) {
        row[t] += head.mask[t];
      }
    }
    T largest = -kInfinity;
#pragma omp simd reduction(max : largest)
    for (int32_t t = 0; t < clips; ++t) {
      largest = row[t] > largest ? row[t] : largest;
    }
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int32_t t = 0; t < clips; ++t) {
      const T e = exp_of_nonpositive(row[t] - largest);
      row[t] = row[t] == -kInfinity ? T{0} : e;  // NaN stays
      sum += row[t];
    }
    const T inverse = sum == T{0} ? T{0} : T{1} / sum;
    for (int32_t t = 0; t < clips; ++t) {
      row[t] *= inverse;
    }
  }
}

template <typename scalar_t>
void forward_head(const Head<scalar_t>& head, Scratch<accumulate_t<scalar_t>>& scratch, Rows<scalar_t> out,
                  accumulate_t<scalar_t>* centroid, accumulate_t<scalar_t>* mass, scalar_t* weights) {
  using T = accumulate_t<scalar_t>;
  for (int64_t first = 0; first < head.queries; first += scratch.at_once) {
    const int64_t count = std::min(scratch.at_once, head.queries - first);
    attend(head, first, count, scratch);
    for (int64_t q = 0; q < count; ++q) {
      const T* row = scratch.weights + q * scratch.row;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int32_t t = 0; t < static_cast<int32_t>(head.clips); ++t) {
        sum += row[t] * static_cast<T>(t);
      }
      centroid[first + q] = sum;
      if (head.intervals != nullptr) {
        const ClipRange inside = clips_inside(head.intervals + 2 * (first + q), head.clips);
        sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t t = inside.first; t < inside.last; ++t) {
          sum += row[t];
        }
        mass[first + q] = sum;
      }
      if (weights != nullptr) {
        for (int64_t t = 0; t < head.clips; ++t) {
          weights[(first + q) * head.clips + t] = static_cast<scalar_t>(row[t]);
        }
      }
    }
    std::fill_n(scratch.out, count * scratch.v_row, T{0});
    for (int64_t t = 0; t < head.clips; t += kClips) {
      const int64_t clips = std::min(kClips, head.clips - t);
      sums_over_clips(head.v, t, clips, scratch.weights, count, scratch, scratch.out, scratch.v_row,
                      [&](int64_t i, int64_t some) { ask_for_next_block(head.v, i, some); });
    }
    unpack<T>(scratch.out, scratch.v_row, out, first, count, T{1});
  }
}

// Incoming gradients of one head.
template <typename scalar_t>
struct HeadGrad {
  using T = accumulate_t<scalar_t>;
  Rows<const scalar_t> out;
  const T *centroid, *mass;  // of the averages over heads
  const scalar_t* weights;   // [queries, clips] or null
  T share;                   // of one head in the averages
};

// Where one head's gradient by keys or values is summed up: in the result itself, or beside it.
template <typename T>
struct ClipSums {
  ClipMatrix<T> sums;
  bool begun;  // holds a sum already, to be added to
};

// Asks for the rows that one block of clips will be written to, before the products that come first.
template <typename T>
VPGFAST_ALWAYS_INLINE void ask_for_sums(const ClipSums<T>& to, int64_t t, int64_t clips, int64_t width) {
  for (int64_t i = t; i < t + clips; ++i) {
    for (int64_t j = 0; j < width; j += 64 / static_cast<int64_t>(sizeof(T))) {
      __builtin_prefetch(to.sums.data + i * to.sums.row + j, 1, 2);
    }
  }
}

// sums[t, j] = sum_q weights[q, t] right[q, j] over the clips t of one block.
template <typename T>
VPGFAST_ALWAYS_INLINE void add_to_clips(const ClipSums<T>& to, int64_t t, int64_t clips, const T* weights,
                                        const T* right, int64_t right_row, int64_t width, int64_t count,
                                        const Scratch<T>& scratch, bool accumulate) {
  small_gemm<T>(clips, padded<T>(width), count, weights + t, 1, scratch.row, right, right_row,
                to.sums.data + t * to.sums.row, to.sums.row, accumulate || to.begun);
}

template <typename scalar_t>
void backward_head(const Head<scalar_t>& head, const HeadGrad<scalar_t>& grad, Scratch<accumulate_t<scalar_t>>& scratch,
                   const Rows<scalar_t>& by_q_content, const Rows<scalar_t>& by_q_pos,
                   const ClipSums<accumulate_t<scalar_t>>& by_k_content,
                   const ClipSums<accumulate_t<scalar_t>>& by_k_pos, const ClipSums<accumulate_t<scalar_t>>& by_v) {
  using T = accumulate_t<scalar_t>;
  for (int64_t first = 0; first < head.queries; first += scratch.at_once) {
    const int64_t count = std::min(scratch.at_once, head.queries - first);
    attend(head, first, count, scratch);
    pack<T>(grad.out, first, count, T{1}, scratch.out, scratch.v_row);
    for (int64_t t = 0; t < head.clips; t += kClips) {
      const int64_t clips = std::min(kClips, head.clips - t);
      products_with_clips(head.v, t, clips, scratch.out, scratch.v_row, count, scratch, scratch.by_weight, false,
                          [&](int64_t i, int64_t some) {
                            ask_for_next_block(head.v, i, some);
                            ask_for_sums(by_v, i, some, head.v.width);
                            ask_for_sums(by_k_content, i, some, head.k_content.width);
                            ask_for_sums(by_k_pos, i, some, head.k_pos.width);
                          });
    }
    const auto all = static_cast<int32_t>(head.clips);
    for (int64_t q = 0; q < count; ++q) {
      const T* __restrict p = scratch.weights + q * scratch.row;
      T* __restrict by_p = scratch.by_weight + q * scratch.row;
      const T slope = grad.centroid[first + q] * grad.share;
      for (int32_t t = 0; t < all; ++t) {
        by_p[t] += slope * static_cast<T>(t);
      }
      if (head.intervals != nullptr) {
        const ClipRange inside = clips_inside(head.intervals + 2 * (first + q), head.clips);
        const T by_mass = grad.mass[first + q] * grad.share;
        for (int64_t t = inside.first; t < inside.last; ++t) {
          by_p[t] += by_mass;
        }
      }
      if (grad.weights != nullptr) {
        for (int64_t t = 0; t < head.clips; ++t) {
          by_p[t] += static_cast<T>(grad.weights[(first + q) * head.clips + t]);
        }
      }
      T mean = 0;
#pragma omp simd reduction(+ : mean)
      for (int32_t t = 0; t < all; ++t) {
        mean += p[t] * by_p[t];
      }
      for (int32_t t = 0; t < all; ++t) {
        by_p[t] = p[t] * (by_p[t] - mean);
      }
    }
    const auto no_request = [](int64_t, int64_t) {};  // the keys have been read before
    std::fill_n(scratch.by_query, count * scratch.query_row, T{0});
    for (int64_t t = 0; t < head.clips; t += kClips) {
      const int64_t clips = std::min(kClips, head.clips - t);
      add_to_clips(by_v, t, clips, scratch.weights, scratch.out, scratch.v_row, head.v.width, count, scratch,
                   first > 0);
      add_to_clips(by_k_content, t, clips, scratch.by_weight, scratch.query, scratch.query_row, head.k_content.width,
                   count, scratch, first > 0);
      add_to_clips(by_k_pos, t, clips, scratch.by_weight, scratch.query + scratch.pos, scratch.query_row,
                   head.k_pos.width, count, scratch, first > 0);
      sums_over_clips(head.k_content, t, clips, scratch.by_weight, count, scratch, scratch.by_query, scratch.query_row,
                      no_request);
      sums_over_clips(head.k_pos, t, clips, scratch.by_weight, count, scratch, scratch.by_query + scratch.pos,
                      scratch.query_row, no_request);
    }
    unpack<T>(scratch.by_query, scratch.query_row, by_q_content, first, count, head.scale);
    unpack<T>(scratch.by_query + scratch.pos, scratch.query_row, by_q_pos, first, count, head.scale);
  }
}

template <typename scalar_t, typename T>
void store_rows(const T* from, int64_t from_row, int64_t clips, const Rows<scalar_t>& to) {
  unpack<T>(from, from_row, to, 0, clips, T{1});
}

// Gradients by keys or values, one head at a time: summed up where they belong, or through a buffer where they are in
// another dtype or do not fill registers.
template <typename scalar_t>
struct ClipGrads {
  using T = accumulate_t<scalar_t>;
  ClipGrads(const Tensor& tensor, int64_t clips)
      : tensor(tensor), row(padded<T>(tensor.size(3))), in_place(usable_in_place<T>(writable(0, 0))) {
    if (!in_place) {
      buffer.reset(new T[clips * row]);
    }
  }
  Rows<scalar_t> writable(int64_t b, int64_t h) const {
    return writable_rows_of<scalar_t>(tensor, b, h);
  }
  ClipSums<T> sums(int64_t b, int64_t h) const {
    if constexpr (std::is_same_v<T, scalar_t>) {
      if (in_place) {
        const Rows<scalar_t> rows = writable(b, h);
        return {{rows.data, rows.stride}, false};
      }
    }
    return {{buffer.get(), row}, false};
  }
  void store(int64_t b, int64_t h, int64_t clips) const {
    if (!in_place) {
      store_rows<scalar_t, T>(buffer.get(), row, clips, writable(b, h));
    }
  }
  const Tensor& tensor;
  int64_t row;
  bool in_place;
  std::unique_ptr<T[]> buffer;
};

template <typename T>
void add_to(const T* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] += from[i];
  }
}

// The mask of every video as 0 or -inf, padded: bytes beside floats would spoil the loops.
template <typename T>
std::vector<T> additive_mask(const AnchorAttention& a) {
  std::vector<T> mask;
  if (a.key_mask) {
    const bool* keep = read<bool>(*a.key_mask);
    mask.resize(a.B * a.T);
    for (int64_t i = 0; i < a.B * a.T; ++i) {
      mask[i] = keep[i] ? T{0} : -std::numeric_limits<T>::infinity();
    }
  }
  return mask;
}

template <typename scalar_t, typename T>
Head<scalar_t> head_of(const AnchorAttention& a, const std::vector<T>& mask, int64_t b, int64_t h) {
  return {rows_of<scalar_t>(a.q_content, b, h),
          rows_of<scalar_t>(a.q_pos, b, h),
          rows_of<scalar_t>(a.k_content, b, h),
          rows_of<scalar_t>(a.k_pos, b, h),
          rows_of<scalar_t>(a.v, b, h),
          mask.empty() ? nullptr : mask.data() + b * a.T,
          a.intervals ? read<double>(*a.intervals) + 2 * b * a.Q : nullptr,
          a.Q,
          a.T,
          static_cast<T>(a.scale())};
}

void check_intervals_in_order(const AnchorAttention& a) {
  if (a.intervals) {
    check_intervals("anchor_cross_attention", "intervals", read<double>(*a.intervals), a.B * a.Q);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> anchor_cross_attention(
    const Tensor& q_content, const Tensor& q_pos, const Tensor& k_content, const Tensor& k_pos, const Tensor& v,
    const std::optional<Tensor>& key_mask, const std::optional<Tensor>& intervals, bool need_weights) {
  const AnchorAttention a(q_content, q_pos, k_content, k_pos, v, key_mask, intervals);
  check_intervals_in_order(a);
  const AttentionOutputs to(a, need_weights);
  dispatch_floating("anchor_cross_attention", a.v.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const std::vector<T> mask = additive_mask<T>(a);
    std::vector<T> centroid(a.B * a.H * a.Q), mass(a.intervals ? a.B * a.H * a.Q : 0);
    torch::stable::parallel_for(0, a.B * a.H, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(a.Q, a.T, a.d, a.e, a.f, false);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t b = task / a.H, h = task % a.H;
        forward_head<scalar_t>(head_of<scalar_t>(a, mask, b, h), scratch, writable_rows_of<scalar_t>(to.out, b, h),
                               centroid.data() + task * a.Q, mass.empty() ? nullptr : mass.data() + task * a.Q,
                               need_weights ? write<scalar_t>(to.weights) + task * a.Q * a.T : nullptr);
      }
    });
    const auto average = [&](const std::vector<T>& of_heads, const Tensor& mean) {
      T* result = write<T>(mean);
      for (int64_t b = 0; b < a.B; ++b) {
        for (int64_t q = 0; q < a.Q; ++q) {
          T sum = 0;
          for (int64_t h = 0; h < a.H; ++h) {
            sum += of_heads[(b * a.H + h) * a.Q + q];
          }
          result[b * a.Q + q] = sum / static_cast<T>(a.H);
        }
      }
    };
    average(centroid, to.centroid);
    if (a.intervals) {
      average(mass, to.mass);
    }
  });
  return {to.out, to.centroid, to.mass, to.weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> anchor_cross_attention_backward(
    const Tensor& grad_out, const Tensor& grad_centroid, const Tensor& grad_mass, const Tensor& grad_weights,
    const Tensor& q_content, const Tensor& q_pos, const Tensor& k_content, const Tensor& k_pos, const Tensor& v,
    const std::optional<Tensor>& key_mask, const std::optional<Tensor>& intervals) {
  const AnchorAttention a(q_content, q_pos, k_content, k_pos, v, key_mask, intervals);
  check_intervals_in_order(a);
  const AttentionGrads from(a, grad_out, grad_centroid, grad_mass, grad_weights);
  const Tensor by_q_content = empty_grad(q_content), by_q_pos = empty_grad(q_pos), by_k_content = empty_grad(k_content);
  const Tensor by_k_pos = empty_grad(k_pos), by_v = empty_grad(v);
  if (a.B == 0 || a.Q == 0) {  // every gradient is an empty sum
    for (Tensor grad : {by_q_content, by_q_pos, by_k_content, by_k_pos, by_v}) {
      torch::stable::zero_(grad);
    }
    return {by_q_content, by_q_pos, by_k_content, by_k_pos, by_v};
  }
  dispatch_floating("anchor_cross_attention_backward", a.v.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const std::vector<T> mask = additive_mask<T>(a);
    // Positions shared by the batch: each slot of videos sums their gradient by itself, in order.
    const int64_t per_slot = (a.B + a.k_pos_slots() - 1) / a.k_pos_slots(), slots = (a.B + per_slot - 1) / per_slot;
    const int64_t pos_row = padded<T>(a.e), per_head = a.T * pos_row;
    const std::unique_ptr<T[]> shared(new T[a.shares_k_pos() ? slots * a.H * per_head : 0]);
    torch::stable::parallel_for(0, slots * a.H, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(a.Q, a.T, a.d, a.e, a.f, true);
      const ClipGrads<scalar_t> k_content_grads(by_k_content, a.T), k_pos_grads(by_k_pos, a.T), v_grads(by_v, a.T);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t slot = task / a.H, h = task % a.H;
        for (int64_t b = slot * per_slot; b < std::min(a.B, (slot + 1) * per_slot); ++b) {
          const HeadGrad<scalar_t> grad{
              rows_of<scalar_t>(from.out, b, h), read<T>(from.centroid) + b * a.Q,
              a.intervals ? read<T>(from.mass) + b * a.Q : nullptr,
              from.has_weights() ? read<scalar_t>(from.weights) + (b * a.H + h) * a.Q * a.T : nullptr,
              T{1} / static_cast<T>(a.H)};
          const ClipSums<T> shared_sums{{shared.get() + task * per_head, pos_row}, b > slot * per_slot};
          backward_head<scalar_t>(head_of<scalar_t>(a, mask, b, h), grad, scratch,
                                  writable_rows_of<scalar_t>(by_q_content, b, h),
                                  writable_rows_of<scalar_t>(by_q_pos, b, h), k_content_grads.sums(b, h),
                                  a.shares_k_pos() ? shared_sums : k_pos_grads.sums(b, h), v_grads.sums(b, h));
          k_content_grads.store(b, h, a.T);
          v_grads.store(b, h, a.T);
          if (!a.shares_k_pos()) {
            k_pos_grads.store(b, h, a.T);
          }
        }
      }
    });
    if (a.shares_k_pos()) {
      torch::stable::parallel_for(0, a.H, 1, [&](int64_t begin, int64_t end) {
        for (int64_t h = begin; h < end; ++h) {
          T* first = shared.get() + h * per_head;
          for (int64_t slot = 1; slot < slots; ++slot) {
            add_to<T>(first + slot * a.H * per_head, per_head, first);
          }
          store_rows<scalar_t, T>(first, pos_row, a.T, writable_rows_of<scalar_t>(by_k_pos, 0, h));
        }
      });
    }
  });
  return {by_q_content, by_q_pos, by_k_content, by_k_pos, by_v};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("anchor_cross_attention", TORCH_BOX(&anchor_cross_attention));
  m.impl("anchor_cross_attention_backward", TORCH_BOX(&anchor_cross_attention_backward));
}

}  // namespace vpgfast
