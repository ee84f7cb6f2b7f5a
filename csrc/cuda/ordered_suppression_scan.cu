// ordered_suppression_scan on CUDA. See vpgfast/ops/ordered_suppression_scan.py for what it computes.
//
// A thread owns a cell and walks over the sentences with what is left of the cell in a register.

#include "common/ordered_suppression_scan.h"

#include <tuple>

#include "cuda/launch.h"

namespace vpgfast::ordered_suppression_scan_cuda {
namespace {

struct Shape {
  int64_t B, M, cells;
  bool reverse;
};

// Place of the k-th sentence in order, of video b.
__device__ __forceinline__ int64_t sentence_at(const Shape& shape, int64_t b, int64_t k) {
  return b * shape.M + (shape.reverse ? shape.M - 1 - k : k);
}

// Of a cell counted through all videos; without a division of 64 bits where it can be.
__device__ __forceinline__ int64_t video_of(int64_t index, const Shape& shape) {
  return (index | shape.cells) >> 31 == 0 ? static_cast<uint32_t>(index) / static_cast<uint32_t>(shape.cells)
                                          : index / shape.cells;
}

constexpr int kAhead = 8;  // sentences of a cell that are loaded at once: a walk that waits for each takes longer

// Of the kAhead sentences from the k-th on, those that there are: use(i, m) for the i-th, at place m.
template <typename Use>
__device__ __forceinline__ void for_each_ahead(const Shape& shape, int64_t b, int64_t k, const Use& use) {
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    if (k + i < shape.M) {
      use(i, sentence_at(shape, b, k + i));
    }
  }
}

template <typename scalar_t>
__global__ void scan(const scalar_t* __restrict__ z, const scalar_t* __restrict__ bias,
                     const bool* __restrict__ sentences, scalar_t* __restrict__ out, Shape shape) {
  using T = accumulate_t<scalar_t>;
  const T b0 = static_cast<T>(*bias);
  for (int64_t index = first_index(); index < shape.B * shape.cells; index += index_stride()) {
    const int64_t b = video_of(index, shape), cell = index - b * shape.cells;
    T s = 1;
    for (int64_t k = 0; k < shape.M; k += kAhead) {
      T logits[kAhead];
      bool counts[kAhead];
      for_each_ahead(shape, b, k, [&](int i, int64_t m) {
        counts[i] = sentences == nullptr || sentences[m];
        logits[i] = static_cast<T>(z[m * shape.cells + cell]);
      });
      for_each_ahead(shape, b, k, [&](int i, int64_t m) {
        const T logit = s * logits[i] + b0;
        const T y = exp(logit < T{0} ? logit : -logit);
        const T p = counts[i] ? (logit < T{0} ? y : T{1}) / (T{1} + y) : T{0};
        out[m * shape.cells + cell] = static_cast<scalar_t>(p);
        s -= p;
      });
    }
  }
}

// Each block leaves the sum of its derivatives by the logits.
template <typename scalar_t>
__global__ void scan_backward(const scalar_t* __restrict__ grad, const scalar_t* __restrict__ z,
                              const scalar_t* __restrict__ P, const bool* __restrict__ sentences,
                              scalar_t* __restrict__ by_z, accumulate_t<scalar_t>* __restrict__ sums, Shape shape) {
  using T = accumulate_t<scalar_t>;
  T sum = 0;
  for (int64_t index = first_index(); index < shape.B * shape.cells; index += index_stride()) {
    const int64_t b = video_of(index, shape), cell = index - b * shape.cells;
    T s = 1, by_s = 0;
#pragma unroll(kAhead)
    for (int64_t m = 0; m < shape.M; ++m) {
      s -= static_cast<T>(P[(b * shape.M + m) * shape.cells + cell]);
    }
    const Shape backward{shape.B, shape.M, shape.cells, !shape.reverse};
    for (int64_t k = 0; k < shape.M; k += kAhead) {
      T p[kAhead], incoming[kAhead], value[kAhead];
      bool counts[kAhead];
      for_each_ahead(backward, b, k, [&](int i, int64_t m) {
        const int64_t at = m * shape.cells + cell;
        counts[i] = sentences == nullptr || sentences[m];
        p[i] = static_cast<T>(P[at]);
        incoming[i] = static_cast<T>(grad[at]);
        value[i] = static_cast<T>(z[at]);
      });
      for_each_ahead(backward, b, k, [&](int i, int64_t m) {
        T by_value = 0;
        if (counts[i]) {
          s += p[i];
          const T by_logit = (incoming[i] - by_s) * p[i] * (T{1} - p[i]);
          by_value = by_logit * s;
          by_s += by_logit * value[i];
          sum += by_logit;
        }
        by_z[m * shape.cells + cell] = static_cast<scalar_t>(by_value);
      });
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = sum;
  }
}

template <typename scalar_t>
__global__ void add_up(const accumulate_t<scalar_t>* sums, int64_t count, scalar_t* out) {
  accumulate_t<scalar_t> sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    sum += sums[i];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    *out = static_cast<scalar_t>(sum);
  }
}

Tensor ordered_suppression_scan(const Tensor& z, const Tensor& bias, const std::optional<Tensor>& sentence_mask,
                                bool reverse) {
  const torch::stable::accelerator::DeviceGuard guard(z.get_device_index());
  const SuppressionScan a("ordered_suppression_scan", z, bias, sentence_mask, reverse);
  Tensor out = torch::stable::new_empty(a.z, {a.B, a.M, a.cells});
  if (a.B * a.M * a.cells > 0) {
    dispatch_floating("ordered_suppression_scan", a.z.scalar_type(), [&]<typename scalar_t>() {
      scan<<<blocks_for(a.B * a.cells), kThreads, 0, current_stream(a.z)>>>(read<scalar_t>(a.z), read<scalar_t>(a.bias),
                                                                            a.sentences(), write<scalar_t>(out),
                                                                            Shape{a.B, a.M, a.cells, a.reverse});
      check_launch("ordered_suppression_scan");
    });
  }
  return out;
}

std::tuple<Tensor, Tensor> ordered_suppression_scan_backward(const Tensor& grad_in, const Tensor& z, const Tensor& bias,
                                                             const Tensor& P_in,
                                                             const std::optional<Tensor>& sentence_mask, bool reverse) {
  const char* op = "ordered_suppression_scan_backward";
  const torch::stable::accelerator::DeviceGuard guard(z.get_device_index());
  const SuppressionScan a(op, z, bias, sentence_mask, reverse);
  check_sizes(op, "grad", grad_in, {a.B, a.M, a.cells});
  check_sizes(op, "P", P_in, {a.B, a.M, a.cells});
  check_dtype(op, "grad", grad_in, a.z.scalar_type());
  check_dtype(op, "P", P_in, a.z.scalar_type());
  const Tensor grad = torch::stable::contiguous(grad_in), P = torch::stable::contiguous(P_in);
  Tensor by_z = torch::stable::new_empty(a.z, {a.B, a.M, a.cells});
  Tensor by_bias = torch::stable::new_empty(a.bias, {});
  dispatch_floating(op, a.z.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const unsigned blocks = blocks_for(a.B * a.cells);
    const Tensor sums = torch::stable::new_empty(a.z, {static_cast<int64_t>(blocks)}, accumulate_dtype(a.z));
    const cudaStream_t stream = current_stream(a.z);
    scan_backward<<<blocks, kThreads, 0, stream>>>(read<scalar_t>(grad), read<scalar_t>(a.z), read<scalar_t>(P),
                                                   a.sentences(), write<scalar_t>(by_z), write<T>(sums),
                                                   Shape{a.B, a.M, a.cells, a.reverse});
    add_up<scalar_t><<<1, kThreads, 0, stream>>>(read<T>(sums), blocks, write<scalar_t>(by_bias));
    check_launch(op);
  });
  return {by_z, by_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CUDA, m) {
  m.impl("ordered_suppression_scan", TORCH_BOX(&ordered_suppression_scan));
  m.impl("ordered_suppression_scan_backward", TORCH_BOX(&ordered_suppression_scan_backward));
}

}  // namespace vpgfast::ordered_suppression_scan_cuda
