// pairwise_relevance on CUDA. See vpgfast/ops/pairwise_relevance.py for what it computes, and the CPU's file for the
// sums that its backward is made of.

#include "common/pairwise_relevance.h"

#include <tuple>

#include "cuda/launch.h"

namespace vpgfast {
namespace {

constexpr int kTile = 32;      // rows of a, and of b, of a block
constexpr int kPerThread = 4;  // rows of a that a thread takes
constexpr int64_t kRowsPerShare = 64;

// A block computes kTile x kTile pairs from kTile channels at a time in shared memory; a thread, kPerThread of them.
template <typename scalar_t>
__global__ void relevance(const scalar_t* a, const scalar_t* b, const scalar_t* w, const scalar_t* bias, scalar_t* out,
                          int64_t N, int64_t M, int64_t H) {
  using T = accumulate_t<scalar_t>;
  __shared__ T left[kTile][kTile + 1], right[kTile][kTile + 1], weight[kTile];
  const int64_t tiles = (M + kTile - 1) / kTile;
  const int64_t n0 = blockIdx.x / tiles * kTile, m0 = blockIdx.x % tiles * kTile;
  const int column = threadIdx.x % kTile, row = threadIdx.x / kTile;
  T sum[kPerThread] = {};
  for (int64_t h0 = 0; h0 < H; h0 += kTile) {
    const int64_t h = h0 + column;
    for (int i = row; i < kTile; i += kThreads / kTile) {
      left[i][column] = n0 + i < N && h < H ? static_cast<T>(a[(n0 + i) * H + h]) : T{0};
      right[i][column] = m0 + i < M && h < H ? static_cast<T>(b[(m0 + i) * H + h]) : T{0};
    }
    if (row == 0) {
      weight[column] = h < H ? static_cast<T>(w[h]) : T{0};
    }
    __syncthreads();
    for (int k = 0; k < kTile; ++k) {
      for (int i = 0; i < kPerThread; ++i) {
        const T t = left[row * kPerThread + i][k] + right[column][k];
        sum[i] += weight[k] * (t < T{0} ? T{0} : t);
      }
    }
    __syncthreads();
  }
  const T b0 = static_cast<T>(*bias);
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t n = n0 + row * kPerThread + i, m = m0 + column;
    if (n < N && m < M) {
      const T x = sum[i] + b0, y = exp(x < T{0} ? x : -x);
      out[n * M + m] = static_cast<scalar_t>((x < T{0} ? y : T{1}) / (T{1} + y));
    }
  }
}

// Derivatives by the logits, and of each block their sum.
template <typename scalar_t>
__global__ void by_logits(const scalar_t* grad, const scalar_t* out, accumulate_t<scalar_t>* g,
                          accumulate_t<scalar_t>* sums, int64_t pairs) {
  using T = accumulate_t<scalar_t>;
  T sum = 0;
  for (int64_t i = first_index(); i < pairs; i += index_stride()) {
    const T p = static_cast<T>(out[i]);
    g[i] = static_cast<T>(grad[i]) * p * (T{1} - p);
    sum += g[i];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = sum;
  }
}

// masked[x, h] = sum_y g(x, y) [rows[x, h] + others[y, h] > 0]; by_rows = w masked.
template <typename scalar_t>
__global__ void masked_sums(const scalar_t* rows, const scalar_t* others, const scalar_t* w,
                            const accumulate_t<scalar_t>* g, accumulate_t<scalar_t>* masked, scalar_t* by_rows,
                            int64_t X, int64_t Y, int64_t H, int64_t g_row, int64_t g_column) {
  using T = accumulate_t<scalar_t>;
  for (int64_t index = first_index(); index < X * H; index += index_stride()) {
    const int64_t x = index / H, h = index % H;
    const T value = static_cast<T>(rows[index]);
    T sum = 0;
    for (int64_t y = 0; y < Y; ++y) {
      sum += value + static_cast<T>(others[y * H + h]) > T{0} ? g[x * g_row + y * g_column] : T{0};
    }
    masked[index] = sum;
    by_rows[index] = static_cast<scalar_t>(static_cast<T>(w[h]) * sum);
  }
}

// Of every kRowsPerShare rows, the sum of rows * masked.
template <typename scalar_t>
__global__ void weight_shares(const scalar_t* rows, const accumulate_t<scalar_t>* masked,
                              accumulate_t<scalar_t>* shares, int64_t X, int64_t H) {
  using T = accumulate_t<scalar_t>;
  const int64_t count = (X + kRowsPerShare - 1) / kRowsPerShare;
  for (int64_t index = first_index(); index < count * H; index += index_stride()) {
    const int64_t first = index / H * kRowsPerShare, h = index % H;
    T sum = 0;
    for (int64_t x = first; x < min(X, first + kRowsPerShare); ++x) {
      sum += static_cast<T>(rows[x * H + h]) * masked[x * H + h];
    }
    shares[index] = sum;
  }
}

// out[h] = sum of `count` rows of `parts`.
template <typename scalar_t>
__global__ void add_rows(const accumulate_t<scalar_t>* parts, int64_t count, int64_t H, scalar_t* out) {
  for (int64_t h = first_index(); h < H; h += index_stride()) {
    accumulate_t<scalar_t> sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      sum += parts[i * H + h];
    }
    out[h] = static_cast<scalar_t>(sum);
  }
}

Tensor pairwise_relevance(const Tensor& a_in, const Tensor& b_in, const Tensor& w_in, const Tensor& bias_in) {
  const torch::stable::accelerator::DeviceGuard guard(a_in.get_device_index());
  const Relevance given("pairwise_relevance", a_in, b_in, w_in, bias_in);
  Tensor out = torch::stable::new_empty(given.a, {given.N, given.M});
  if (given.N * given.M > 0) {
    const int64_t blocks = ((given.N + kTile - 1) / kTile) * ((given.M + kTile - 1) / kTile);
    STD_TORCH_CHECK(blocks < (int64_t{1} << 31), "pairwise_relevance: too many pairs for one launch");
    dispatch_floating("pairwise_relevance", given.a.scalar_type(), [&]<typename scalar_t>() {
      relevance<<<static_cast<unsigned>(blocks), kThreads, 0, current_stream(given.a)>>>(
          read<scalar_t>(given.a), read<scalar_t>(given.b), read<scalar_t>(given.w), read<scalar_t>(given.bias),
          write<scalar_t>(out), given.N, given.M, given.H);
      check_launch("pairwise_relevance");
    });
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pairwise_relevance_backward(const Tensor& grad_in, const Tensor& a_in,
                                                                       const Tensor& b_in, const Tensor& w_in,
                                                                       const Tensor& bias_in, const Tensor& out_in) {
  const char* op = "pairwise_relevance_backward";
  const torch::stable::accelerator::DeviceGuard guard(a_in.get_device_index());
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
    const cudaStream_t stream = current_stream(given.a);
    const auto scratch = [&](int64_t rows, int64_t columns) {
      return torch::stable::new_empty(given.a, {rows, columns}, accumulate_dtype(given.a));
    };
    const unsigned blocks = blocks_for(N * M);
    const int64_t a_shares = (N + kRowsPerShare - 1) / kRowsPerShare,
                  b_shares = (M + kRowsPerShare - 1) / kRowsPerShare;
    const Tensor g = scratch(N, M), sums = scratch(blocks, 1), shares = scratch(a_shares + b_shares, H);
    const Tensor masked_a = scratch(N, H), masked_b = scratch(M, H);
    by_logits<<<blocks, kThreads, 0, stream>>>(read<scalar_t>(grad), read<scalar_t>(out), write<T>(g), write<T>(sums),
                                               N * M);
    add_rows<scalar_t><<<1, kThreads, 0, stream>>>(read<T>(sums), blocks, 1, write<scalar_t>(by_bias));
    masked_sums<<<blocks_for(N * H), kThreads, 0, stream>>>(read<scalar_t>(given.a), read<scalar_t>(given.b),
                                                            read<scalar_t>(given.w), read<T>(g), write<T>(masked_a),
                                                            write<scalar_t>(by_a), N, M, H, M, int64_t{1});
    masked_sums<<<blocks_for(M * H), kThreads, 0, stream>>>(read<scalar_t>(given.b), read<scalar_t>(given.a),
                                                            read<scalar_t>(given.w), read<T>(g), write<T>(masked_b),
                                                            write<scalar_t>(by_b), M, N, H, int64_t{1}, M);
    weight_shares<<<blocks_for(a_shares * H), kThreads, 0, stream>>>(read<scalar_t>(given.a), read<T>(masked_a),
                                                                     write<T>(shares), N, H);
    weight_shares<<<blocks_for(b_shares * H), kThreads, 0, stream>>>(read<scalar_t>(given.b), read<T>(masked_b),
                                                                     write<T>(shares) + a_shares * H, M, H);
    add_rows<scalar_t>
        <<<blocks_for(H), kThreads, 0, stream>>>(read<T>(shares), a_shares + b_shares, H, write<scalar_t>(by_w));
    check_launch(op);
  });
  return {by_a, by_b, by_w, by_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("pairwise_relevance", TORCH_BOX(&pairwise_relevance));
  m.impl("pairwise_relevance_backward", TORCH_BOX(&pairwise_relevance_backward));
}

}  // namespace vpgfast
