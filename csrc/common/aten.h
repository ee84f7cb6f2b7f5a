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

// out = a b in the dtype of sums: of 16-bit matrices a float32 product, whose sums are not rounded to 16 bits on the
// way to whatever is yet added to them. Torch has that product on CUDA alone; on the CPU the matrices are widened
// first.
inline void matrix_product_float(const Tensor& a, const Tensor& b, const Tensor& out) {
  const ScalarType dtype = out.scalar_type();
  if (a.scalar_type() == dtype) {
    matrix_product(a, b, out);
  } else if (a.is_cuda()) {
    std::array<StableIValue, 4> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                      torch::stable::detail::from(dtype), torch::stable::detail::from(out)};
    STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);  // as above
  } else {
    Tensor wide_a = torch::stable::new_empty(a, {a.size(0), a.size(1)}, dtype);
    Tensor wide_b = torch::stable::new_empty(b, {b.size(0), b.size(1)}, dtype);
    torch::stable::copy_(wide_a, a);
    torch::stable::copy_(wide_b, b);
    matrix_product(wide_a, wide_b, out);
  }
}

}  // namespace vpgfast
