// float2, float4 and the like. Their alignment is checked by the compiler's sanitizer wherever one is read or written.
#ifndef CUDA_EMULATOR_VECTOR_TYPES_H_
#define CUDA_EMULATOR_VECTOR_TYPES_H_

#define VECTORS_(type, name, alignment2, alignment4)                 \
  struct alignas(alignment2) name##2 {                               \
    type x, y;                                                       \
  };                                                                 \
  struct alignas(alignment4) name##4 {                               \
    type x, y, z, w;                                                 \
  };                                                                 \
  constexpr name##2 make_##name##2(type x, type y) {                 \
    return {x, y};                                                   \
  }                                                                  \
  constexpr name##4 make_##name##4(type x, type y, type z, type w) { \
    return {x, y, z, w};                                             \
  }
VECTORS_(signed char, char, 2, 4)
VECTORS_(unsigned char, uchar, 2, 4)
VECTORS_(short, short, 4, 8)
VECTORS_(unsigned short, ushort, 4, 8)
VECTORS_(int, int, 8, 16)
VECTORS_(unsigned, uint, 8, 16)
VECTORS_(long long, longlong, 16, 16)
VECTORS_(unsigned long long, ulonglong, 16, 16)
VECTORS_(float, float, 8, 16)
VECTORS_(double, double, 16, 16)
#undef VECTORS_

struct float3 {
  float x, y, z;
};
struct int3 {
  int x, y, z;
};

#endif
