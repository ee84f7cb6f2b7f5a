// pairwise_relevance on the CPU. See vpgfast/ops/pairwise_relevance.py for what it computes.
//
// Backward: relu(t) = t [t > 0] makes everything a matter of two sums over a mask that is never stored,
//   S[n, h] = sum_m g[n, m] [a[n, h] + b[m, h] > 0]   and the same with a and b exchanged, R[m, h]:
// by_a = w S, by_b = w R, by_w = sum_n a S + sum_m b R.

#include "common/pairwise_relevance.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/small_gemm.h"
#include "cpu/transpose.h"
#include "cpu/vector_math.h"

namespace vpgfast {
namespace {

// Rows of a, and of b, that are treated together: as many sums as stay in registers.
constexpr int64_t kRows = 4, kColumns = kRegisters == 32 ? 4 : 2;
constexpr int kMaskedVectors = kRegisters == 32 ? 2 : 1;  // backward: registers of h at a time

int64_t padded_rows(int64_t rows) {
  return (rows + kRows - 1) / kRows * kRows;
}

// Rows in the compute type, padded with zeros to whole blocks and vectors.
template <typename T>
struct Packed {
  template <typename scalar_t>
  Packed(const scalar_t* from, int64_t rows, int64_t width) : row(padded<T>(width)), data(padded_rows(rows) * row) {
    for (int64_t i = 0; i < rows; ++i) {
      std::transform(from + i * width, from + (i + 1) * width, data.begin() + i * row,
                     [](scalar_t x) { return static_cast<T>(x); });
    }
  }
  const T* at(int64_t i) const {
    return data.data() + i * row;
  }
  int64_t row;
  std::vector<T> data;
};

// sums[i, j] = sum_h w[h] relu(a[i, h] + b[j, h]) of kRows x kColumns pairs.
template <typename T>
void relevance_block(const T* a, const T* b, const T* w, int64_t row, T* sums) {
  using vector = typename Vector<T>::type;
  using unaligned = typename Vector<T>::unaligned;
  constexpr int64_t kWidth = Vector<T>::kWidth, kPairs = kRows * kColumns;
  static_assert(kPairs % kWidth == 0);
  vector sum[kRows][kColumns] = {};
  for (int64_t h = 0; h < row; h += kWidth) {
    const vector weight = *reinterpret_cast<const unaligned*>(w + h);
    vector right[kColumns];
    for (int64_t j = 0; j < kColumns; ++j) {
      right[j] = *reinterpret_cast<const unaligned*>(b + j * row + h);
    }
    for (int64_t i = 0; i < kRows; ++i) {
      const vector left = *reinterpret_cast<const unaligned*>(a + i * row + h);
      for (int64_t j = 0; j < kColumns; ++j) {
        sum[i][j] += weight * relu<T>(left + right[j]);
      }
    }
  }
  // As many vectors as there are pairs to as many numbers: turn them and add up the rows.
  T turned[kPairs * kWidth];
  for (int64_t i = 0; i < kPairs; ++i) {
    *reinterpret_cast<unaligned*>(turned + i * kWidth) = sum[i / kColumns][i % kColumns];
  }
  for (int64_t first = 0; first < kPairs; first += kWidth) {
    T* square = turned + first * kWidth;
    transpose_square<T>(square, kWidth, square, kWidth);
    vector total = {};
    for (int64_t i = 0; i < kWidth; ++i) {
      total += *reinterpret_cast<const unaligned*>(square + i * kWidth);
    }
    *reinterpret_cast<unaligned*>(sums + first) = total;
  }
}

template <typename T>
T sigmoid(T x) {
  const T y = exp_of_nonpositive(x < T{0} ? x : -x);
  return (x < T{0} ? y : T{1}) / (T{1} + y);
}

// out[i, h] = sum_y g(i, y) [x[i, h] + others[y, h] > 0] for kRows rows of x and `vectors` registers of h, where g(i,
// y) lies at g + i * g_row + y * g_column.
template <int vectors, typename T>
VPGFAST_ALWAYS_INLINE void masked_sums_block(const T* x, const T* others, int64_t count, int64_t row, const T* g,
                                             int64_t g_row, int64_t g_column, T* out) {
  using vector = typename Vector<T>::type;
  using unaligned = typename Vector<T>::unaligned;
  constexpr int64_t kWidth = Vector<T>::kWidth;
  vector sum[kRows][vectors] = {}, left[kRows][vectors];
  for (int64_t i = 0; i < kRows; ++i) {
    for (int n = 0; n < vectors; ++n) {
      left[i][n] = *reinterpret_cast<const unaligned*>(x + i * row + n * kWidth);
    }
  }
  for (int64_t y = 0; y < count; ++y) {
    vector threshold[vectors];
    for (int n = 0; n < vectors; ++n) {
      threshold[n] = -*reinterpret_cast<const unaligned*>(others + y * row + n * kWidth);
    }
    for (int64_t i = 0; i < kRows; ++i) {
      const vector weight = g[i * g_row + y * g_column] - vector{};
      for (int n = 0; n < vectors; ++n) {
        sum[i][n] += left[i][n] > threshold[n] ? weight : vector{};
      }
    }
  }
  for (int64_t i = 0; i < kRows; ++i) {
    for (int n = 0; n < vectors; ++n) {
      *reinterpret_cast<unaligned*>(out + i * row + n * kWidth) = sum[i][n];
    }
  }
}

template <typename T>
void masked_sums(const T* x, const T* others, int64_t count, int64_t row, const T* g, int64_t g_row, int64_t g_column,
                 T* out) {
  constexpr int64_t kWidth = Vector<T>::kWidth;
  int64_t h = 0;
  for (; h + kMaskedVectors * kWidth <= row; h += kMaskedVectors * kWidth) {
    masked_sums_block<kMaskedVectors>(x + h, others + h, count, row, g, g_row, g_column, out + h);
  }
  for (; h < row; h += kWidth) {
    masked_sums_block<1>(x + h, others + h, count, row, g, g_row, g_column, out + h);
  }
}

Tensor pairwise_relevance(const Tensor& a_in, const Tensor& b_in, const Tensor& w_in, const Tensor& bias_in) {
  const Relevance given("pairwise_relevance", a_in, b_in, w_in, bias_in);
  const int64_t N = given.N, M = given.M, H = given.H;
  Tensor out = torch::stable::new_empty(given.a, {N, M});
  dispatch_floating("pairwise_relevance", given.a.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const Packed<T> a(read<scalar_t>(given.a), N, H), b(read<scalar_t>(given.b), M, H);
    const Packed<T> w(read<scalar_t>(given.w), 1, H);
    const T bias = static_cast<T>(*read<scalar_t>(given.bias));
    auto* to = write<scalar_t>(out);
    torch::stable::parallel_for(0, padded_rows(N) / kRows, 1, [&](int64_t begin, int64_t end) {
      T sums[kRows * kColumns];
      for (int64_t n = begin * kRows; n < end * kRows; n += kRows) {
        for (int64_t m = 0; m < M; m += kColumns) {
          relevance_block(a.at(n), b.at(m), w.at(0), a.row, sums);
          for (int64_t i = 0; i < std::min(kRows, N - n); ++i) {
            for (int64_t j = 0; j < std::min(kColumns, M - m); ++j) {
              to[(n + i) * M + m + j] = static_cast<scalar_t>(sigmoid(sums[i * kColumns + j] + bias));
            }
          }
        }
      }
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pairwise_relevance_backward(const Tensor& grad_in, const Tensor& a_in,
                                                                       const Tensor& b_in, const Tensor& w_in,
                                                                       const Tensor& bias_in, const Tensor& out_in) {
  const char* op = "pairwise_relevance_backward";
  const Relevance given(op, a_in, b_in, w_in, bias_in);
  const int64_t N = given.N, M = given.M, H = given.H;
  check_sizes(op, "grad", grad_in, {N, M});
  check_sizes(op, "out", out_in, {N, M});
  check_dtype(op, "grad", grad_in, given.a.scalar_type());
  check_dtype(op, "out", out_in, given.a.scalar_type());
  const Tensor grad = torch::stable::contiguous(grad_in), out = torch::stable::contiguous(out_in);
  Tensor by_a = torch::stable::new_empty(given.a, {N, H}), by_b = torch::stable::new_empty(given.b, {M, H});
  Tensor by_w = torch::stable::new_empty(given.w, {H}), by_bias = torch::stable::new_empty(given.bias, {});
  dispatch_floating(op, given.a.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const Packed<T> a(read<scalar_t>(given.a), N, H), b(read<scalar_t>(given.b), M, H);
    const auto* w = read<scalar_t>(given.w);
    const int64_t row = a.row, columns = padded_rows(M);
    std::vector<T> g(padded_rows(N) * columns);  // derivative by the logits; 0 in the padding
    T sum = 0;
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t m = 0; m < M; ++m) {
        const T p = static_cast<T>(read<scalar_t>(out)[n * M + m]);
        g[n * columns + m] = static_cast<T>(read<scalar_t>(grad)[n * M + m]) * p * (T{1} - p);
        sum += g[n * columns + m];
      }
    }
    *write<scalar_t>(by_bias) = static_cast<scalar_t>(sum);

    // Each block of rows of a, then of b; a block leaves its share of by_w beside the gradients.
    const int64_t a_blocks = padded_rows(N) / kRows, b_blocks = columns / kRows;
    std::vector<T> shares((a_blocks + b_blocks) * H);
    torch::stable::parallel_for(0, a_blocks + b_blocks, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> masked(kRows * row);
      for (int64_t task = begin; task < end; ++task) {
        const bool of_a = task < a_blocks;
        const int64_t first = (of_a ? task : task - a_blocks) * kRows, rows = std::min(kRows, (of_a ? N : M) - first);
        const T* x = of_a ? a.at(first) : b.at(first);
        if (of_a) {
          masked_sums(x, b.at(0), M, row, g.data() + first * columns, columns, 1, masked.data());
        } else {
          masked_sums(x, a.at(0), N, row, g.data() + first, 1, columns, masked.data());
        }
        scalar_t* by = (of_a ? write<scalar_t>(by_a) : write<scalar_t>(by_b)) + first * H;
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t h = 0; h < H; ++h) {
            const T s = masked[i * row + h];
            by[i * H + h] = static_cast<scalar_t>(static_cast<T>(w[h]) * s);
            shares[task * H + h] += x[i * row + h] * s;
          }
        }
      }
    });
    for (int64_t h = 0; h < H; ++h) {
      T total = 0;
      for (int64_t task = 0; task < a_blocks + b_blocks; ++task) {
        total += shares[task * H + h];
      }
      write<scalar_t>(by_w)[h] = static_cast<scalar_t>(total);
    }
  });
  return {by_a, by_b, by_w, by_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("pairwise_relevance", TORCH_BOX(&pairwise_relevance));
  m.impl("pairwise_relevance_backward", TORCH_BOX(&pairwise_relevance_backward));
}

}  // namespace vpgfast
