// Blocked transposition, with a change of dtype on the way.
#pragma once

#include <algorithm>
#include <cstring>

#include "common/multiversion.h"
#include "common/tensor.h"

namespace vpgfast {

// A square block of values in vector registers (GCC's and Clang's vector extension).
template <typename T>
struct SquareBlock {
  static constexpr int kSide = 32 / sizeof(T);
  using index_t = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef T lanes_t __attribute__((vector_size(32)));
  typedef index_t indices_t __attribute__((vector_size(32)));
};

// Exchanges the off-diagonal quarters of every 2 half x 2 half block; halves of side / 2, ..., 2, 1 make a
// transposition.
template <typename T, int half>
inline __attribute__((always_inline)) void exchange_quarters(typename SquareBlock<T>::lanes_t* rows) {
  constexpr int kSide = SquareBlock<T>::kSide;
  typename SquareBlock<T>::indices_t upper, lower;
  for (int j = 0; j < kSide; ++j) {
    upper[j] = j & half ? kSide + j - half : j;
    lower[j] = j & half ? kSide + j : j + half;
  }
  for (int i = 0; i < kSide; ++i) {
    if ((i & half) == 0) {
      const auto a = rows[i], b = rows[i + half];
      rows[i] = __builtin_shuffle(a, b, upper);
      rows[i + half] = __builtin_shuffle(a, b, lower);
    }
  }
}

template <typename T, typename from_t>
inline __attribute__((always_inline)) void load_row(const from_t* from, typename SquareBlock<T>::lanes_t& row) {
  if constexpr (std::is_same_v<from_t, T>) {
    std::memcpy(&row, from, sizeof(row));
  } else {
    T values[SquareBlock<T>::kSide];
    for (int c = 0; c < SquareBlock<T>::kSide; ++c) {
      values[c] = static_cast<T>(from[c]);
    }
    std::memcpy(&row, values, sizeof(row));
  }
}

template <typename T, typename to_t>
inline __attribute__((always_inline)) void store_row(const typename SquareBlock<T>::lanes_t& row, to_t* to) {
  if constexpr (std::is_same_v<to_t, T>) {
    std::memcpy(to, &row, sizeof(row));
  } else {
    T values[SquareBlock<T>::kSide];
    std::memcpy(values, &row, sizeof(row));
    for (int c = 0; c < SquareBlock<T>::kSide; ++c) {
      to[c] = static_cast<to_t>(values[c]);
    }
  }
}

template <typename T, typename from_t, typename to_t>
inline __attribute__((always_inline)) void transpose_block(const from_t* from, int64_t from_stride, to_t* to,
                                                           int64_t to_stride) {
  constexpr int kSide = SquareBlock<T>::kSide;
  typename SquareBlock<T>::lanes_t rows[kSide];
  for (int r = 0; r < kSide; ++r) {
    load_row<T>(from + r * from_stride, rows[r]);
  }
  if constexpr (kSide == 8) {
    exchange_quarters<T, 4>(rows);
  }
  exchange_quarters<T, 2>(rows);
  exchange_quarters<T, 1>(rows);
  for (int r = 0; r < kSide; ++r) {
    store_row<T>(rows[r], to + r * to_stride);
  }
}

// to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < columns.
template <typename from_t, typename to_t>
VPGFAST_MULTIVERSION static void transpose(const from_t* from, int64_t from_stride, to_t* to, int64_t to_stride,
                                           int64_t rows, int64_t columns) {
  using T = accumulate_t<from_t>;
  constexpr int kSide = SquareBlock<T>::kSide;
  const int64_t whole_rows = rows / kSide * kSide, whole_columns = columns / kSide * kSide;
  if (from_stride > to_stride) {  // along the longer stride's rows: few pages at a time
    for (int64_t i = 0; i < whole_rows; i += kSide) {
      for (int64_t j = 0; j < whole_columns; j += kSide) {
        transpose_block<T>(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
      }
    }
  } else {
    for (int64_t j = 0; j < whole_columns; j += kSide) {
      for (int64_t i = 0; i < whole_rows; i += kSide) {
        transpose_block<T>(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
      }
    }
  }
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = j < whole_columns ? whole_rows : 0; i < rows; ++i) {
      to[j * to_stride + i] = static_cast<to_t>(static_cast<T>(from[i * from_stride + j]));
    }
  }
}

}  // namespace vpgfast
