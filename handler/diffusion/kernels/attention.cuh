// What the kernels of attention share: exponentials, and when the running maximum is raised.
#pragma once

#include "common.cuh"
#include "mma.cuh"

// How far, in powers of two, a score may pass the running maximum before that is raised; the probability is MOST then.
constexpr float SLACK = 8.0f, MOST = 256.0f;

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The larger ones of two pairs of numbers that are not negative.
__device__ __forceinline__ uint32_t larger_pair(uint32_t a, uint32_t b, __half) {
    const __half2 x = __hmax2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
    return *reinterpret_cast<const uint32_t*>(&x);
}
__device__ __forceinline__ uint32_t larger_pair(uint32_t a, uint32_t b, __nv_bfloat16) {
    const __nv_bfloat162 x =
        __hmax2(*reinterpret_cast<const __nv_bfloat162*>(&a), *reinterpret_cast<const __nv_bfloat162*>(&b));
    return *reinterpret_cast<const uint32_t*>(&x);
}

// Whether one of this warp's probabilities, in pairs, is above MOST. Half as many instructions as to compare the scores.
template <typename T, int N> __device__ __forceinline__ bool pass_most(const uint32_t* pairs) {
    uint32_t most[2] = {pairs[0], pairs[1]};
#pragma unroll
    for (int i = 2; i < N; ++i) most[i & 1] = larger_pair(most[i & 1], pairs[i], T());
    const float2 both = unpack2(larger_pair(most[0], most[1], T()), T());
    return __any_sync(0xffffffffu, fmaxf(both.x, both.y) > MOST);
}
