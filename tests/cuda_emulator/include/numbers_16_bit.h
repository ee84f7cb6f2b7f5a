// CUDA's names for a 16-bit number, which is torch's here, and for pairs of it.
#ifndef CUDA_EMULATOR_NUMBERS_16_BIT_H_
#define CUDA_EMULATOR_NUMBERS_16_BIT_H_

#include <cuda_runtime.h>

// `type`: CUDA's; `word`: what stands for it in the names of functions; `torch_type`: torch's.
#define NUMBERS_16_BIT_(type, word, torch_type)                      \
  using __##type = torch::headeronly::torch_type;                    \
  using type = __##type;                                             \
  struct alignas(4) __##type##2 {                                    \
    type x, y;                                                       \
  };                                                                 \
  using type##2 = __##type##2;                                       \
  inline type __float2##word(float value) {                          \
    return type(value);                                              \
  }                                                                  \
  inline type __float2##word##_rn(float value) {                     \
    return type(value);                                              \
  }                                                                  \
  inline float __##word##2float(type value) {                        \
    return static_cast<float>(value);                                \
  }                                                                  \
  inline type##2 __floats2##word##2_rn(float x, float y) {           \
    return {type(x), type(y)};                                       \
  }                                                                  \
  inline type##2 __float22##word##2_rn(float2 pair) {                \
    return {type(pair.x), type(pair.y)};                             \
  }                                                                  \
  inline float2 __##word##22float2(type##2 pair) {                   \
    return {static_cast<float>(pair.x), static_cast<float>(pair.y)}; \
  }                                                                  \
  inline float __low2float(type##2 pair) {                           \
    return static_cast<float>(pair.x);                               \
  }                                                                  \
  inline float __high2float(type##2 pair) {                          \
    return static_cast<float>(pair.y);                               \
  }

#endif
