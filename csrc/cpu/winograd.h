// Winograd's algorithm F(4x4, 5x5): a tile of 4 x 4 output cells and a kernel of 5 x 5 taps, multiplied point by point.
//
// The 64 points ("frequencies") are the pairs (u, v) of 8 points an axis; the transforms make, or take, two rows u of
// them at a time. Cells lie channels-last.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/panel_gemm.h"

namespace vpgfast {

constexpr int32_t kTile = 4;                    // output cells of a tile, along an axis
constexpr int32_t kTaps = 5;                    // taps of a sub-kernel
constexpr int32_t kPoints = kTile + kTaps - 1;  // input cells of a patch, and products, along an axis
constexpr int32_t kPasses = kPoints / 2;        // two rows of frequencies each
constexpr int32_t kFrequencies = 2 * kPoints;   // of a pass
constexpr int32_t kLanes = kPanel;              // numbers of channels are rounded up to a multiple of this, with zeros

// Multiplying the polynomials of a row of `kTile` cells and one of `kTaps` taps by their values at `kPoints` points
// (Toom and Cook), transposed: output = sum_f kOutput[f][.] * (kKernel[f] . taps) * (kInput[f] . patch).
// float32's error is the least with points that are close to one and exact in binary. Infinity is the last.
constexpr double kPoint[kPoints - 1] = {1, -1, 2, -2, 0.5, -0.5, 0};

template <int32_t kSides>
struct Matrix {
  static constexpr int32_t kSide = kSides;
  double at[kPoints][kSides] = {};
};

// Powers of the points, as many as there are cells or taps.
template <int32_t kSide>
constexpr Matrix<kSide> powers() {
  Matrix<kSide> matrix;
  for (int32_t f = 0; f < kPoints - 1; ++f) {
    double power = 1;
    for (int32_t i = 0; i < kSide; ++i) {
      matrix.at[f][i] = power;
      power *= kPoint[f];
    }
  }
  matrix.at[kPoints - 1][kSide - 1] = 1;
  return matrix;
}

// Coefficients of the product of (x - point) over all points but f.
constexpr Matrix<kPoints> products_of_the_others() {
  Matrix<kPoints> matrix;
  for (int32_t f = 0; f < kPoints; ++f) {
    double* row = matrix.at[f];
    row[0] = 1;
    for (int32_t j = 0, degree = 0; j < kPoints - 1; ++j) {
      if (j == f) {
        continue;
      }
      ++degree;
      for (int32_t i = degree; i >= 0; --i) {
        row[i] = (i > 0 ? row[i - 1] : 0) - (i < degree ? kPoint[j] * row[i] : 0);
      }
    }
  }
  return matrix;
}

// Powers over the value of that product at the point itself (Lagrange).
constexpr Matrix<kTaps> kernel_matrix() {
  Matrix<kTaps> matrix = powers<kTaps>();
  for (int32_t f = 0; f < kPoints - 1; ++f) {
    double norm = 1;
    for (int32_t j = 0; j < kPoints - 1; ++j) {
      norm *= j == f ? 1 : kPoint[f] - kPoint[j];
    }
    for (double& value : matrix.at[f]) {
      value /= norm;
    }
  }
  return matrix;
}

constexpr Matrix<kPoints> kInput = products_of_the_others();
constexpr Matrix<kTaps> kKernel = kernel_matrix();
constexpr Matrix<kTile> kOutput = powers<kTile>();

// kLanes channels (GCC's and Clang's vector extension), at any address.
template <typename T>
struct Lanes {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T)), aligned(alignof(T)), may_alias));
};

// Two rows of the frequencies of a square of cells, taps or results, each of which points at its channels:
// to[u][v] = sum_ij kMatrix[u][i] kMatrix[v][j] cells[i][j], for u = 2 kPass and the next. `to` has `stride` elements
// between frequencies, and `panel` between every kLanes channels.
template <typename T, const auto& kMatrix, int32_t kPass>
void to_frequencies(const T* const* cells, int64_t channels, T* to, int64_t stride, int64_t panel) {
  using lanes = typename Lanes<T>::type;
  constexpr int32_t kSide = std::remove_cvref_t<decltype(kMatrix)>::kSide;
  for (int64_t first = 0; first < channels; first += kLanes) {
    lanes columns[2][kSide];
#pragma GCC unroll 8
    for (int32_t j = 0; j < kSide; ++j) {
      lanes sums[2] = {};
#pragma GCC unroll 8
      for (int32_t i = 0; i < kSide; ++i) {
        const T factors[2] = {static_cast<T>(kMatrix.at[2 * kPass][i]), static_cast<T>(kMatrix.at[2 * kPass + 1][i])};
        if (factors[0] != 0 || factors[1] != 0) {  // known when compiled
          const lanes cell = *reinterpret_cast<const lanes*>(cells[i * kSide + j] + first);
          sums[0] += factors[0] != 0 ? factors[0] * cell : lanes{};
          sums[1] += factors[1] != 0 ? factors[1] * cell : lanes{};
        }
      }
      columns[0][j] = sums[0];
      columns[1][j] = sums[1];
    }
#pragma GCC unroll 2
    for (int32_t u = 0; u < 2; ++u) {
#pragma GCC unroll 8
      for (int32_t v = 0; v < kPoints; ++v) {
        lanes sum = {};
#pragma GCC unroll 8
        for (int32_t j = 0; j < kSide; ++j) {
          const T factor = static_cast<T>(kMatrix.at[v][j]);
          sum += factor != 0 ? factor * columns[u][j] : lanes{};
        }
        *reinterpret_cast<lanes*>(to + (u * kPoints + v) * stride + first / kLanes * panel) = sum;
      }
    }
  }
}

// The transpose of that: cells[i][j] += sum_uv kMatrix[u][i] kMatrix[v][j] from[u][v]. The first pass, which has no
// zero factor, sets them.
template <typename T, const auto& kMatrix, int32_t kPass>
void from_frequencies(const T* from, int64_t stride, int64_t channels, T* const* cells) {
  using lanes = typename Lanes<T>::type;
  constexpr int32_t kSide = std::remove_cvref_t<decltype(kMatrix)>::kSide;
  for (int64_t first = 0; first < channels; first += kLanes) {
    lanes columns[2][kSide] = {};
#pragma GCC unroll 2
    for (int32_t u = 0; u < 2; ++u) {
#pragma GCC unroll 8
      for (int32_t v = 0; v < kPoints; ++v) {
        const lanes product = *reinterpret_cast<const lanes*>(from + (u * kPoints + v) * stride + first);
#pragma GCC unroll 8
        for (int32_t j = 0; j < kSide; ++j) {
          const T factor = static_cast<T>(kMatrix.at[v][j]);
          columns[u][j] += factor != 0 ? factor * product : lanes{};
        }
      }
    }
#pragma GCC unroll 8
    for (int32_t i = 0; i < kSide; ++i) {
#pragma GCC unroll 8
      for (int32_t j = 0; j < kSide; ++j) {
        const T factors[2] = {static_cast<T>(kMatrix.at[2 * kPass][i]), static_cast<T>(kMatrix.at[2 * kPass + 1][i])};
        lanes* cell = reinterpret_cast<lanes*>(cells[i * kSide + j] + first);
        if (factors[0] != 0 || factors[1] != 0) {
          const lanes sum = (factors[0] != 0 ? factors[0] * columns[0][j] : lanes{}) +
                            (factors[1] != 0 ? factors[1] * columns[1][j] : lanes{});
          *cell = kPass == 0 ? sum : *cell + sum;
        }
      }
    }
  }
}

// Calls f.template operator()<pass>().
template <typename F>
void dispatch_pass(int32_t pass, const F& f) {
  static_assert(kPasses == 4);
  switch (pass) {
    case 0:
      return f.template operator()<0>();
    case 1:
      return f.template operator()<1>();
    case 2:
      return f.template operator()<2>();
    default:
      return f.template operator()<3>();
  }
}

}  // namespace vpgfast
