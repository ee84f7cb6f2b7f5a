// Blocked transposition, with a change of dtype on the way.
#pragma once

#include <algorithm>
#include <cstring>

#include "common/tensor.h"
#include "cpu/vector.h"

namespace vpgfast {

// Exchanges the off-diagonal quarters of every 2 half x 2 half block of a square of registers; halves of side / 2, ...,
// 2, 1 make a transposition.
template <typename T, int bytes, int half>
VPGFAST_ALWAYS_INLINE void exchange_quarters(typename Vector<T, bytes>::type* rows) {
  constexpr int kSide = Vector<T, bytes>::kWidth;
  typename Vector<T, bytes>::index upper, lower;
  for (int j = 0; j < kSide; ++j) {
    upper[j] = j & half ? kSide + j - half : j;
    lower[j] = j & half ? kSide + j : j + half;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kSide; ++i) {
    if ((i & half) == 0) {
      const auto a = rows[i], b = rows[i + half];
      rows[i] = __builtin_shuffle(a, b, upper);
      rows[i + half] = __builtin_shuffle(a, b, lower);
    }
  }
  if constexpr (half > 1) {
    exchange_quarters<T, bytes, half / 2>(rows);
  }
}

template <typename vector, typename from_t>
VPGFAST_ALWAYS_INLINE void load_row(const from_t* from, vector& row) {
  using T = std::remove_reference_t<decltype(row[0])>;
  if constexpr (std::is_same_v<from_t, T>) {
    std::memcpy(&row, from, sizeof(row));
  } else {
    T values[sizeof(row) / sizeof(T)];
    for (size_t c = 0; c < sizeof(row) / sizeof(T); ++c) {
      values[c] = static_cast<T>(from[c]);
    }
    std::memcpy(&row, values, sizeof(row));
  }
}

template <typename vector, typename to_t>
VPGFAST_ALWAYS_INLINE void store_row(const vector& row, to_t* to) {
  using T = std::remove_cvref_t<decltype(row[0])>;
  if constexpr (std::is_same_v<to_t, T>) {
    std::memcpy(to, &row, sizeof(row));
  } else {
    T values[sizeof(row) / sizeof(T)];
    std::memcpy(values, &row, sizeof(row));
    for (size_t c = 0; c < sizeof(row) / sizeof(T); ++c) {
      to[c] = static_cast<to_t>(values[c]);
    }
  }
}

// to[j, i] = from[i, j] for a square of registers of `bytes` bytes.
template <typename T, int bytes = kRegisterBytes, typename from_t, typename to_t>
VPGFAST_ALWAYS_INLINE void transpose_square(const from_t* from, int64_t from_row, to_t* to, int64_t to_row) {
  constexpr int kSide = Vector<T, bytes>::kWidth;
  typename Vector<T, bytes>::type rows[kSide];
#pragma GCC unroll 16
  for (int r = 0; r < kSide; ++r) {
    load_row(from + r * from_row, rows[r]);
  }
  exchange_quarters<T, bytes, kSide / 2>(rows);
#pragma GCC unroll 16
  for (int r = 0; r < kSide; ++r) {
    store_row(rows[r], to + r * to_row);
  }
}

// to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < columns.
template <typename from_t, typename to_t>
static void transpose(const from_t* from, int64_t from_stride, to_t* to, int64_t to_stride, int64_t rows,
                      int64_t columns) {
  using T = accumulate_t<from_t>;
  constexpr int kBytes = std::min(kRegisterBytes, 32), kSide = Vector<T, kBytes>::kWidth;
  const int64_t whole_rows = rows / kSide * kSide, whole_columns = columns / kSide * kSide;
  if (from_stride > to_stride) {  // along the longer stride's rows: few pages at a time
    for (int64_t i = 0; i < whole_rows; i += kSide) {
      for (int64_t j = 0; j < whole_columns; j += kSide) {
        transpose_square<T, kBytes>(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
      }
    }
  } else {
    for (int64_t j = 0; j < whole_columns; j += kSide) {
      for (int64_t i = 0; i < whole_rows; i += kSide) {
        transpose_square<T, kBytes>(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
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
