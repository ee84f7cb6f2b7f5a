// CUDA's functions for device code.
#ifndef CUDA_EMULATOR_DEVICE_FUNCTIONS_H_
#define CUDA_EMULATOR_DEVICE_FUNCTIONS_H_

constexpr unsigned kCudaEmulatorAll = 0xffffffffu;

// Threads ------------------------------------------------------------------------------------------------------------

inline void __syncthreads(CUDA_EMULATOR_HERE) {
  cuda_emulator::barrier(place);
}
inline void __syncwarp(unsigned mask = kCudaEmulatorAll, CUDA_EMULATOR_HERE) {
  cuda_emulator::meet(mask, 0, -1, true, place);
}
// Blocks run one after the other: what one has written the next can read. Only races ask for a fence.
inline void __threadfence() {
  cuda_emulator::fence();
}
inline void __threadfence_block() {
}

// A width below 32 parts the warp into segments, of which each shuffles by itself.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_EMULATOR_HERE) {
  const int first = cuda_emulator::lane() & ~(width - 1);
  return cuda_emulator::shuffle(mask, value, first + (source & (width - 1)), place);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_EMULATOR_HERE) {
  const int lane = cuda_emulator::lane(), source = lane + static_cast<int>(delta);
  return cuda_emulator::shuffle(mask, value, source / width == lane / width ? source : lane, place);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_EMULATOR_HERE) {
  const int lane = cuda_emulator::lane(), source = lane - static_cast<int>(delta);
  return cuda_emulator::shuffle(mask, value, source >= (lane & ~(width - 1)) ? source : lane, place);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CUDA_EMULATOR_HERE) {
  const int lane = cuda_emulator::lane(), source = lane ^ bits;
  return cuda_emulator::shuffle(mask, value, source / width <= lane / width ? source : lane, place);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_EMULATOR_HERE) {
  return static_cast<unsigned>(cuda_emulator::meet(mask, predicate != 0, -1, false, place));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_EMULATOR_HERE) {
  return cuda_emulator::meet(mask, predicate != 0, -1, false, place) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_EMULATOR_HERE) {
  return cuda_emulator::meet(mask, predicate != 0, -1, false, place) == mask;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, CUDA_EMULATOR_HERE) {
  unsigned equal = 0;
  for (int source = 0; source < 32; ++source) {
    if ((mask >> source & 1u) != 0 && cuda_emulator::shuffle(mask, value, source, place) == value) {
      equal |= 1u << source;
    }
  }
  return equal;
}
inline int __syncthreads_count(int predicate, CUDA_EMULATOR_HERE) {
  return cuda_emulator::barrier_with_votes(predicate != 0, place);
}
inline int __syncthreads_or(int predicate, CUDA_EMULATOR_HERE) {
  return cuda_emulator::barrier_with_votes(predicate != 0, place) != 0;
}
inline int __syncthreads_and(int predicate, CUDA_EMULATOR_HERE) {
  return cuda_emulator::barrier_with_votes(predicate == 0, place) == 0;
}
#define __activemask() static_assert(false, "which lanes are active is not defined; name them in a mask")

#define REDUCE_(name, T, operation)                                                                         \
  inline T name(unsigned mask, T value, CUDA_EMULATOR_HERE) {                                               \
    T result = value;                                                                                       \
    for (int source = 0; source < 32; ++source) {                                                           \
      const T other =                                                                                       \
          cuda_emulator::shuffle(mask, value, mask >> source & 1u ? source : cuda_emulator::lane(), place); \
      if ((mask >> source & 1u) && source != cuda_emulator::lane()) {                                       \
        result = operation;                                                                                 \
      }                                                                                                     \
    }                                                                                                       \
    return result;                                                                                          \
  }
REDUCE_(__reduce_add_sync, unsigned, result + other)
REDUCE_(__reduce_add_sync, int, result + other)
REDUCE_(__reduce_max_sync, unsigned, result > other ? result : other)
REDUCE_(__reduce_max_sync, int, result > other ? result : other)
REDUCE_(__reduce_min_sync, unsigned, result < other ? result : other)
REDUCE_(__reduce_min_sync, int, result < other ? result : other)
REDUCE_(__reduce_or_sync, unsigned, result | other)
REDUCE_(__reduce_and_sync, unsigned, result& other)
#undef REDUCE_

// Memory -------------------------------------------------------------------------------------------------------------

template <typename T>
T __ldg(const T* at) {
  return *at;
}
template <typename T>
T __ldcs(const T* at) {
  return *at;
}
template <typename T>
T __ldcg(const T* at) {
  return *at;
}
template <typename T>
void __stcs(T* at, T value) {
  *at = value;
}
template <typename T>
void __stcg(T* at, T value) {
  *at = value;
}

// One thread runs at a time. The hooks do not see these: cuda_emulator::atomic tells of them.
template <typename T>
using Same_ = std::type_identity_t<T>;
#define ATOMIC_(name, operation)                                                   \
  template <typename T>                                                            \
  __attribute__((noinline, no_sanitize("thread"))) T name(T* at, Same_<T> value) { \
    cuda_emulator::atomic(at, sizeof(T), __builtin_return_address(0));             \
    const T before = *at;                                                          \
    *at = operation;                                                               \
    return before;                                                                 \
  }
ATOMIC_(atomicAdd, before + value)
ATOMIC_(atomicSub, before - value)
ATOMIC_(atomicMin, value < before ? value : before)
ATOMIC_(atomicMax, value > before ? value : before)
ATOMIC_(atomicOr, before | value)
ATOMIC_(atomicAnd, before& value)
ATOMIC_(atomicXor, before ^ value)
ATOMIC_(atomicExch, value)
ATOMIC_(atomicInc, before >= value ? 0 : before + 1)
#undef ATOMIC_
template <typename T>
__attribute__((noinline, no_sanitize("thread"))) T atomicCAS(T* at, Same_<T> compare, Same_<T> value) {
  cuda_emulator::atomic(at, sizeof(T), __builtin_return_address(0));
  const T before = *at;
  *at = before == compare ? value : before;
  return before;
}

// Arithmetic ---------------------------------------------------------------------------------------------------------

inline int __popc(unsigned bits) {
  return __builtin_popcount(bits);
}
inline int __popcll(unsigned long long bits) {
  return __builtin_popcountll(bits);
}
inline int __ffs(int bits) {
  return __builtin_ffs(bits);
}
inline int __ffsll(long long bits) {
  return __builtin_ffsll(bits);
}
inline int __clz(int bits) {
  return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits));
}
inline int __clzll(long long bits) {
  return bits == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(bits));
}
inline unsigned __brev(unsigned bits) {
  unsigned turned = 0;
  for (int i = 0; i < 32; ++i) {
    turned |= (bits >> i & 1u) << (31 - i);
  }
  return turned;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

// As CUDA's: of a NaN and a number the number.
template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) {
    return std::fmin(static_cast<T>(a), static_cast<T>(b));
  } else {
    return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
  }
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) {
    return std::fmax(static_cast<T>(a), static_cast<T>(b));
  } else {
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
  }
}

// Rounded one by one, never fused with what comes next.
#define ROUNDED_(name, T, operation)         \
  inline T name(T a, T b) {                  \
    const volatile T result = a operation b; \
    return result;                           \
  }
ROUNDED_(__fadd_rn, float, +)
ROUNDED_(__fsub_rn, float, -)
ROUNDED_(__fmul_rn, float, *)
ROUNDED_(__fdiv_rn, float, /)
ROUNDED_(__dadd_rn, double, +)
ROUNDED_(__dsub_rn, double, -)
ROUNDED_(__dmul_rn, double, *)
ROUNDED_(__ddiv_rn, double, /)
#undef ROUNDED_
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline double __fma_rn(double a, double b, double c) {
  return std::fma(a, b, c);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __frcp_rn(float a) {
  return 1 / a;
}
inline float __expf(float a) {
  return std::exp(a);
}
inline float __logf(float a) {
  return std::log(a);
}
inline float __log2f(float a) {
  return std::log2(a);
}
inline float rsqrtf(float a) {
  return 1 / std::sqrt(a);
}
inline float rsqrt(float a) {
  return 1 / std::sqrt(a);
}
inline double rsqrt(double a) {
  return 1 / std::sqrt(a);
}
inline void sincospif(float a, float* sine, float* cosine) {
  *sine = static_cast<float>(std::sin(a * 3.14159265358979323846));
  *cosine = static_cast<float>(std::cos(a * 3.14159265358979323846));
}
inline float __int_as_float(int bits) {
  return __builtin_bit_cast(float, bits);
}
inline int __float_as_int(float value) {
  return __builtin_bit_cast(int, value);
}
inline float __uint_as_float(unsigned bits) {
  return __builtin_bit_cast(float, bits);
}
inline unsigned __float_as_uint(float value) {
  return __builtin_bit_cast(unsigned, value);
}
inline double __longlong_as_double(long long bits) {
  return __builtin_bit_cast(double, bits);
}
inline long long __double_as_longlong(double value) {
  return __builtin_bit_cast(long long, value);
}

#endif
