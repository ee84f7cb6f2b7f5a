// CUDA's names for 16-bit numbers, which are torch's here.
#ifndef CUDA_EMULATOR_FP16_H_
#define CUDA_EMULATOR_FP16_H_

#include <cuda_runtime.h>

using __half = torch::headeronly::Half;
using half = __half;
struct alignas(4) __half2 {
  __half x, y;
};
using half2 = __half2;

inline __half __float2half(float value) {
  return __half(value);
}
inline __half __float2half_rn(float value) {
  return __half(value);
}
inline float __half2float(__half value) {
  return static_cast<float>(value);
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__half(x), __half(y)};
}
inline __half2 __float22half2_rn(float2 pair) {
  return __floats2half2_rn(pair.x, pair.y);
}
inline float2 __half22float2(__half2 pair) {
  return {static_cast<float>(pair.x), static_cast<float>(pair.y)};
}
inline float __low2float(__half2 pair) {
  return static_cast<float>(pair.x);
}
inline float __high2float(__half2 pair) {
  return static_cast<float>(pair.y);
}

#endif
