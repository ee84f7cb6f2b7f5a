// What the kernels of anchor_cross_attention work on: rows of one head, blocks of clips, and their products.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>

#include "common/tensor.h"
#include "cpu/small_gemm.h"
#include "cpu/transpose.h"

namespace vpgfast {

constexpr int64_t kClips = 128;                // of a block
constexpr int64_t kLogits = int64_t{1} << 17;  // of the queries that are treated together
constexpr int64_t kQueries = 64;

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

// A matrix in the accumulation dtype whose rows lie `row` apart.
template <typename T>
struct ClipMatrix {
  T* data;
  int64_t row;
};

// Whether a kernel can work on rows where they lie: they are in the accumulation dtype, in whole registers.
template <typename T, typename scalar_t>
VPGFAST_ALWAYS_INLINE bool usable_in_place(const Rows<scalar_t>& rows) {
  return std::is_same_v<T, std::remove_const_t<scalar_t>> && rows.width % Vector<T>::kWidth == 0;
}

// Asks for rows first .. first + count - 1 of the block after this one: a head's rows are too few for the hardware to
// see that they will be needed, and most of the time would go by waiting for them.
template <typename scalar_t>
VPGFAST_ALWAYS_INLINE void ask_for_next_block(const Rows<scalar_t>& rows, int64_t first, int64_t count) {
  for (int64_t i = first; i < first + count; ++i) {
    const scalar_t* ahead = rows.ahead(i, kClips);
    for (int64_t j = 0; j < rows.width; j += 64 / static_cast<int64_t>(sizeof(scalar_t))) {
      __builtin_prefetch(ahead + j, 0, 2);
    }
  }
}

// to[i, j] = rows[first + i, j] * scale
template <typename T, typename scalar_t>
VPGFAST_ALWAYS_INLINE void pack(const Rows<const scalar_t>& rows, int64_t first, int64_t count, T scale, T* to,
                                int64_t to_row) {
  for (int64_t i = 0; i < count; ++i) {
    const scalar_t* from = rows.data + (first + i) * rows.stride;
    for (int64_t j = 0; j < rows.width; ++j) {
      to[i * to_row + j] = static_cast<T>(from[j]) * scale;
    }
  }
}

// rows[first + i, j] = from[i, j] * scale
template <typename T, typename scalar_t>
VPGFAST_ALWAYS_INLINE void unpack(const T* from, int64_t from_row, const Rows<scalar_t>& rows, int64_t first,
                                  int64_t count, T scale) {
  for (int64_t i = 0; i < count; ++i) {
    scalar_t* to = rows.data + (first + i) * rows.stride;
    for (int64_t j = 0; j < rows.width; ++j) {
      to[j] = static_cast<scalar_t>(from[i * from_row + j] * scale);
    }
  }
}

// Clips first .. first + count - 1, where they lie or copied to `copy`. Their number may be read up to whole registers.
template <typename T, typename scalar_t>
VPGFAST_ALWAYS_INLINE ClipMatrix<const T> block_of(const Rows<const scalar_t>& rows, int64_t first, int64_t count,
                                                   T* copy) {
  if constexpr (std::is_same_v<T, scalar_t>) {
    if (usable_in_place<T>(rows) && count % Vector<T>::kWidth == 0) {
      return {rows.data + first * rows.stride, rows.stride};
    }
  }
  const int64_t row = padded<T>(rows.width);
  pack<T>(rows, first, count, T{1}, copy, row);
  return {copy, row};
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
// A query is its content and, from `pos` on, its position.
template <typename T>
struct Scratch {
  Scratch(int64_t queries, int64_t clips, int64_t d, int64_t e, int64_t f, bool backward)
      : at_once(
            std::clamp<int64_t>(kLogits / std::max<int64_t>(1, clips), 1, std::clamp<int64_t>(queries, 1, kQueries))),
        row(padded<T>(clips)),
        pos(padded<T>(d)),
        query_row(pos + padded<T>(e)),
        v_row(padded<T>(f)) {
    const int64_t widest = std::max({padded<T>(d), padded<T>(e), v_row}), block_size = padded<T>(kClips) * widest;
    const int64_t sizes[] = {at_once * query_row,
                             at_once * row,
                             block_size,
                             block_size,
                             at_once * v_row,
                             backward ? at_once * row : 0,
                             backward ? at_once * query_row : 0};
    T** const parts[] = {&query, &weights, &block, &transposed, &out, &by_weight, &by_query};
    int64_t size = 0;
    for (const int64_t part : sizes) {
      size += part;
    }
    memory.reset(new T[size]);  // not initialised
    T* next = memory.get();
    for (int k = 0; k < 7; ++k) {
      *parts[k] = next;
      next += sizes[k];
    }
  }
  int64_t at_once, row, pos, query_row, v_row;  // queries treated together; lengths of padded rows
  T *query, *weights, *block, *transposed, *out, *by_weight, *by_query;
  std::unique_ptr<T[]> memory;
};

// products[q, t] = sum_j left[q, j] rows[t, j] for the clips t of one block, added to what is there if `accumulate`.
// Calls ask(t, count) for every few clips: requests for memory in one burst would hold up the work.
template <typename T, typename scalar_t, typename Ask>
VPGFAST_ALWAYS_INLINE void products_with_clips(const Rows<const scalar_t>& rows, int64_t t, int64_t clips,
                                               const T* left, int64_t left_row, int64_t count, Scratch<T>& scratch,
                                               T* products, bool accumulate, const Ask& ask) {
  constexpr int64_t kWidth = Vector<T>::kWidth, kRow = padded<T>(kClips);
  const ClipMatrix<const T> block = block_of(rows, t, clips, scratch.block);
  for (int64_t i = 0; i < clips; i += kWidth) {
    ask(t + i, std::min(kWidth, clips - i));
    for (int64_t j = 0; j < rows.width; j += kWidth) {
      transpose_square<T>(block.data + i * block.row + j, block.row, scratch.transposed + j * kRow + i, kRow);
    }
  }
  small_gemm<T>(count, padded<T>(clips), rows.width, left, left_row, 1, scratch.transposed, kRow, products + t,
                scratch.row, accumulate);
}

// sums[q, j] += sum_t weights[q, t] rows[t, j] over the clips t of one block.
template <typename T, typename scalar_t, typename Ask>
VPGFAST_ALWAYS_INLINE void sums_over_clips(const Rows<const scalar_t>& rows, int64_t t, int64_t clips, const T* weights,
                                           int64_t count, Scratch<T>& scratch, T* sums, int64_t sums_row,
                                           const Ask& ask) {
  constexpr int64_t kAtOnce = 32;
  const ClipMatrix<const T> block = block_of(rows, t, clips, scratch.block);
  for (int64_t i = 0; i < clips; i += kAtOnce) {
    const int64_t some = std::min(kAtOnce, clips - i);
    ask(t + i, some);
    small_gemm<T>(count, padded<T>(rows.width), some, weights + t + i, scratch.row, 1, block.data + i * block.row,
                  block.row, sums, sums_row, true);
  }
}

}  // namespace vpgfast
