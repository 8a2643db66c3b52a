// GRU over jagged sequences, parallel over blocks of sequences.
//
// A block of up to kTileRows sequences goes through time together, so that each weight loaded from cache serves all of
// them; it shrinks where a sequence ends, so nothing is padded. The recurrent product is a register tile (rows of
// the block × three or two vectors of columns) over packed weights. In the forward pass the three vectors are the
// r, z and n gates of the same units, so the cell follows while they are in registers or the first cache.
// A row's sums do not depend on which rows share its block: results are the same for any number of threads.
#include "gru.h"

#include "elementary.h"
#include "register_tile.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

// Sequences [first, first + count) of block b, of `blocks` of nearly equal size.
struct Blocks {
    int64_t sequences, blocks;

    Blocks(int64_t sequences_, int threads) : sequences(sequences_) {
        const int64_t full = (sequences + kTileRows - 1) / kTileRows;
        const int64_t busy = sequences < threads ? sequences : threads;
        blocks = full > busy ? full : busy;
    }
    int64_t first(int64_t b) const { return sequences * b / blocks; }
    int count(int64_t b) const { return static_cast<int>(first(b + 1) - first(b)); }
};

// One row of `lanes` units from unit j on: gates and new state.
template <typename T>
FASTSEQ_INLINE void cell(const T* x, const T* hidden, const T* bias, const T* before, int64_t H, int lanes, int width,
                         T* h, T* saved) {
#pragma omp simd
    for (int l = 0; l < width; ++l) {
        const T s = hidden[2 * lanes + l] + bias[2 * lanes + l];
        const T r = sigmoid(x[l] + (hidden[l] + bias[l]));
        const T z = sigmoid(x[H + l] + (hidden[lanes + l] + bias[lanes + l]));
        const T n = tanh_vectorised(x[2 * H + l] + r * s);
        saved[l] = r;
        saved[H + l] = z;
        saved[2 * H + l] = n;
        saved[3 * H + l] = s;
        h[l] = n + z * (before[l] - n);
    }
}

// Gradients of one row's cell: of the input gates, of the hidden product, and the direct part of dh of the step before.
template <typename T>
FASTSEQ_INLINE void cell_backward(const T* grad, const T* saved, const T* before, int64_t H, T* grad_x, T* grad_hidden,
                                  T* previous, T* carry) {
#pragma omp simd
    for (int64_t j = 0; j < H; ++j) {
        const T r = saved[j], z = saved[H + j], n = saved[2 * H + j], s = saved[3 * H + j];
        const T hp = before == nullptr ? T(0) : before[j];
        const T dh = grad[j] + carry[j];
        const T dn = dh * (T(1) - z) * (T(1) - n * n);
        const T dz = dh * (hp - n) * z * (T(1) - z);
        const T dr = dn * s * r * (T(1) - r);
        grad_x[j] = dr;
        grad_x[H + j] = dz;
        grad_x[2 * H + j] = dn;
        grad_hidden[j] = dr;
        grad_hidden[H + j] = dz;
        grad_hidden[2 * H + j] = dn * r;
        previous[j] = hp;
        carry[j] = dh * z;
    }
}

}  // namespace

template <typename T>
void gru(const T* x_gates, const T* weight, const T* bias, const int32_t* starts, const int32_t* lengths,
         int64_t sequences, int64_t H, T* h, T* saved, int threads) {
    constexpr int lanes = Simd<T>::lanes;
    const int64_t groups = (H + lanes - 1) / lanes;
    // [group of units][k][gate][unit], and the bias as one more k.
    Buffer<T> packed(groups * (H + 1) * 3 * lanes), zero(lanes);
    for (int l = 0; l < lanes; ++l) zero.get()[l] = T(0);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t gate = 0; gate < 3; ++gate)
            for (int64_t l = 0; l < lanes; ++l) {
                const int64_t unit = g * lanes + l;
                T* out = packed.get() + g * (H + 1) * 3 * lanes + gate * lanes + l;
                const T* in = weight + (gate * H + unit) * H;
                for (int64_t k = 0; k < H; ++k) out[k * 3 * lanes] = unit < H ? in[k] : T(0);
                out[H * 3 * lanes] = unit < H && bias != nullptr ? bias[gate * H + unit] : T(0);
            }

    const Blocks blocks(sequences, threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t b = 0; b < blocks.blocks; ++b) {
        const int64_t first = blocks.first(b);
        int active = blocks.count(b);
        alignas(64) T hidden[kTileRows * 3 * lanes];
        const T* before[kTileRows];
        for (int64_t t = 0; active > 0; ++t) {
            while (active > 0 && lengths[first + active - 1] <= t) --active;
            for (int r = 0; r < active; ++r) before[r] = t > 0 ? h + (starts[first + r] + t - 1) * H : nullptr;
            for (int64_t g = 0; active > 0 && g < groups; ++g) {
                const T* weights = packed.get() + g * (H + 1) * 3 * lanes;
                if (t > 0) {
                    product_of<3, kTileRows>(active, before, 1, weights, 3 * lanes, H, hidden);
                } else {
                    for (int i = 0; i < active * 3 * lanes; ++i) hidden[i] = T(0);
                }
                const int64_t unit = g * lanes;
                const int width = static_cast<int>(H - unit < lanes ? H - unit : lanes);
                for (int r = 0; r < active; ++r) {
                    const int64_t row = starts[first + r] + t;
                    const T* x = x_gates + row * 3 * H + unit;
                    const T* previous = t > 0 ? before[r] + unit : zero.get();
                    const T* sums = hidden + r * 3 * lanes;
                    T* state = h + row * H + unit;
                    T* gates = saved + row * 4 * H + unit;
                    if (width == lanes)
                        cell(x, sums, weights + H * 3 * lanes, previous, H, lanes, lanes, state, gates);
                    else
                        cell(x, sums, weights + H * 3 * lanes, previous, H, lanes, width, state, gates);
                }
            }
        }
    }
}

template <typename T>
void gru_backward(const T* grad, const T* weight, const T* h, const T* saved, const int32_t* starts,
                  const int32_t* lengths, int64_t sequences, int64_t H, T* grad_x, T* grad_hidden, T* previous,
                  T* carry, int threads) {
    constexpr int lanes = 2 * Simd<T>::lanes;  // two vectors of columns
    const int64_t groups = (H + lanes - 1) / lanes;
    Buffer<T> packed(groups * 3 * H * lanes);  // [group of units][row of weight][unit]
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t k = 0; k < 3 * H; ++k)
            for (int64_t l = 0; l < lanes; ++l)
                packed.get()[(g * 3 * H + k) * lanes + l] = g * lanes + l < H ? weight[k * H + g * lanes + l] : T(0);

    const Blocks blocks(sequences, threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t b = 0; b < blocks.blocks; ++b) {
        const int64_t first = blocks.first(b);
        const int count = blocks.count(b);
        T* carried = carry + first * H;
        for (int64_t i = 0; i < count * H; ++i) carried[i] = T(0);
        alignas(64) T sums[kTileRows * lanes];
        const T* hidden[kTileRows];
        int active = 0;
        for (int64_t t = lengths[first] - 1; t >= 0; --t) {
            while (active < count && lengths[first + active] > t) ++active;
            for (int r = 0; r < active; ++r) {
                const int64_t row = starts[first + r] + t;
                hidden[r] = grad_hidden + row * 3 * H;
                const T* before = t > 0 ? h + (row - 1) * H : nullptr;
                if (before != nullptr)
                    cell_backward(grad + row * H, saved + row * 4 * H, before, H, grad_x + row * 3 * H,
                                  grad_hidden + row * 3 * H, previous + row * H, carried + r * H);
                else
                    cell_backward<T>(grad + row * H, saved + row * 4 * H, nullptr, H, grad_x + row * 3 * H,
                                     grad_hidden + row * 3 * H, previous + row * H, carried + r * H);
            }
            for (int64_t g = 0; t > 0 && g < groups; ++g) {
                product_of<2, kTileRows>(active, hidden, 1, packed.get() + g * 3 * H * lanes, lanes, 3 * H, sums);
                const int64_t unit = g * lanes, width = H - unit < lanes ? H - unit : lanes;
                for (int r = 0; r < active; ++r)
                    for (int64_t l = 0; l < width; ++l) carried[r * H + unit + l] += sums[r * lanes + l];
            }
        }
    }
}

FASTSEQ_INSTANTIATE(gru)
FASTSEQ_INSTANTIATE(gru_backward)

}  // namespace fastseq::FASTSEQ_ISA
