// Vector registers, by GCC's and Clang's vector extension.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define VPGFAST_ALWAYS_INLINE inline __attribute__((always_inline))

namespace vpgfast {

// One register of 64 bytes; narrower machines use several.
template <typename T>
struct Vector {
  static constexpr int64_t kWidth = 64 / sizeof(T);
  using index_t = std::conditional_t<sizeof(T) == 8, int64_t, std::conditional_t<sizeof(T) == 4, int32_t, int16_t>>;
  typedef T type __attribute__((vector_size(64)));
  typedef index_t index __attribute__((vector_size(64)));
  typedef T unaligned __attribute__((vector_size(64), aligned(alignof(T)), may_alias));
};

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
