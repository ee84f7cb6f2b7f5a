// Matrix products of torch, called through its stable interface; only from the thread that runs the op.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <array>

#include "common/tensor.h"

namespace vpgfast {

// A view of memory that outlives it.
template <typename T>
Tensor view_of(T* data, std::initializer_list<int64_t> sizes, std::initializer_list<int64_t> strides,
               const Tensor& like) {
  return torch::stable::from_blob(data, sizes, strides, like.device(), like.scalar_type());
}

// out = a b, for matrices on any device.
inline void mm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes back the reference that the result came with
}

// out = a b, or out += a b, for batches of matrices on the CPU.
inline void cpu_bmm(const Tensor& out, const Tensor& a, const Tensor& b, bool add) {
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_baddbmm_out(out.get(), out.get(), a.get(), b.get(), add ? 1.0 : 0.0, 1.0));
}

}  // namespace vpgfast
