// What the kernels share: vectors of eight elements and conversions.
//
// T is half, __nv_bfloat16 or float. Arithmetic is in f32; a value is rounded to T once, at the store.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Defines one extern "C" entry per element type: NAME_f16, NAME_bf16, NAME_f32. BOUNDS is (largest block, blocks per
// multiprocessor that the registers must allow); PARAMETERS may use T.
#define EXPORT_ONE(NAME, SUFFIX, TYPE, BOUNDS, PARAMETERS, PROLOGUE, ARGUMENTS)          \
    namespace entry_##NAME##_##SUFFIX {                                                  \
        using T = TYPE;                                                                  \
        extern "C" __global__ void __launch_bounds__ BOUNDS NAME##_##SUFFIX PARAMETERS { \
            PROLOGUE NAME##_body<T> ARGUMENTS;                                           \
        }                                                                                \
    }
#define EXPORT_EACH(NAME, BOUNDS, PARAMETERS, PROLOGUE, ARGUMENTS)                 \
    EXPORT_ONE(NAME, f16, half, BOUNDS, PARAMETERS, PROLOGUE, ARGUMENTS)           \
    EXPORT_ONE(NAME, bf16, __nv_bfloat16, BOUNDS, PARAMETERS, PROLOGUE, ARGUMENTS) \
    EXPORT_ONE(NAME, f32, float, BOUNDS, PARAMETERS, PROLOGUE, ARGUMENTS)
#define EXPORT(NAME, BOUNDS, PARAMETERS, ARGUMENTS) EXPORT_EACH(NAME, BOUNDS, PARAMETERS, , ARGUMENTS)
// The same for a kernel that may start before the kernel ahead has ended. Its body takes `early`, which wait_for_last
// asks for. build.rs finds these lines: Rust launches these kernels early and no others.
#define EXPORT_EARLY(NAME, BOUNDS, PARAMETERS, ARGUMENTS) \
    EXPORT_EACH(NAME, BOUNDS, PARAMETERS, const Early early{};, ARGUMENTS)

// Says that a kernel of other entries does the same: its name, to which the entries add the dtype and more.
#define STARTS_EARLY(NAME) static_assert(true);

// A number that Rust needs, too: build.rs finds these lines.
#define RUST_CONSTANT(NAME, VALUE) [[maybe_unused]] constexpr int NAME = VALUE

// Eight elements as they lie in memory: 16 bytes of half or bf16, 32 of float.
template <typename T> struct Pack {
    uint4 word[sizeof(T) / 2];
};

// The address must be a multiple of 16 bytes.
template <typename T> __device__ __forceinline__ Pack<T> load8(const T* from) {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 2); ++i) pack.word[i] = reinterpret_cast<const uint4*>(from)[i];
    return pack;
}

template <typename T> __device__ __forceinline__ void store8(T* to, const Pack<T>& pack) {
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 2); ++i) reinterpret_cast<uint4*>(to)[i] = pack.word[i];
}

__device__ __forceinline__ float2 unpack2(unsigned word, half) {
    const __half2_raw raw{static_cast<unsigned short>(word & 0xffffu), static_cast<unsigned short>(word >> 16)};
    return __half22float2(__half2(raw));
}
__device__ __forceinline__ float2 unpack2(unsigned word, __nv_bfloat16) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
__device__ __forceinline__ unsigned pack2(float low, float high, half) {
    const __half2_raw raw = __floats2half2_rn(low, high);
    return unsigned(raw.x) | (unsigned(raw.y) << 16);
}
__device__ __forceinline__ unsigned pack2(float low, float high, __nv_bfloat16) {
    const __nv_bfloat162_raw raw = __floats2bfloat162_rn(low, high);
    return unsigned(raw.x) | (unsigned(raw.y) << 16);
}

template <typename T> __device__ __forceinline__ void unpack8(const Pack<T>& pack, float (&x)[8]) {
    const unsigned word[4] = {pack.word[0].x, pack.word[0].y, pack.word[0].z, pack.word[0].w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack2(word[i], T());
        x[2 * i] = pair.x;
        x[2 * i + 1] = pair.y;
    }
}
template <> __device__ __forceinline__ void unpack8<float>(const Pack<float>& pack, float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        x[4 * i] = __uint_as_float(pack.word[i].x);
        x[4 * i + 1] = __uint_as_float(pack.word[i].y);
        x[4 * i + 2] = __uint_as_float(pack.word[i].z);
        x[4 * i + 3] = __uint_as_float(pack.word[i].w);
    }
}

template <typename T> __device__ __forceinline__ Pack<T> pack8(const float (&x)[8]) {
    Pack<T> pack;
    pack.word[0] = make_uint4(pack2(x[0], x[1], T()), pack2(x[2], x[3], T()), pack2(x[4], x[5], T()),
                              pack2(x[6], x[7], T()));
    return pack;
}
template <> __device__ __forceinline__ Pack<float> pack8<float>(const float (&x)[8]) {
    Pack<float> pack;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        pack.word[i] = make_uint4(__float_as_uint(x[4 * i]), __float_as_uint(x[4 * i + 1]),
                                  __float_as_uint(x[4 * i + 2]), __float_as_uint(x[4 * i + 3]));
    }
    return pack;
}

// One element.
__device__ __forceinline__ float widen(half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(float x) { return x; }

template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ half narrow<half>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }

// x / (1 + exp(-scale x)): SiLU for scale 1. The fast forms are exact enough for a 16-bit result, not for f32.
template <typename T> __device__ __forceinline__ float sigmoid_unit(float x, float scale) {
    return __fdividef(x, 1.0f + __expf(-scale * x));
}
template <> __device__ __forceinline__ float sigmoid_unit<float>(float x, float scale) {
    return x / (1.0f + expf(-scale * x));
}

// x * gate * Phi(gate), Phi the normal distribution: the exact (erf) GELU as a gate.
template <typename T> __device__ __forceinline__ float gated(float x, float gate) {
    // log2 of Phi(-z) for 0 <= z <= 6 by least squares of the error of Phi; GELU is then right to 1.2e-7
    const float z = fminf(fabsf(gate), 6.0f);
    float power = -2.772052994e-06f;
    power = fmaf(power, z, 3.862079393e-05f);
    power = fmaf(power, z, -1.825478248e-04f);
    power = fmaf(power, z, -1.458695916e-04f);
    power = fmaf(power, z, 7.075470872e-03f);
    power = fmaf(power, z, -5.250502750e-02f);
    power = fmaf(power, z, -4.592049122e-01f);
    power = fmaf(power, z, -1.151105762e+00f);
    power = fmaf(power, z, -1.0f);
    const float above = gate < 0.0f ? 0.0f : gate;  // keeps a NaN
    return x * fmaf(-z, exp2f(power), above);
}
template <> __device__ __forceinline__ float gated<float>(float x, float gate) {
    return x * (0.5f * gate * (1.0f + erff(gate * 0.70710678118654752f)));
}

// The step's number, which lies in memory, as a row of a table of that many: never past its end.
__device__ __forceinline__ int row_of_step(const int* step, int steps) {
    return int(min(unsigned(*step), unsigned(steps - 1)));
}

// Programmatic dependent launch (sm_90; elsewhere, and in a kernel launched plainly, neither does anything). A kernel
// launched with programmatic stream serialization starts once every block of the kernel ahead has called
// let_next_start or ended. Until wait_for_last returns, it may neither read what the kernel ahead writes nor write
// anything. All threads call both. Only kernels of EXPORT_EARLY and STARTS_EARLY have an `Early`, and all of them must wait.
struct Early {};
__device__ __forceinline__ void let_next_start(Early) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_last(Early) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
