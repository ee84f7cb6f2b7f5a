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

// Exchanges the off-diagonal quarters of every 2 half x 2 half block; halves of side / 2, ..., 2, 1 make a transposition.
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

// to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < columns.
template <typename from_t, typename to_t>
VPGFAST_MULTIVERSION static void transpose(const from_t* from, int64_t from_stride, to_t* to, int64_t to_stride,
                                           int64_t rows, int64_t columns) {
  using T = accumulate_t<from_t>;
  using Block = SquareBlock<T>;
  constexpr int kSide = Block::kSide;
  int64_t i = 0;
  for (; i + kSide <= rows; i += kSide) {
    int64_t j = 0;
    for (; j + kSide <= columns; j += kSide) {
      typename Block::lanes_t block[kSide];
      for (int r = 0; r < kSide; ++r) {
        T values[kSide];
        for (int c = 0; c < kSide; ++c) {
          values[c] = static_cast<T>(from[(i + r) * from_stride + j + c]);
        }
        std::memcpy(&block[r], values, sizeof(values));
      }
      if constexpr (kSide == 8) {
        exchange_quarters<T, 4>(block);
      }
      exchange_quarters<T, 2>(block);
      exchange_quarters<T, 1>(block);
      for (int r = 0; r < kSide; ++r) {
        T values[kSide];
        std::memcpy(values, &block[r], sizeof(values));
        for (int c = 0; c < kSide; ++c) {
          to[(j + r) * to_stride + i + c] = static_cast<to_t>(values[c]);
        }
      }
    }
    for (; j < columns; ++j) {
      for (int r = 0; r < kSide; ++r) {
        to[j * to_stride + i + r] = static_cast<to_t>(static_cast<T>(from[(i + r) * from_stride + j]));
      }
    }
  }
  for (; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      to[j * to_stride + i] = static_cast<to_t>(static_cast<T>(from[i * from_stride + j]));
    }
  }
}

}  // namespace vpgfast
