// Ops of torch's own that the stable headers have no wrapper for. Call them from the thread that runs the op only.
#pragma once

#include <array>
#include <optional>

#include "common/tensor.h"

namespace vpgfast {

// out = a b, matrices of one dtype. The form with `out` is the one that autocast leaves alone: a kernel may run inside
// an autocast region (in backward), where a plain matmul would hand back another dtype than it was given.
inline void matrix_product(const Tensor& a, const Tensor& b, const Tensor& out) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes back the reference that the result holds
}

// Sorts a vector of integers, equals in their order. `sorted` may be `values`.
inline void stable_sort(const Tensor& values, Tensor& sorted, Tensor& order) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(values),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  sorted = torch::stable::detail::to<Tensor>(stack[0]);
  order = torch::stable::detail::to<Tensor>(stack[1]);
}

}  // namespace vpgfast
