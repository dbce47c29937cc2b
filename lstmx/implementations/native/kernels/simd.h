// Vectors of floats of the machine's width, by the compiler's vector types: no intrinsics except for masked
// loads and stores and fused products, so that the same source serves AVX-512, AVX2, NEON and plain SSE.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace lstmx {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// Rows of a register tile of four vectors: the sums and the operands of a step must fit into the registers, 32
// on AVX-512 and NEON, otherwise 16. A tile that does not fit is several times slower.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32, kRows = 7;
#else
constexpr int kRegisters = 16, kRows = 3;
#endif

// The least number of rows of which a chunk is made: each chunk reads all weights in every step.
constexpr int kChunkRows = 28;

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));

#define LSTMX_INLINE inline __attribute__((always_inline))

LSTMX_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

LSTMX_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// The first n lanes; the others are zero.
LSTMX_INLINE Vec load(const float* p, int n) {
  if (n >= kLanes) return load(p);
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps((1u << n) - 1, p);
#else
  Vec v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}

LSTMX_INLINE void store(float* p, Vec v, int n) {
  if (n >= kLanes) return store(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (1u << n) - 1, (__m512)v);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// Exchanges the two off-diagonal quarters of every square of 2 * Step rows and lanes.
template <int Step, size_t... K>
LSTMX_INLINE void transpose_step(Vec (&rows)[kLanes], std::index_sequence<K...>) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & Step) continue;
    const Vec a = rows[i], b = rows[i + Step];
    rows[i] = __builtin_shufflevector(a, b, int(K & Step ? kLanes + K - Step : K)...);
    rows[i + Step] = __builtin_shufflevector(a, b, int(K & Step ? kLanes + K : K + Step)...);
  }
  if constexpr (Step > 1) transpose_step<Step / 2>(rows, std::index_sequence<K...>{});
}

// Transposes a square of kLanes vectors.
LSTMX_INLINE void transpose(Vec (&rows)[kLanes]) {
  transpose_step<kLanes / 2>(rows, std::make_index_sequence<kLanes>{});
}

LSTMX_INLINE Vec splat(float x) { return x - Vec{}; }

// x * y + z, rounded once where the machine can. GCC for Zen avoids fused products in some sums and not in
// others, so that results would depend on the size of a tile.
LSTMX_INLINE Vec fused(Vec x, Vec y, Vec z) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z);
#elif defined(__AVX__) && defined(__FMA__)
  return (Vec)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z);
#else
  return x * y + z;
#endif
}

// NaN passes unchanged, since comparisons with it are false.
LSTMX_INLINE Vec clamp(Vec x, float low, float high) {
  x = x < low ? splat(low) : x;
  return x > high ? splat(high) : x;
}

// e^x for |x| < 88, relative error below 2e-7: x = n ln 2 + r, and the polynomial of Cephes (Moshier 1992)
// for |r| <= ln 2 / 2.
LSTMX_INLINE Vec exponential(Vec x) {
  x = clamp(x, -87.0f, 88.0f);
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  Vec shifted = x * 1.44269504088896341f + kRound;
  Vec n = shifted - kRound;
  Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  IntVec exponent = ((IntVec)shifted - 0x4B400000 + 127) << 23;
  return p * (Vec)exponent;
}

LSTMX_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

// Odd rational minimax approximation, degree 13 over 6 (the coefficients are those of Eigen's ptanh); absolute
// error below 3e-7.
LSTMX_INLINE Vec tanh(Vec x) {
  x = clamp(x, -7.90531110763549805f, 7.90531110763549805f);
  Vec s = x * x;
  Vec p = splat(-2.76076847742355e-16f);
  p = p * s + 2.00018790482477e-13f;
  p = p * s + -8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = p * s + 4.89352455891786e-03f;
  Vec q = splat(1.19825839466702e-06f);
  q = q * s + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  return x * p / q;
}

}  // namespace lstmx
