// CUDA's names for bfloat16, which is torch's here.
#ifndef CUDA_EMULATOR_BF16_H_
#define CUDA_EMULATOR_BF16_H_

#include <cuda_runtime.h>

using __nv_bfloat16 = torch::headeronly::BFloat16;
using nv_bfloat16 = __nv_bfloat16;
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using nv_bfloat162 = __nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float value) {
  return __nv_bfloat16(value);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  return __nv_bfloat16(value);
}
inline float __bfloat162float(__nv_bfloat16 value) {
  return static_cast<float>(value);
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 pair) {
  return __floats2bfloat162_rn(pair.x, pair.y);
}
inline float2 __bfloat1622float2(__nv_bfloat162 pair) {
  return {static_cast<float>(pair.x), static_cast<float>(pair.y)};
}
inline float __low2float(__nv_bfloat162 pair) {
  return static_cast<float>(pair.x);
}
inline float __high2float(__nv_bfloat162 pair) {
  return static_cast<float>(pair.y);
}

#endif
