// Matrix products of a warp: nvcuda::wmma. A fragment's elements are dealt out to the lanes in order; which lane has
// which CUDA does not say either. Products of 16-bit and TF32 inputs are exact in float, sums are formed in it.
#ifndef CUDA_EMULATOR_MMA_H_
#define CUDA_EMULATOR_MMA_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32 {};
}  // namespace precision

// 10 bits behind the point, ties away from zero.
inline float __float_to_tf32(float value) {
  const unsigned bits = __float_as_uint(value);
  return (bits & 0x7f800000u) == 0x7f800000u ? value : __uint_as_float((bits + 0x1000u) & ~0x1fffu);
}

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
  static constexpr int kRows = std::is_same_v<Use, matrix_b> ? K : M;
  static constexpr int kColumns = std::is_same_v<Use, matrix_a> ? K : N;
  static constexpr bool kTF32 = std::is_same_v<T, precision::tf32>;
  using element_type = std::conditional_t<kTF32, float, T>;
  enum { num_elements = kRows * kColumns / warpSize };
  element_type x[num_elements];

  // What the product sees of an element: the low bits of what was not rounded to TF32 are cut off.
  auto operand(int i) const {
    if constexpr (kTF32) {
      return __uint_as_float(__float_as_uint(x[i]) & ~0x1fffu);
    } else if constexpr (std::is_same_v<T, double>) {
      return x[i];
    } else {
      return static_cast<float>(x[i]);
    }
  }
};

namespace detail {
template <typename Fragment, typename T>
void check(const T* at, unsigned stride, cuda_emulator::Place place) {
  if (reinterpret_cast<uintptr_t>(at) % 32 != 0) {
    cuda_emulator::fail("a matrix must begin at a multiple of 32 bytes", place);
  }
  if (stride * sizeof(T) % 16 != 0) {
    cuda_emulator::fail("a matrix's rows must lie a multiple of 16 bytes apart", place);
  }
  cuda_emulator::gather(stride, place);
}
template <typename Fragment, typename Visit>
void each_element(bool by_column, unsigned stride, const Visit& visit) {
  for (int i = 0; i < Fragment::num_elements; ++i) {
    const int element = cuda_emulator::lane() * Fragment::num_elements + i;
    const int row = element / Fragment::kColumns, column = element % Fragment::kColumns;
    visit(i, by_column ? size_t{stride} * column + row : size_t{stride} * row + column);
  }
}
}  // namespace detail

template <typename Use, int M, int N, int K, typename T, typename Layout, typename Value>
void fill_fragment(fragment<Use, M, N, K, T, Layout>& to, const Value& value) {
  for (auto& element : to.x) {
    element = value;
  }
}

template <typename Use, int M, int N, int K, typename T, typename Layout, typename Stored>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& to, const Stored* from, unsigned stride, CUDA_EMULATOR_HERE) {
  using Fragment = fragment<Use, M, N, K, T, Layout>;
  detail::check<Fragment>(from, stride, place);
  detail::each_element<Fragment>(std::is_same_v<Layout, col_major>, stride,
                                 [&](int i, size_t at) { to.x[i] = from[at]; });
}
template <int M, int N, int K, typename T>
void load_matrix_sync(fragment<accumulator, M, N, K, T>& to, const T* from, unsigned stride, layout_t layout,
                      CUDA_EMULATOR_HERE) {
  using Fragment = fragment<accumulator, M, N, K, T>;
  detail::check<Fragment>(from, stride, place);
  detail::each_element<Fragment>(layout == mem_col_major, stride, [&](int i, size_t at) { to.x[i] = from[at]; });
}
template <int M, int N, int K, typename T>
void store_matrix_sync(T* to, const fragment<accumulator, M, N, K, T>& from, unsigned stride, layout_t layout,
                       CUDA_EMULATOR_HERE) {
  using Fragment = fragment<accumulator, M, N, K, T>;
  detail::check<Fragment>(to, stride, place);
  detail::each_element<Fragment>(layout == mem_col_major, stride, [&](int i, size_t at) { to[at] = from.x[i]; });
}

template <int M, int N, int K, typename D, typename T, typename LayoutA, typename LayoutB, typename C>
void mma_sync(fragment<accumulator, M, N, K, D>& out, const fragment<matrix_a, M, N, K, T, LayoutA>& a,
              const fragment<matrix_b, M, N, K, T, LayoutB>& b, const fragment<accumulator, M, N, K, C>& c,
              CUDA_EMULATOR_HERE) {
  const void* own[2] = {&a, &b};
  const uint64_t* of_lanes = cuda_emulator::gather(reinterpret_cast<uint64_t>(own), place);
  const auto operand = [&]<typename Fragment>(const Fragment*, int which, int row, int column) {
    const int element = row * Fragment::kColumns + column;
    const auto* pair = reinterpret_cast<const void* const*>(of_lanes[element / Fragment::num_elements]);
    return static_cast<const Fragment*>(pair[which])->operand(element % Fragment::num_elements);
  };
  fragment<accumulator, M, N, K, D> result;
  for (int i = 0; i < result.num_elements; ++i) {
    const int element = cuda_emulator::lane() * result.num_elements + i, row = element / N, column = element % N;
    auto sum = std::conditional_t<std::is_same_v<C, double>, double, float>(c.x[i]);
    for (int k = 0; k < K; ++k) {
      sum += operand(&a, 0, row, k) * operand(&b, 1, k, column);
    }
    result.x[i] = static_cast<D>(sum);
  }
  cuda_emulator::gather(0, place);  // the others have read this lane's fragments
  out = result;
}

}  // namespace nvcuda::wmma

#endif
