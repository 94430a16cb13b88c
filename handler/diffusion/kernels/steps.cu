// The two ends of a denoising step. Latents are f32 NCHW [n, c, hw] with c <= 8, the UNet's side is NHWC with 8 channels.
//
// Launch rule: block = (256, 1, 1), grid = (ceil(n * hw / 256), 1, 1); any grid is right.
#include "common.cuh"

// The coefficients of one step: clean = by_sample * x + by_output * e, x' = sample * x + clean_now * clean +
// clean_before * (the clean picture of the step before).
struct Sums {
    float by_sample, by_output, sample, clean_now, clean_before;
};

// begin_step: latents to out [copies * n, hw, 8], channels past c zero; and *step grows by one.
template <typename T>
__device__ __forceinline__ void begin_step_body(const float* latents, T* out, int n, int c, int hw, int copies,
                                                int* step) {
    const int units = n * hw;
    for (int unit = int(blockIdx.x * blockDim.x + threadIdx.x); unit < units; unit += int(gridDim.x * blockDim.x)) {
        const int image = unit / hw, pixel = unit - image * hw;
        float x[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = i < c ? latents[(image * c + i) * hw + pixel] : 0.0f;
        const Pack<T> pack = pack8<T>(x);
        for (int copy = 0; copy < copies; ++copy) store8(out + size_t(copy * units + unit) * 8, pack);
    }
    // No kernel reads it before this one has ended.
    if (blockIdx.x == 0 && threadIdx.x == 0) *step += 1;
}

// advance: the guided output e = u + guidance * (p - u) of xs [copies * n, hw, 8] (u the first n images and p the others;
// copies 1: the values alone), then latents and before (the clean picture) by the step's sums. With DPM-Solver++'s they
// are Lu et al. 2022, algorithm 2.
template <typename T>
__device__ __forceinline__ void advance_body(const T* xs, float* latents, float* before, const Sums* sums,
                                             const float* guidance, const int* step, int steps, int n, int c,
                                             int hw, int copies) {
    const int units = n * hw;
    const float scale = copies == 2 ? *guidance : 0.0f;
    const Sums by = sums[row_of_step(step, steps)];
    for (int unit = int(blockIdx.x * blockDim.x + threadIdx.x); unit < units; unit += int(gridDim.x * blockDim.x)) {
        const int image = unit / hw, pixel = unit - image * hw;
        float e[8];
        unpack8(load8(xs + size_t(unit) * 8), e);
        if (copies == 2) {
            float p[8];
            unpack8(load8(xs + size_t(units + unit) * 8), p);
#pragma unroll
            for (int i = 0; i < 8; ++i) e[i] = e[i] + scale * (p[i] - e[i]);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if (i >= c) break;
            const int at = (image * c + i) * hw + pixel;
            const float x = latents[at];
            const float clean = by.by_sample * x + by.by_output * e[i];
            latents[at] = by.sample * x + by.clean_now * clean + by.clean_before * before[at];
            before[at] = clean;
        }
    }
}

EXPORT(begin_step, (256, 1), (const float* latents, T* out, int n, int c, int hw, int copies, int* step),
       (latents, out, n, c, hw, copies, step))
EXPORT(advance, (256, 1),
       (const T* xs, float* latents, float* before, const Sums* sums, const float* guidance, const int* step, int steps,
        int n, int c, int hw, int copies),
       (xs, latents, before, sums, guidance, step, steps, n, c, hw, copies))
