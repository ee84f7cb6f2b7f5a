// Exponential and logarithm on the ranges that a sigmoid needs, sine and cosine of moderate angles, written so that the
// compiler vectorises loops over them: the standard library's are calls. Float ones are within 3 units in the last
// place; double falls back on the library.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace vpgfast {

// exp(x) for x <= 0; below -87 it stops at exp(-87) = 1.6e-38. NaN stays NaN.
inline __attribute__((always_inline)) float exp_of_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x < -87.0f ? -87.0f : x;
  const float rounded = x * 1.44269504f + kRound, n = rounded - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts (Cody and Waite)
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // n stands in the last bits of `rounded`; a conversion to an integer would be undefined for NaN.
  const uint32_t exponent = std::bit_cast<uint32_t>(rounded) - std::bit_cast<uint32_t>(kRound) + 127;
  return p * std::bit_cast<float>(exponent << 23);
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

// Sine and cosine of |x| up to kLargestAngle, to 2e-7.
constexpr double kLargestAngle = 3e4;
inline __attribute__((always_inline)) void sine_and_cosine(float x, float& sine, float& cosine) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (x * 0.636619772f + kRound) - kRound;
  const float r = ((x - n * 1.5703125f) - n * 4.83751297e-4f) - n * 7.54978995e-8f;  // pi / 2 in three parts
  const float q = r * r;
  const float s = r + r * q * (-1.66666546e-1f + q * (8.33216087e-3f + q * -1.95152959e-4f));
  const float c = 1.0f - 0.5f * q + q * q * (4.16666457e-2f + q * (-1.38873163e-3f + q * 2.44331571e-5f));
  const int32_t quadrant = static_cast<int32_t>(n);
  const float first = (quadrant & 1) != 0 ? c : s, second = (quadrant & 1) != 0 ? s : c;
  sine = (quadrant & 2) != 0 ? -first : first;
  cosine = ((quadrant + 1) & 2) != 0 ? -second : second;
}

inline void sine_and_cosine(double x, double& sine, double& cosine) {
  sine = std::sin(x);
  cosine = std::cos(x);
}

}  // namespace vpgfast
