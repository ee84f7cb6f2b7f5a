// Products of matrices whose layout is ours to choose: b lies in panels of `kPanel` columns, as the inner loop reads
// it, so that nothing is copied into an order of its own first, as the BLAS does. By one thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/small_gemm.h"

namespace vpgfast {

constexpr int64_t kPanel = 16;
constexpr int64_t kDepth = 128;  // of products that are summed up by themselves: long sums of float32 lose digits

// Where the elements of a matrix lie: in groups of `kPanel` rows (of a) or columns (of b and c), `panel` elements
// apart; those of a group `step` apart; `other` is the distance along the other axis.
struct Strides {
  int64_t panel, step, other;

  int64_t operator()(int64_t index) const {
    return index / kPanel * panel + index % kPanel * step;
  }
  // Rows or columns that all lie `step` apart.
  static Strides even(int64_t step, int64_t other) {
    return {kPanel * step, step, other};
  }
  // Panels of an axis of `length` along the other one.
  static Strides panels(int64_t length) {
    return {kPanel * length, 1, kPanel};
  }
};

// The rows from m on, `rows` at a time and then half as many.
template <int rows, int vectors, typename T>
VPGFAST_ALWAYS_INLINE void panel_rows(int64_t m, int64_t M, int64_t K, const T* a, const Strides& of_a, const T* b,
                                      const Strides& of_b, T* c, const Strides& of_c, bool accumulate) {
  constexpr int64_t kWidth = Vector<T>::kWidth;
  for (; m + rows <= M; m += rows) {
    gemm_block<rows, vectors>(a + of_a(m), of_a.step, of_a.other, b, of_b.other, of_b(kWidth), c + m * of_c.other,
                              of_c.other, of_c(kWidth), K, accumulate);
  }
  if constexpr (rows > 1) {
    panel_rows<rows / 2, vectors>(m, M, K, a, of_a, b, of_b, c, of_c, accumulate);
  }
}

template <int rows, int vectors, typename T>
VPGFAST_ALWAYS_INLINE void panel_columns(int64_t M, int64_t N, int64_t K, const T* a, const Strides& of_a, const T* b,
                                         const Strides& of_b, T* c, const Strides& of_c, bool accumulate) {
  constexpr int64_t kColumns = vectors * Vector<T>::kWidth;
  int64_t n = 0;
  for (; n + kColumns <= N; n += kColumns) {
    panel_rows<rows, vectors>(0, M, K, a, of_a, b + of_b(n), of_b, c + of_c(n), of_c, accumulate);
  }
  if constexpr (kColumns > kPanel) {  // one panel is left
    if (n < N) {
      panel_rows<rows, 1>(0, M, K, a, of_a, b + of_b(n), of_b, c + of_c(n), of_c, accumulate);
    }
  }
}

// c[M, N] = a[M, K] b[K, N], plus c where `accumulate`. N must be a multiple of kPanel.
template <typename T>
void panel_gemm(int64_t M, int64_t N, int64_t K, const T* a, Strides of_a, const T* b, Strides of_b, T* c, Strides of_c,
                bool accumulate) {
  // As many sums as keep the multipliers busy and fit into the registers.
  constexpr int kRows = kRegisters == 32 ? 8 : 4, kVectors = kRegisterBytes == 16 ? 4 : 2;
  for (int64_t k = 0; k == 0 || k < K; k += kDepth) {
    panel_columns<kRows, kVectors>(M, N, std::min(kDepth, K - k), a + k * of_a.other, of_a, b + k * of_b.other, of_b, c,
                                   of_c, accumulate || k > 0);
  }
}

}  // namespace vpgfast
