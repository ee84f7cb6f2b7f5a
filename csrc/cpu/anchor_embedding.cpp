// anchor_embedding on the CPU. See vpgfast/ops/anchor_embedding.py for what it computes.

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/tensor.h"
#include "cpu/vector_math.h"

namespace vpgfast {
namespace {

constexpr int64_t kAnglesPerTask = 1 << 12;

// Angles per unit of centre or width, D / 4 of them.
template <typename T>
std::vector<T> anchor_frequencies(int64_t D, double temperature) {
  std::vector<T> of(D / 4);
  for (int64_t i = 0; i < D / 4; ++i) {
    of[i] = static_cast<T>(2 * 3.14159265358979323846 /
                           std::pow(temperature, 4.0 * static_cast<double>(i) / static_cast<double>(D)));
  }
  return of;
}

// Sines and cosines of all angles of one centre or width.
template <typename T>
inline __attribute__((always_inline)) void all_angles(T x, const T* __restrict frequencies, int32_t count,
                                                      T* __restrict sines, T* __restrict cosines) {
  const T largest = count > 0 ? std::abs(x) * std::max(frequencies[0], frequencies[count - 1]) : T{0};
  if (largest <= static_cast<T>(kLargestAngle)) {
    for (int32_t i = 0; i < count; ++i) {
      sine_and_cosine(x * frequencies[i], sines[i], cosines[i]);
    }
  } else {
    for (int32_t i = 0; i < count; ++i) {
      sines[i] = std::sin(x * frequencies[i]);
      cosines[i] = std::cos(x * frequencies[i]);
    }
  }
}

template <typename T, typename scalar_t>
void embed(T x, const T* __restrict frequencies, int32_t count, T* __restrict sines, T* __restrict cosines,
           scalar_t* __restrict out) {
  all_angles(x, frequencies, count, sines, cosines);
  for (int32_t i = 0; i < count; ++i) {
    out[2 * i] = static_cast<scalar_t>(sines[i]);
    out[2 * i + 1] = static_cast<scalar_t>(cosines[i]);
  }
}

template <typename T, typename scalar_t>
T embed_backward(T x, const T* __restrict frequencies, int32_t count, T* __restrict sines, T* __restrict cosines,
                 const scalar_t* __restrict grad) {
  all_angles(x, frequencies, count, sines, cosines);
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int32_t i = 0; i < count; ++i) {
    sum += (static_cast<T>(grad[2 * i]) * cosines[i] - static_cast<T>(grad[2 * i + 1]) * sines[i]) * frequencies[i];
  }
  return sum;
}

Tensor anchor_embedding(const Tensor& anchors_in, int64_t D, double temperature) {
  check_sizes("anchor_embedding", "anchors", anchors_in, {-1, 2});
  STD_TORCH_CHECK(D >= 0 && D % 4 == 0, "anchor_embedding: D is ", D, "; it must be a multiple of 4");
  const Tensor anchors = torch::stable::contiguous(anchors_in);
  Tensor out = torch::stable::new_empty(anchors, {anchors.size(0), D});
  dispatch_floating("anchor_embedding", anchors.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const std::vector<T> frequencies = anchor_frequencies<T>(D, temperature);
    const int64_t half = D / 2, grain = std::max<int64_t>(1, kAnglesPerTask / std::max<int64_t>(1, half));
    torch::stable::parallel_for(0, 2 * anchors.size(0), grain, [&](int64_t begin, int64_t end) {
      std::vector<T> sines(half / 2), cosines(half / 2);
      for (int64_t k = begin; k < end; ++k) {
        embed(static_cast<T>(read<scalar_t>(anchors)[k]), frequencies.data(), static_cast<int32_t>(half / 2),
              sines.data(), cosines.data(), write<scalar_t>(out) + k * half);
      }
    });
  });
  return out;
}

Tensor anchor_embedding_backward(const Tensor& grad_in, const Tensor& anchors_in, double temperature) {
  check_sizes("anchor_embedding_backward", "grad", grad_in, {anchors_in.size(0), -1});
  check_dtype("anchor_embedding_backward", "grad", grad_in, anchors_in.scalar_type());
  const Tensor grad = torch::stable::contiguous(grad_in), anchors = torch::stable::contiguous(anchors_in);
  const int64_t D = grad.size(1);
  Tensor grad_anchors = torch::stable::new_empty(anchors, {anchors.size(0), 2});
  dispatch_floating("anchor_embedding_backward", anchors.scalar_type(), [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const std::vector<T> frequencies = anchor_frequencies<T>(D, temperature);
    const int64_t half = D / 2, grain = std::max<int64_t>(1, kAnglesPerTask / std::max<int64_t>(1, half));
    torch::stable::parallel_for(0, 2 * anchors.size(0), grain, [&](int64_t begin, int64_t end) {
      std::vector<T> sines(half / 2), cosines(half / 2);
      for (int64_t k = begin; k < end; ++k) {
        const T sum = embed_backward(static_cast<T>(read<scalar_t>(anchors)[k]), frequencies.data(),
                                     static_cast<int32_t>(half / 2), sines.data(), cosines.data(),
                                     read<scalar_t>(grad) + k * half);
        write<scalar_t>(grad_anchors)[k] = static_cast<scalar_t>(sum);
      }
    });
  });
  return grad_anchors;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpgfast, CPU, m) {
  m.impl("anchor_embedding", TORCH_BOX(&anchor_embedding));
  m.impl("anchor_embedding_backward", TORCH_BOX(&anchor_embedding_backward));
}

}  // namespace vpgfast
