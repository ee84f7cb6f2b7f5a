// Floating-point numbers as integers of the same order.
//
// A float's bits, taken as a sign-magnitude integer, sort as the float does. Turned into two's complement they can be
// compared by plain integer instructions, which vectorise for every width, 16-bit floats included. Every NaN becomes
// the largest key, so a maximum propagates it for free.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <bit>
#include <cstdint>
#include <limits>

namespace vpgfast {

template <typename scalar_t>
struct OrderedBits;

namespace detail {
template <typename Int, Int kInfinity>
struct OrderedBitsOf {
  using key_t = Int;
  static constexpr Int kNaN = std::numeric_limits<Int>::max();

  static Int encode(Int bits) {
    const Int magnitude = bits & kNaN;
    const Int key = bits < 0 ? static_cast<Int>(bits ^ kNaN) : bits;
    return magnitude > kInfinity ? kNaN : key;
  }
  static Int decode(Int key) {
    return key < 0 ? static_cast<Int>(key ^ kNaN) : key;
  }
  // The same order with -0 and +0 as equals, for deciding which of two elements is the first maximum.
  static Int encode_for_ties(Int bits) {
    return encode(bits == std::numeric_limits<Int>::min() ? Int{0} : bits);
  }
};
}  // namespace detail

template <>
struct OrderedBits<float> : detail::OrderedBitsOf<int32_t, 0x7f800000> {};
template <>
struct OrderedBits<double> : detail::OrderedBitsOf<int64_t, 0x7ff0000000000000> {};
template <>
struct OrderedBits<torch::headeronly::BFloat16> : detail::OrderedBitsOf<int16_t, 0x7f80> {};
template <>
struct OrderedBits<torch::headeronly::Half> : detail::OrderedBitsOf<int16_t, 0x7c00> {};

}  // namespace vpgfast
