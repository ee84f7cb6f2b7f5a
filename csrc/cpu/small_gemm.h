// Products of small matrices that lie in the cache. For kernels that make many of them inside one parallel task, where
// a call of the BLAS would cost more than the product.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/vector.h"

namespace vpgfast {

// c[m, n] = sum_k a[m, k] b[k, n] (+ c[m, n]) for a block of `rows` x `vectors` registers, which lie b_vector and
// c_vector apart.
template <int rows, int vectors, typename T>
VPGFAST_ALWAYS_INLINE void gemm_block(const T* a, int64_t a_row, int64_t a_column, const T* b, int64_t b_row,
                                      int64_t b_vector, T* c, int64_t c_row, int64_t c_vector, int64_t K,
                                      bool accumulate) {
  using vector = typename Vector<T>::type;
  using unaligned = typename Vector<T>::unaligned;
  vector sum[rows][vectors] = {};
  for (int64_t k = 0; k < K; ++k) {
    vector right[vectors];
    for (int n = 0; n < vectors; ++n) {
      right[n] = *reinterpret_cast<const unaligned*>(b + k * b_row + n * b_vector);
    }
    for (int m = 0; m < rows; ++m) {
      const T left = a[m * a_row + k * a_column];
      for (int n = 0; n < vectors; ++n) {
        sum[m][n] += left * right[n];
      }
    }
  }
  for (int m = 0; m < rows; ++m) {
    for (int n = 0; n < vectors; ++n) {
      auto* to = reinterpret_cast<unaligned*>(c + m * c_row + n * c_vector);
      *to = accumulate ? sum[m][n] + *to : sum[m][n];
    }
  }
}

template <int vectors, typename T>
VPGFAST_ALWAYS_INLINE void gemm_columns(int64_t M, int64_t K, const T* a, int64_t a_row, int64_t a_column, const T* b,
                                        int64_t b_row, T* c, int64_t c_row, bool accumulate) {
  constexpr int64_t kWidth = Vector<T>::kWidth;
  for (int64_t m = 0; m < M;) {
    const int64_t left = M - m;
    const T* from = a + m * a_row;
    T* to = c + m * c_row;
    // Seven and eight rows left are two blocks of about four: a single row would wait for its own sums.
    const int64_t rows = left > 8 ? 6 : (left > 6 ? (left + 1) / 2 : left);
    switch (rows) {
      case 6:
        gemm_block<6, vectors>(from, a_row, a_column, b, b_row, kWidth, to, c_row, kWidth, K, accumulate);
        break;
      case 5:
        gemm_block<5, vectors>(from, a_row, a_column, b, b_row, kWidth, to, c_row, kWidth, K, accumulate);
        break;
      case 4:
        gemm_block<4, vectors>(from, a_row, a_column, b, b_row, kWidth, to, c_row, kWidth, K, accumulate);
        break;
      case 3:
        gemm_block<3, vectors>(from, a_row, a_column, b, b_row, kWidth, to, c_row, kWidth, K, accumulate);
        break;
      case 2:
        gemm_block<2, vectors>(from, a_row, a_column, b, b_row, kWidth, to, c_row, kWidth, K, accumulate);
        break;
      default:
        gemm_block<1, vectors>(from, a_row, a_column, b, b_row, kWidth, to, c_row, kWidth, K, accumulate);
        break;
    }
    m += rows;
  }
}

// c[M, N] = a[M, K] b[K, N], plus c where `accumulate`. N must be a multiple of the vector's width; the rows of b and c
// lie b_row and c_row apart, the elements of a wherever its two strides say. A function of its own, not inlined: it is
// long.
template <typename T>
static void small_gemm(int64_t M, int64_t N, int64_t K, const T* a, int64_t a_row, int64_t a_column, const T* b,
                       int64_t b_row, T* c, int64_t c_row, bool accumulate) {
  constexpr int64_t kWidth = Vector<T>::kWidth;
  int64_t n = 0;
  for (; n + 2 * kWidth <= N; n += 2 * kWidth) {
    gemm_columns<2>(M, K, a, a_row, a_column, b + n, b_row, c + n, c_row, accumulate);
  }
  for (; n < N; n += kWidth) {
    gemm_columns<1>(M, K, a, a_row, a_column, b + n, b_row, c + n, c_row, accumulate);
  }
}

}  // namespace vpgfast
