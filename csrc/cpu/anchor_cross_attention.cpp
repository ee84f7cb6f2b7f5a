// anchor_cross_attention on the CPU. See vpgfast/ops/anchor_cross_attention.py for what it computes.
//
// One task is one head of one video. Content and position are joined a block of clips at a time, in the cache; the
// logits of some queries with all clips are kept there too, never the attention of the whole batch.

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "common/anchor_cross_attention.h"
#include "common/multiversion.h"
#include "cpu/intervals_cpu.h"
#include "cpu/small_gemm.h"
#include "cpu/vector_math.h"

namespace vpgfast {
namespace {

constexpr int64_t kClips = 128;                // of a block
constexpr int64_t kLogits = int64_t{1} << 16;  // of the queries that are treated together
constexpr int64_t kQueries = 64;
constexpr int64_t kRowsAhead = 16;  // that a store asks for

// Rows of one head of a [B, H, N, width] tensor, `stride` apart, and where those of the head after it begin.
template <typename scalar_t>
struct Rows {
  scalar_t* data;
  int64_t stride, width, count;
  scalar_t* next;

  // The row one block of `block` rows after row `i`, in this head or the next. Only for prefetching.
  scalar_t* ahead(int64_t i, int64_t block) const {
    return i + block < count ? data + (i + block) * stride : next + (i + block - count) % count * stride;
  }
};

template <typename scalar_t>
Rows<scalar_t> rows_at(scalar_t* data, const Tensor& tensor, int64_t b, int64_t h) {
  const bool last = h + 1 == tensor.size(1);
  const int64_t next_b = last ? std::min(b + 1, tensor.size(0) - 1) : b, next_h = last ? 0 : h + 1;
  return {data + b * tensor.stride(0) + h * tensor.stride(1), tensor.stride(2), tensor.size(3), tensor.size(2),
          data + next_b * tensor.stride(0) + next_h * tensor.stride(1)};
}
template <typename scalar_t>
Rows<const scalar_t> rows_of(const Tensor& tensor, int64_t b, int64_t h) {
  return rows_at(read<scalar_t>(tensor), tensor, tensor.size(0) == 1 ? 0 : b, h);
}
template <typename scalar_t>
Rows<scalar_t> writable_rows_of(const Tensor& tensor, int64_t b, int64_t h) {
  return rows_at(write<scalar_t>(tensor), tensor, b, h);
}

// to[i, column + j] = rows[first + i, j] * scale. Asks for the block after it: a head's rows are too few for the
// hardware to see that they will be needed, and most of the time would go by waiting for them.
template <typename T, typename scalar_t>
VPGFAST_ALWAYS_INLINE void pack(Rows<const scalar_t> rows, int64_t first, int64_t count, T scale, T* to, int64_t to_row,
                                int64_t column) {
  constexpr int64_t kWidth = Vector<T>::kWidth;
  for (int64_t i = 0; i < count; ++i) {
    const scalar_t* from = rows.data + (first + i) * rows.stride;
    const scalar_t* ahead = rows.ahead(first + i, kClips);
    for (int64_t j = 0; j < rows.width; j += 64 / static_cast<int64_t>(sizeof(scalar_t))) {
      __builtin_prefetch(ahead + j, 0, 2);
    }
    T* row = to + i * to_row + column;
    int64_t j = 0;
    if constexpr (std::is_same_v<T, scalar_t>) {
      using unaligned = typename Vector<T>::unaligned;
      for (; j + kWidth <= rows.width; j += kWidth) {
        *reinterpret_cast<unaligned*>(row + j) = *reinterpret_cast<const unaligned*>(from + j) * scale;
      }
    }
    for (; j < rows.width; ++j) {
      row[j] = static_cast<T>(from[j]) * scale;
    }
  }
}

// rows[first + i, j] = from[i, column + j] * scale
template <typename T, typename scalar_t>
VPGFAST_ALWAYS_INLINE void unpack(const T* from, int64_t from_row, int64_t column, Rows<scalar_t> rows, int64_t first,
                                  int64_t count, T scale) {
  constexpr int64_t kWidth = Vector<T>::kWidth;
  for (int64_t i = 0; i < count; ++i) {
    const T* row = from + i * from_row + column;
    scalar_t* to = rows.data + (first + i) * rows.stride;
    const scalar_t* ahead = rows.ahead(first + i, kRowsAhead);
    for (int64_t j = 0; j < rows.width; j += 64 / static_cast<int64_t>(sizeof(scalar_t))) {
      __builtin_prefetch(ahead + j, 1, 3);
    }
    int64_t j = 0;
    if constexpr (std::is_same_v<T, scalar_t>) {
      using unaligned = typename Vector<T>::unaligned;
      for (; j + kWidth <= rows.width; j += kWidth) {
        *reinterpret_cast<unaligned*>(to + j) = *reinterpret_cast<const unaligned*>(row + j) * scale;
      }
    }
    for (; j < rows.width; ++j) {
      to[j] = static_cast<scalar_t>(row[j] * scale);
    }
  }
}

// What one task reads: the keys, values and queries of a head, and which clips take part.
template <typename scalar_t>
struct Head {
  using T = accumulate_t<scalar_t>;
  Rows<const scalar_t> q_content, q_pos, k_content, k_pos, v;
  const T* mask;            // [clips], 0 or -inf, padded; null if all clips take part
  const double* intervals;  // [queries, 2] or null
  int64_t queries, clips;
  T scale;

  int64_t key_width() const {
    return q_content.width + q_pos.width;
  }
};

// Clips first .. last - 1 inside a query's interval.
struct ClipRange {
  int64_t first, last;
};
inline ClipRange clips_inside(const double* interval, int64_t clips) {
  if (!(interval[0] <= interval[1])) {
    return {0, 0};  // NaN: no interval
  }
  const double limit = static_cast<double>(clips);
  const auto first = static_cast<int64_t>(std::ceil(std::clamp(interval[0], 0.0, limit)));
  const auto last = static_cast<int64_t>(std::floor(std::clamp(interval[1], -1.0, limit - 1))) + 1;
  return {first, std::max(first, last)};
}

// Scratch of one thread. Rows are padded to whole vectors; what lies in the padding is computed with and never read.
template <typename T>
struct Scratch {
  Scratch(int64_t queries, int64_t clips, int64_t key_width, int64_t v_width, bool backward)
      : at_once(
            std::clamp<int64_t>(kLogits / std::max<int64_t>(1, clips), 1, std::clamp<int64_t>(queries, 1, kQueries))),
        row(padded<T>(clips)),
        key_row(padded<T>(key_width)),
        v_row(padded<T>(v_width)),
        query(at_once * key_row),
        weights(at_once * row),
        block(padded<T>(kClips) * std::max(key_row, v_row)),
        block_transposed(padded<T>(kClips) * std::max(key_row, v_row)),
        out(at_once * v_row) {
    if (backward) {
      by_weight.resize(at_once * row);
      by_query.resize(at_once * key_row);
      by_key.resize(clips * key_row);
      by_v.resize(clips * v_row);
    }
  }
  int64_t at_once, row, key_row, v_row;  // queries treated together; lengths of padded rows
  std::vector<T> query, weights, block, block_transposed, out;
  std::vector<T> by_weight, by_query, by_key, by_v;
};

template <typename T>
VPGFAST_ALWAYS_INLINE void transpose(const T* from, int64_t from_row, int64_t rows, int64_t columns, T* to,
                                     int64_t to_row) {
  constexpr int64_t kWidth = Vector<T>::kWidth;
  for (int64_t i = 0; i < rows; i += kWidth) {
    for (int64_t j = 0; j < columns; j += kWidth) {
      transpose_square(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
    }
  }
}

template <typename scalar_t, typename T>
VPGFAST_ALWAYS_INLINE void pack_keys(const Head<scalar_t>& head, int64_t first, int64_t count, Scratch<T>& scratch) {
  pack<T>(head.k_content, first, count, T{1}, scratch.block.data(), scratch.key_row, 0);
  pack<T>(head.k_pos, first, count, T{1}, scratch.block.data(), scratch.key_row, head.k_content.width);
}

// scratch.query = scaled queries `first` onward; scratch.weights = their attention over all clips.
template <typename scalar_t, typename T>
VPGFAST_ALWAYS_INLINE void attend(const Head<scalar_t>& head, int64_t first, int64_t count, Scratch<T>& scratch) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  const int64_t width = head.key_width();
  pack<T>(head.q_content, first, count, head.scale, scratch.query.data(), scratch.key_row, 0);
  pack<T>(head.q_pos, first, count, head.scale, scratch.query.data(), scratch.key_row, head.q_content.width);
  constexpr int64_t kRow = padded<T>(kClips);
  for (int64_t t = 0; t < head.clips; t += kClips) {
    const int64_t clips = std::min(kClips, head.clips - t);
    pack_keys(head, t, clips, scratch);
    transpose(scratch.block.data(), scratch.key_row, clips, width, scratch.block_transposed.data(), kRow);
    small_gemm<T>(count, padded<T>(clips), width, scratch.query.data(), scratch.key_row, 1,
                  scratch.block_transposed.data(), kRow, scratch.weights.data() + t, scratch.row, false);
  }
  const auto clips = static_cast<int32_t>(head.clips);
  for (int64_t q = 0; q < count; ++q) {
    T* __restrict row = scratch.weights.data() + q * scratch.row;
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
VPGFAST_MULTIVERSION void forward_head(const Head<scalar_t>& head, Scratch<accumulate_t<scalar_t>>& scratch,
                                       Rows<scalar_t> out, accumulate_t<scalar_t>* centroid,
                                       accumulate_t<scalar_t>* mass, scalar_t* weights) {
  using T = accumulate_t<scalar_t>;
  for (int64_t first = 0; first < head.queries; first += scratch.at_once) {
    const int64_t count = std::min(scratch.at_once, head.queries - first);
    attend(head, first, count, scratch);
    for (int64_t q = 0; q < count; ++q) {
      const T* row = scratch.weights.data() + q * scratch.row;
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
    for (int64_t t = 0; t < head.clips; t += kClips) {
      const int64_t clips = std::min(kClips, head.clips - t);
      pack<T>(head.v, t, clips, T{1}, scratch.block.data(), scratch.v_row, 0);
      small_gemm<T>(count, scratch.v_row, clips, scratch.weights.data() + t, scratch.row, 1, scratch.block.data(),
                    scratch.v_row, scratch.out.data(), scratch.v_row, t > 0);
    }
    unpack<T>(scratch.out.data(), scratch.v_row, 0, out, first, count, T{1});
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

// Leaves the gradients of keys and values in scratch.by_key and scratch.by_v.
template <typename scalar_t>
VPGFAST_MULTIVERSION void backward_head(const Head<scalar_t>& head, const HeadGrad<scalar_t>& grad,
                                        Scratch<accumulate_t<scalar_t>>& scratch, Rows<scalar_t> by_q_content,
                                        Rows<scalar_t> by_q_pos) {
  using T = accumulate_t<scalar_t>;
  constexpr int64_t kRow = padded<T>(kClips);
  for (int64_t first = 0; first < head.queries; first += scratch.at_once) {
    const int64_t count = std::min(scratch.at_once, head.queries - first);
    attend(head, first, count, scratch);
    pack<T>(grad.out, first, count, T{1}, scratch.out.data(), scratch.v_row, 0);
    for (int64_t t = 0; t < head.clips; t += kClips) {
      const int64_t clips = std::min(kClips, head.clips - t);
      pack<T>(head.v, t, clips, T{1}, scratch.block.data(), scratch.v_row, 0);
      transpose(scratch.block.data(), scratch.v_row, clips, head.v.width, scratch.block_transposed.data(), kRow);
      small_gemm<T>(count, padded<T>(clips), head.v.width, scratch.out.data(), scratch.v_row, 1,
                    scratch.block_transposed.data(), kRow, scratch.by_weight.data() + t, scratch.row, false);
    }
    const auto all = static_cast<int32_t>(head.clips);
    for (int64_t q = 0; q < count; ++q) {
      const T* __restrict p = scratch.weights.data() + q * scratch.row;
      T* __restrict by_p = scratch.by_weight.data() + q * scratch.row;
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
    for (int64_t t = 0; t < head.clips; t += kClips) {
      const int64_t clips = std::min(kClips, head.clips - t);
      const T* by_logit = scratch.by_weight.data() + t;
      small_gemm<T>(clips, scratch.v_row, count, scratch.weights.data() + t, 1, scratch.row, scratch.out.data(),
                    scratch.v_row, scratch.by_v.data() + t * scratch.v_row, scratch.v_row, first > 0);
      small_gemm<T>(clips, scratch.key_row, count, by_logit, 1, scratch.row, scratch.query.data(), scratch.key_row,
                    scratch.by_key.data() + t * scratch.key_row, scratch.key_row, first > 0);
      pack_keys(head, t, clips, scratch);
      small_gemm<T>(count, scratch.key_row, clips, by_logit, scratch.row, 1, scratch.block.data(), scratch.key_row,
                    scratch.by_query.data(), scratch.key_row, t > 0);
    }
    unpack<T>(scratch.by_query.data(), scratch.key_row, 0, by_q_content, first, count, head.scale);
    unpack<T>(scratch.by_query.data(), scratch.key_row, by_q_content.width, by_q_pos, first, count, head.scale);
  }
}

template <typename scalar_t, typename T>
VPGFAST_MULTIVERSION void store_rows(const T* from, int64_t from_row, int64_t column, int64_t clips,
                                     Rows<scalar_t> to) {
  unpack<T>(from, from_row, column, to, 0, clips, T{1});
}

template <typename T>
VPGFAST_MULTIVERSION void add_rows(const T* from, int64_t from_row, int64_t rows, int64_t width, T* to) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      to[i * width + j] += from[i * from_row + j];
    }
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
      Scratch<T> scratch(a.Q, a.T, a.d + a.e, a.f, false);
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
  dispatch_floating("anchor_cross_attention_backward", a.v.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const std::vector<T> mask = additive_mask<T>(a);
    // Positions shared by the batch: each slot of videos sums their gradient by itself, in order.
    const int64_t slots = a.k_pos_slots(), per_slot = slots == 0 ? 0 : (a.B + slots - 1) / slots;
    std::vector<T> shared(a.shares_k_pos() ? std::max<int64_t>(1, slots) * a.H * a.T * a.e : 0);
    torch::stable::parallel_for(0, slots * a.H, 1, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(a.Q, a.T, a.d + a.e, a.f, true);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t slot = task / a.H, h = task % a.H;
        for (int64_t b = slot * per_slot; b < std::min(a.B, (slot + 1) * per_slot); ++b) {
          const HeadGrad<scalar_t> grad{
              rows_of<scalar_t>(from.out, b, h), read<T>(from.centroid) + b * a.Q,
              a.intervals ? read<T>(from.mass) + b * a.Q : nullptr,
              from.has_weights() ? read<scalar_t>(from.weights) + (b * a.H + h) * a.Q * a.T : nullptr,
              T{1} / static_cast<T>(a.H)};
          backward_head<scalar_t>(head_of<scalar_t>(a, mask, b, h), grad, scratch,
                                  writable_rows_of<scalar_t>(by_q_content, b, h),
                                  writable_rows_of<scalar_t>(by_q_pos, b, h));
          const T* by_key = scratch.by_key.data();
          store_rows<scalar_t, T>(by_key, scratch.key_row, 0, a.T, writable_rows_of<scalar_t>(by_k_content, b, h));
          store_rows<scalar_t, T>(scratch.by_v.data(), scratch.v_row, 0, a.T, writable_rows_of<scalar_t>(by_v, b, h));
          if (a.shares_k_pos()) {
            add_rows<T>(by_key + a.d, scratch.key_row, a.T, a.e, shared.data() + task * a.T * a.e);
          } else {
            store_rows<scalar_t, T>(by_key, scratch.key_row, a.d, a.T, writable_rows_of<scalar_t>(by_k_pos, b, h));
          }
        }
      }
    });
    if (a.shares_k_pos()) {
      torch::stable::parallel_for(0, a.H, 1, [&](int64_t begin, int64_t end) {
        for (int64_t h = begin; h < end; ++h) {
          T* first = shared.data() + h * a.T * a.e;
          for (int64_t slot = 1; slot < slots; ++slot) {
            add_rows<T>(first + slot * a.H * a.T * a.e, a.e, a.T, a.e, first);
          }
          store_rows<scalar_t, T>(first, a.e, 0, a.T, writable_rows_of<scalar_t>(by_k_pos, 0, h));
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
