// What kernels for Hopper (sm_90a) share: barriers in shared memory, and wgmma's descriptors and fences.
#pragma once

#include <stdint.h>

// ---- barriers in shared memory

__device__ __forceinline__ void barrier_init(uint32_t barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// Waits until the phase of this parity has completed.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, int parity) {
    uint32_t done;
    do {
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}\n"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!done);
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Makes this thread's writes to shared memory visible to wgmma.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- wgmma

// Descriptor of an operand whose rows are 128 bytes, swizzled by 128 bytes: groups of eight rows (1024 bytes, aligned so)
// follow one another. Bits: 0-13 address / 16; 16-29 distance of blocks of 64 columns / 16 of a transposed operand, else
// unused and 1; 32-45 distance of groups / 16; 62-63 swizzle, 1 for 128 bytes. 16 columns further is 32 bytes further:
// the swizzle acts on the address.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, int leading = 16) {
    return uint64_t((address & 0x3ffffu) >> 4) | uint64_t(leading >> 4) << 16 | uint64_t(1024 >> 4) << 32 |
           uint64_t(1) << 62;
}

// The same with groups of eight rows so far apart, at any multiple of 128 bytes: the swizzle acts on the address.
__device__ __forceinline__ uint64_t descriptor_apart(uint32_t address, int distance) {
    return uint64_t((address & 0x3ffffu) >> 4) | uint64_t(1) << 16 | uint64_t(distance >> 4) << 32 | uint64_t(1) << 62;
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
