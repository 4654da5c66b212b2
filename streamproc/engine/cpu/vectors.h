// Vectors of LANES floats on every machine, and sums of products of float and of bfloat16.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

constexpr int LANES = 16;       // floats of a vector; narrower machines take several registers for one
constexpr int PANEL = 32;       // outputs whose weights lie together
constexpr int KEYS = 64;        // of a tile of attention
constexpr int MAX_HEAD_DIM = 256;
constexpr int LAYOUT = 2;        // of packed weights and of KV; library.py has it too
constexpr float UNSEEN = -2e30f, LOWEST = -1e30f;   // score of a key that a row does not see; maximum of no keys

using bfloat16 = uint16_t;
typedef float Floats __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t)), aligned(2)));

inline Floats all(float x) { return x - Floats{}; }   // x - 0 is x, so nothing is subtracted

// One rounding on every machine: left to the compiler, some multiply-adds would round twice.
inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    union { Floats all; __m256 half[2]; } x{a}, y{b}, z{c};
    for (int i = 0; i < 2; i++) z.half[i] = _mm256_fmadd_ps(x.half[i], y.half[i], z.half[i]);
    return z.all;
#elif defined(__ARM_NEON)
    union { Floats all; float32x4_t part[4]; } x{a}, y{b}, z{c};
    for (int i = 0; i < 4; i++) z.part[i] = vfmaq_f32(z.part[i], x.part[i], y.part[i]);
    return z.all;
#else
    for (int i = 0; i < LANES; i++) c[i] = std::fma(a[i], b[i], c[i]);
    return c;
#endif
}

inline Floats load(const float* from) { Floats x; std::memcpy(&x, from, sizeof x); return x; }
inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }
inline Floats load(const bfloat16* from) {
    Halves x;
    std::memcpy(&x, from, sizeof x);
    return (Floats)(__builtin_convertvector(x, Ints) << 16);
}
inline float widen(float x) { return x; }
inline float widen(bfloat16 x) { uint32_t bits = uint32_t(x) << 16; float y; std::memcpy(&y, &bits, 4); return y; }
inline void narrow(float x, float* to) { *to = x; }
inline void narrow(float x, bfloat16* to) {     // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    *to = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// e^x for x <= 88; 0 below -87, 1 at 0. Cody and Waite's reduction, Cephes' polynomial; within 2 units of the last place.
inline Floats exp(Floats x) {
    const Floats clamped = x < -87.0f ? all(-87.0f) : x;     // what is no number stays none
    const Floats n = fma(clamped, all(1.44269504f), all(12582912.0f)) - 12582912.0f;     // to nearest
    Floats r = fma(n, all(-0.693359375f), clamped);
    r = fma(n, all(2.12194440e-4f), r);
    Floats y = all(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        y = fma(y, r, all(c));
    y = fma(y, r * r, r) + 1.0f;
    const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    return x < -87.0f ? Floats{} : y * (Floats)power;
}

// cap * tanh(x / cap); what is no number stays none.
inline Floats capped(Floats x, float cap) {
    const Floats twice = x * (2.0f / cap);
    return cap - 2.0f * cap / (exp(twice > 80.0f ? all(80.0f) : twice) + 1.0f);
}

// 2^x for x <= 126, within 3 millionths: finer than bfloat16 by far; 0 below -126.
inline Floats power_of_two(Floats x) {
#ifdef __AVX512F__
    const Floats n = (Floats)_mm512_roundscale_ps((__m512)x, 0);     // to nearest
#else
    const Floats clamped = x < -126.0f ? all(-126.0f) : x;
    const Floats n = clamped + 12582912.0f - 12582912.0f;
#endif
    const Floats r = x - n;
    Floats y = all(0.009570101f);
    for (float c : {0.05591786f, 0.24024744f, 0.69312179f, 0.99999928f}) y = fma(y, r, all(c));
#ifdef __AVX512F__
    return (Floats)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
    return x < -126.0f ? Floats{} : y * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
#endif
}

// Sums of products, a vector of them at once: `add` takes PAIR operands and a vector of PAIR cells each. `weight` is
// e^(score - top), as finely as an operand shows.
template <class Cell> struct Sum;

template <> struct Sum<float> {
    static constexpr int PAIR = 1;
    using Operand = float;
    using Cells = Floats;
    static Cells take(const float* from) { return load(from); }
    static Floats add(Floats sum, const Operand* x, Cells cells) { return fma(all(*x), cells, sum); }
    static void narrow(Floats x, Operand* to) { store(to, x); }
    static Floats weight(Floats score, float top) { return exp(score - top); }
};

template <> struct Sum<bfloat16> {
    static constexpr int PAIR = 2;
    using Cells = Ints;
    static Cells take(const bfloat16* from) { Ints x; std::memcpy(&x, from, sizeof x); return x; }
    static Cells first(Cells cells) { return cells & 0xffff; }
    static Floats weight(Floats score, float top) {
        constexpr float LOG2_E = 1.44269504f;
        return power_of_two(fma(score, all(LOG2_E), all(-top * LOG2_E)));
    }
#ifdef __AVX512BF16__
    using Operand = bfloat16;
    static Floats add(Floats sum, const Operand* x, Cells cells) {
        int32_t pair;
        std::memcpy(&pair, x, sizeof pair);
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)cells);
    }
    static void narrow(Floats x, Operand* to) {
        const __m256bh y = _mm512_cvtneps_pbh((__m512)x);
        std::memcpy(to, &y, sizeof y);
    }
#else
    using Operand = float;
    static Floats add(Floats sum, const Operand* x, Cells cells) {
        return fma(all(x[1]), (Floats)(cells & int32_t(0xffff0000)), fma(all(x[0]), (Floats)(cells << 16), sum));
    }
    static void narrow(Floats x, Operand* to) { store(to, x); }
#endif
};

inline float sum(Floats x) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)x);
#endif
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline float largest(Floats x) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)x);
#endif
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] = std::max(x[i], x[i + half]);
    return x[0];
}

}  // namespace
