// For products on Hopper (sm_90a): wgmma with both operands in shared memory.
#pragma once

#include "common.cuh"
#include "hopper.cuh"
#include "hopper_copy.cuh"

// A descriptor of its halves.
__device__ __forceinline__ uint64_t joined(uint32_t low, uint32_t high) {
    uint64_t both;
    asm("mov.b64 %0, {%1, %2};" : "=l"(both) : "r"(low), "r"(high));
    return both;
}

// d = A B^T (+ d if add): A 64 x 16 and B N x 16, both with k contiguous in shared memory.
#define NAMES_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, " \
    "%60, %61, %62, %63"
#define NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define NAMES_80                                                                                               \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, "    \
    "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "    \
    "%117, %118, %119"
#define SUMS_8(I)                                                                                                 \
    "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3]), "+f"(d[I + 4]), "+f"(d[I + 5]), "+f"(d[I + 6]),   \
        "+f"(d[I + 7])
#define SUMS_16(I) SUMS_8(I), SUMS_8(I + 8)
#define SUMS_24(I) SUMS_16(I), SUMS_8(I + 16)
#define SUMS_40(I) SUMS_24(I), SUMS_16(I + 24)
#define WGMMA(N, TYPE, NAMES, A, B, ADD, ...)                                                                  \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" N           \
                 "k16.f32." TYPE "." TYPE " {" NAMES "}, " A ", " B ", p, 1, 1, 0, 0;\n}\n"                    \
                 : __VA_ARGS__                                                                                 \
                 : "l"(a), "l"(b), "r"(add))
#define WGMMA_SIZES(TYPE)                                                                                         \
    if constexpr (N == 32) {                                                                                      \
        WGMMA("32", TYPE, NAMES_0, "%16", "%17", "%18", SUMS_16(0));                                              \
    } else if constexpr (N == 80) {                                                                               \
        WGMMA("80", TYPE, NAMES_0 NAMES_16 NAMES_32, "%40", "%41", "%42", SUMS_40(0));                            \
    } else if constexpr (N == 128) {                                                                              \
        WGMMA("128", TYPE, NAMES_0 NAMES_16 NAMES_32 NAMES_40, "%64", "%65", "%66", SUMS_40(0), SUMS_24(40));     \
    } else if constexpr (N == 160) {                                                                              \
        WGMMA("160", TYPE, NAMES_0 NAMES_16 NAMES_32 NAMES_40 NAMES_64, "%80", "%81", "%82", SUMS_40(0),          \
              SUMS_40(40));                                                                                       \
    } else {                                                                                                      \
        static_assert(N == 240);                                                                                  \
        WGMMA("240", TYPE, NAMES_0 NAMES_16 NAMES_32 NAMES_40 NAMES_64 NAMES_80, "%120", "%121", "%122",          \
              SUMS_40(0), SUMS_40(40), SUMS_40(80));                                                              \
    }

template <int N> __device__ __forceinline__ void wgmma(float* d, uint64_t a, uint64_t b, int add, half) {
    WGMMA_SIZES("f16")
}
template <int N> __device__ __forceinline__ void wgmma(float* d, uint64_t a, uint64_t b, int add, __nv_bfloat16) {
    WGMMA_SIZES("bf16")
}
