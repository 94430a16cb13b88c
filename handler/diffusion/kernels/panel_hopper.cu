// Products on Hopper (sm_90a only) whose rows of x stay in shared memory while many columns are made of them:
//
//   plain    out[r][c] = x[r] . w[c] + bias[c], times alpha if c < scaled                     r < rows, c < C
//   gated    out[r][c] = (x[r] . w[c] + bias[c]) * gelu(x[r] . w[C + c] + bias[C + c])
//
// with the exact (erf) GELU. x [rows, K], w [C or 2 C, K], bias [C] or none, or [2 C], and out [rows, C] are f16 or bf16, row-major; sums and
// the GELU are in f32, and a value is rounded once. K is PANEL_INNER, C a multiple of the columns of an item, which are
// PANEL_COLUMNS rows of w: so many columns of out, or half as many if they are gated. Base addresses are multiples of 16
// bytes.
//
// A panel is 128 rows of x with all of K. A block makes some of the items of a panel one after another, and then goes on
// with the next panel. Two warpgroups multiply, 64 rows each. While the tensor cores make an item's sums, a warpgroup ends
// and stores those of the item before, in as many parts as there are steps along k. A thread of the third warpgroup has the
// copy engine load panels, and w into a ring of stages of 64 k.
//
// Entries panel_T_plain and panel_T_gated; block = (WIDE_THREADS, 1, 1); dynamic shared memory: PANEL_SHARED. The grid's blocks
// share out the items (of a panel first) evenly; any grid is right. Boxes of x are 128 rows of 64 k, those of w as many
// rows as an item has columns of out.
#include "hopper_wide.cuh"

namespace {

RUST_CONSTANT(PANEL_INNER, 320);
RUST_CONSTANT(PANEL_COLUMNS, 160);
RUST_CONSTANT(PANEL_SHARED, 227072);
constexpr int STEPS = PANEL_INNER / BK;
constexpr int BN = PANEL_COLUMNS;
constexpr int CHUNK = BM * ROW;  // 64 k of a panel
constexpr int PANEL = STEPS * CHUNK;
constexpr int STAGE = BN * ROW;
constexpr int STAGES = 7;
constexpr int PARTS_AT_ONCE = 4;  // of a row's sums: makers have few registers
constexpr int PARTS = STEPS;
static_assert(1024 + PANEL + STAGES * STAGE + 16 * STAGES + 16 + Scales::BYTES <= PANEL_SHARED && PANEL_SHARED <= MOST_SHARED);
static_assert(BN == PARTS * 32 && PANEL % 1024 == 0 && STAGE % 2048 == 0);

// Where things are in shared memory.
struct Layout {
    unsigned char* shared;
    uint32_t start, panel, ring, full, empty, panel_full, panel_empty;

    __device__ __forceinline__ explicit Layout(unsigned char* shared) : shared(shared) {
        start = uint32_t(__cvta_generic_to_shared(shared));
        panel = (start + 1023u) & ~1023u;
        ring = panel + PANEL;
        full = ring + STAGES * STAGE;
        empty = full + 8 * STAGES;
        panel_full = empty + 8 * STAGES;
        panel_empty = panel_full + 8;
    }
    __device__ __forceinline__ Scales scales() const {
        const uint32_t at = panel_empty + 8;
        return Scales(shared + (at - start), at);
    }
};

// The items of a block: item i is of panel i / across, and of columns i % across * OWN on.
template <bool GATED> struct Items {
    static constexpr int OWN = GATED ? BN / 2 : BN;
    int first, end, across;

    template <typename T> __device__ __forceinline__ explicit Items(const Wide<T>& p) {
        across = p.columns / OWN;
        first = int((long long)p.tiles * blockIdx.x / gridDim.x);
        end = int((long long)p.tiles * (blockIdx.x + 1) / gridDim.x);
    }
    __device__ __forceinline__ int row(int item) const { return item / across * BM; }
    __device__ __forceinline__ int column(int item) const { return item % across * OWN; }
};

// By one thread. The first rows of w are there before the kernel ahead has ended, those of x are not.
template <bool GATED>
__device__ __forceinline__ void load(Early early, const TensorMap& x, const TensorMap& w, int columns,
                                     const Items<GATED>& items, const Layout& at) {
    Place<STAGES> place;
    const auto load_w = [&](int item, int step) {
        const uint32_t to = at.ring + place.stage * STAGE, barrier = at.full + 8 * place.stage;
        barrier_wait(at.empty + 8 * place.stage, place.parity ^ 1);
        barrier_expect(barrier, STAGE);
        copy_box(to, &w, barrier, step * BK, 0, items.column(item));
        if (GATED) copy_box(to + STAGE / 2, &w, barrier, step * BK, 0, columns + items.column(item));
        place.next();
    };
    int parity = 1;
    for (int item = items.first; item < items.end; ++item) {
        for (int step = 0; step < STEPS; ++step) load_w(item, step);
        if (item == items.first) wait_for_last(early);
        if (item > items.first && item % items.across != 0) continue;
        barrier_wait(at.panel_empty, parity);
        parity ^= 1;
        barrier_expect(at.panel_full, PANEL);
        for (int step = 0; step < STEPS; ++step) {
            copy_box(at.panel + step * CHUNK, &x, at.panel_full, step * BK, 0, items.row(item));
        }
    }
}

// A thread's biases of an item: two columns of each vector of eight, of values and of gates, or of both halves.
template <bool GATED> struct Biases {
    unsigned left[BN / 16], right[BN / 16];

    template <typename T> __device__ __forceinline__ void fetch(const Wide<T>& p, int column) {
        const T* const from = p.bias + column + 2 * (threadIdx.x & 3);
        const int gates = GATED ? p.columns : BN / 2;
        const bool there = GATED || p.bias != nullptr;
#pragma unroll
        for (int v = 0; v < BN / 16; ++v) {
            left[v] = there ? load_pair(from + 8 * v) : 0u;
            right[v] = there ? load_pair(from + gates + 8 * v) : 0u;
        }
    }
};

// Ends and stores a part of an item: sums[4 j + i] are row + 8 (i / 2) and column 8 j + 2 t + i % 2 of w's rows, of lane
// 4 r + t. row: that of the thread's first sum.
template <typename T, bool GATED>
__device__ __forceinline__ void store_part(const Wide<T>& p, const float (&sums)[BN / 2], const Biases<GATED>& biases,
                                           float2 scales, int row, int column, int part) {
    const int t = int(threadIdx.x) & 3;
    if constexpr (GATED) {
        // Two vectors: of two neighbours, the first stores half of the first vector, and the other half of the second.
        const bool odd = t & 1;
        T* const out = p.out + (long long)row * p.columns + column + 16 * part + (odd ? 6 : 0) + 2 * t;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            unsigned words[2];
#pragma unroll
            for (int u = 0; u < 2; ++u) {
                const int v = 2 * part + u, i = 4 * v + 2 * half, j = BN / 4 + i;
                const float2 b = unpack2(biases.left[v], T()), c = unpack2(biases.right[v], T());
                const float scale = half == 0 ? scales.x : scales.y;
                words[u] = pack2(fmaf(sums[i], scale, b.x) * gelu(fmaf(sums[j], scale, c.x)),
                                 fmaf(sums[i + 1], scale, b.y) * gelu(fmaf(sums[j + 1], scale, c.y)), T());
            }
            const unsigned got = __shfl_xor_sync(0xffffffffu, odd ? words[0] : words[1], 1);
            const uint2 both = odd ? make_uint2(got, words[1]) : make_uint2(words[0], got);
            if (row + 8 * half < p.rows) *reinterpret_cast<uint2*>(out + (long long)(8 * half) * p.columns) = both;
        }
    } else {
        T* const out = p.out + (long long)row * p.columns + column + 32 * part + 8 * t;
        const float alpha = column < p.scaled ? p.alpha : 1.0f;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            unsigned words[4];
#pragma unroll
            for (int u = 0; u < 4; ++u) {
                const int v = 4 * part + u, i = 4 * v + 2 * half;
                const float2 b = unpack2(v < BN / 16 ? biases.left[v % (BN / 16)] : biases.right[v % (BN / 16)], T());
                const float scale = half == 0 ? scales.x : scales.y;
                words[u] = pack2(fmaf(sums[i], scale, b.x) * alpha, fmaf(sums[i + 1], scale, b.y) * alpha, T());
            }
            const uint4 vector = transpose4(words, t);
            if (row + 8 * half < p.rows) *reinterpret_cast<uint4*>(out + (long long)(8 * half) * p.columns) = vector;
        }
    }
}

// Makes the sums of an item, and meanwhile ends those of the one before, which is at `row` and `column`, if there is one.
template <typename T, bool GATED, bool FOLLOWS>
__device__ __forceinline__ void make_item(const Wide<T>& p, const Layout& at, Place<STAGES>& place, uint64_t a, uint64_t b,
                                          float (&sums)[BN / 2], const float (&before)[BN / 2], Biases<GATED>& biases,
                                          float2 scales, int row, int column, int next_column) {
    const bool first_lane = (threadIdx.x & 31) == 0;
    int last = 0;
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        barrier_wait(at.full + 8 * place.stage, place.parity);
        const uint64_t b_here = b + uint64_t(place.stage * (STAGE >> 4));
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < BK / 16; ++k) {
            wgmma<BN>(sums, a + step * (CHUNK >> 4) + 2 * k, b_here + 2 * k, step + k > 0, T());
        }
        wgmma_commit();
        if (FOLLOWS) store_part<T, GATED>(p, before, biases, scales, row, column, step);
        if (step > 0) {
            wgmma_wait<1>();
            if (first_lane) barrier_arrive(at.empty + 8 * last);
        }
        last = place.stage;
        place.next();
    }
    biases.fetch(p, next_column);
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < BN / 2; ++i) asm volatile("" : "+f"(sums[i])::"memory");
    if (first_lane) barrier_arrive(at.empty + 8 * last);
}

template <typename T, bool GATED>
__device__ __forceinline__ void multiply(const Wide<T>& p, const Items<GATED>& items, const Layout& at) {
    const int lane = int(threadIdx.x) & 31, my_row = int(threadIdx.x) / 32 * 16 + (lane >> 2);
    const uint64_t a = descriptor(at.panel + (threadIdx.x >> 7) * 64 * ROW), b = descriptor(at.ring);
    float one[BN / 2], other[BN / 2];
    Biases<GATED> biases;
    Place<STAGES> place;
    int parity = 0, turn = 0;
    for (int item = items.first; item < items.end;) {
        const int stop = min(items.end, (item / items.across + 1) * items.across), row = items.row(item) + my_row;
        barrier_wait(at.panel_full, parity);
        parity ^= 1;
        int column = items.column(item);
        const float2 scales = p.a_sums == nullptr ? make_float2(1.0f, 1.0f) : at.scales().take(my_row, turn++);
        make_item<T, GATED, false>(p, at, place, a, b, one, other, biases, scales, row, 0, column);
        bool in_other = false;
        while (++item < stop) {
            make_item<T, GATED, true>(p, at, place, a, b, other, one, biases, scales, row, column, items.column(item));
            column = items.column(item);
            in_other = ++item == stop;
            if (in_other) break;
            make_item<T, GATED, true>(p, at, place, a, b, one, other, biases, scales, row, column, items.column(item));
            column = items.column(item);
        }
        if (lane == 0) barrier_arrive(at.panel_empty);
        if (in_other) {
#pragma unroll
            for (int i = 0; i < BN / 2; ++i) one[i] = other[i];
        }
#pragma unroll
        for (int part = 0; part < PARTS; ++part) store_part<T, GATED>(p, one, biases, scales, row, column, part);
    }
}

template <typename T, bool GATED>
__device__ __forceinline__ void panel_body(const TensorMap& x, const TensorMap& w, const Wide<T>& p) {
    const Early early{};
    extern __shared__ unsigned char shared[];
    const Layout at(shared);
    const Items<GATED> items(p);

    let_next_start(early);
    if (threadIdx.x == 0) {
        ring_init(at.full, at.empty, STAGES);
        ring_init(at.panel_full, at.panel_empty, 1);
        at.scales().init();
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == CONSUMERS) load<GATED>(early, x, w, p.columns, items, at);
        if (Scales::maker() >= 0 && p.a_sums != nullptr) {
            wait_for_last(early);
            int turn = 0;
            for (int item = items.first; item < items.end; item = (item / items.across + 1) * items.across) {
                at.scales().make<PARTS_AT_ONCE>(p, items.row(item), turn++, [] {});
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        wait_for_last(early);
        multiply<T, GATED>(p, items, at);
    }
}

}  // namespace

STARTS_EARLY(panel)

#define PANEL_ENTRY(NAME, T, GATED)                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                           \
        NAME(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, \
             const __grid_constant__ Wide<T> p) {                                      \
        panel_body<T, GATED>(x, w, p);                                                 \
    }

PANEL_ENTRY(panel_f16_plain, half, false)
PANEL_ENTRY(panel_bf16_plain, __nv_bfloat16, false)
PANEL_ENTRY(panel_f16_gated, half, true)
PANEL_ENTRY(panel_bf16_gated, __nv_bfloat16, true)
