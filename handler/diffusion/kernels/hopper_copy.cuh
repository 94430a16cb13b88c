// For kernels on Hopper (sm_90a): clusters and the copy engine.
#pragma once

#include <stdint.h>

// What the copy engine needs to know of an array: the driver's cuTensorMapEncodeTiled makes it.
struct alignas(128) TensorMap {
    unsigned long long words[16];
};

// All threads of all blocks of the cluster have come here; nothing is said of what they wrote.
__device__ __forceinline__ void cluster_meet() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
// The same place in another block's shared memory.
__device__ __forceinline__ uint32_t place_in(uint32_t address, uint32_t rank) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
// Stores into another block's shared memory; its barrier there counts the bytes.
__device__ __forceinline__ void store_there(uint32_t to, uint32_t barrier, float4 x) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%2, %3, %4, %5}, [%1];" ::"r"(to),
                 "r"(barrier), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w) : "memory");
}
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// A box of a tensor into shared memory; the barrier counts its bytes.
__device__ __forceinline__ void copy_box(uint32_t to, const void* map, uint32_t barrier, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
                 ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z) : "memory");
}
__device__ __forceinline__ void copy_box(uint32_t to, const void* map, uint32_t barrier, int x, int y, int z, int n) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%3, %4, %5, %6}], [%2];" ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(n)
                 : "memory");
}

// Fetches what a map says, ahead of its first use.
__device__ __forceinline__ void fetch_map(const void* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
