// Vector registers, by GCC's and Clang's vector extension. Every kernel is compiled once for each instruction set
// (_build/extensions.py); how wide its registers are, and how many there are, stands here alone.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define VPGFAST_ALWAYS_INLINE inline __attribute__((always_inline))

namespace vpgfast {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kRegisterBytes = 16, kRegisters = 32;
#else
constexpr int kRegisterBytes = 16, kRegisters = 16;
#endif

// `bytes` of T's: one register.
template <typename T, int bytes = kRegisterBytes>
struct Vector {
  static constexpr int64_t kWidth = bytes / sizeof(T);
  using index_t = std::conditional_t<sizeof(T) == 8, int64_t, std::conditional_t<sizeof(T) == 4, int32_t, int16_t>>;
  typedef T type __attribute__((vector_size(bytes)));
  typedef index_t index __attribute__((vector_size(bytes)));
  typedef T unaligned __attribute__((vector_size(bytes), aligned(alignof(T)), may_alias));
};

// max(0, x), where NaN stays NaN. The compiler itself makes a comparison and a choice of that.
template <typename T>
VPGFAST_ALWAYS_INLINE typename Vector<T>::type relu(typename Vector<T>::type x) {
  constexpr bool kDouble = sizeof(T) == 8;
#if defined(__AVX512F__)
  return kDouble ? reinterpret_cast<typename Vector<T>::type>(_mm512_max_pd(__m512d{}, reinterpret_cast<__m512d>(x)))
                 : reinterpret_cast<typename Vector<T>::type>(_mm512_max_ps(__m512{}, reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
  return kDouble ? reinterpret_cast<typename Vector<T>::type>(_mm256_max_pd(__m256d{}, reinterpret_cast<__m256d>(x)))
                 : reinterpret_cast<typename Vector<T>::type>(_mm256_max_ps(__m256{}, reinterpret_cast<__m256>(x)));
#elif defined(__SSE2__)
  return kDouble ? reinterpret_cast<typename Vector<T>::type>(_mm_max_pd(__m128d{}, reinterpret_cast<__m128d>(x)))
                 : reinterpret_cast<typename Vector<T>::type>(_mm_max_ps(__m128{}, reinterpret_cast<__m128>(x)));
#else
  return typename Vector<T>::type{} > x ? typename Vector<T>::type{} : x;
#endif
}

// `size` rounded up to whole registers.
template <typename T>
constexpr int64_t padded(int64_t size) {
  return (size + Vector<T>::kWidth - 1) / Vector<T>::kWidth * Vector<T>::kWidth;
}

constexpr int64_t kPastCacheAlignment = 16;

// Stores past the caches, for results that are larger than they are: a plain store reads the line from memory first.
// `to` must be so aligned; end with finish_stores_past_cache() before another thread may read.
template <typename vector>
VPGFAST_ALWAYS_INLINE void store_past_cache(void* to, const vector& value) {
#if defined(__SSE2__)
  __m128i parts[sizeof(vector) / sizeof(__m128i)];
  std::memcpy(parts, &value, sizeof(vector));
  for (size_t k = 0; k < sizeof(vector) / sizeof(__m128i); ++k) {
    _mm_stream_si128(static_cast<__m128i*>(to) + k, parts[k]);
  }
#else
  std::memcpy(to, &value, sizeof(vector));
#endif
}

inline void finish_stores_past_cache() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace vpgfast
