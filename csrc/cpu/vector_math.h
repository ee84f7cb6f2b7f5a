// Exponential and logarithm on the ranges that a sigmoid needs, written so that the compiler vectorises loops over
// them: the standard library's are calls. Float ones are within 3 units in the last place; double falls back on the
// library.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace vpgfast {

// exp(x) for x <= 0; below -87 it stops at exp(-87) = 1.6e-38. NaN stays NaN.
inline __attribute__((always_inline)) float exp_of_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x < -87.0f ? -87.0f : x;
  const float n = (x * 1.44269504f + kRound) - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts (Cody and Waite)
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

inline double exp_of_nonpositive(double x) {
  return std::exp(x);
}

// log(1 + y) for 0 <= y <= 1, by 2 artanh(s) with s = y / (2 + y) <= 1/3.
inline __attribute__((always_inline)) float log1p_of_unit(float y) {
  const float s = y / (2.0f + y), q = s * s;
  float p = 1.0f / 15;
  p = p * q + 1.0f / 13;
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  p = p * q + 1.0f;
  return 2.0f * s * p;
}

inline double log1p_of_unit(double y) {
  return std::log1p(y);
}

}  // namespace vpgfast
