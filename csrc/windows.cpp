// Training windows: cut from the tape, and copied into a batch. Their contract is fastseq/data/windows.py.
#include "windows.h"

#include <cstring>

namespace fastseq::FASTSEQ_ISA {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Windows of a user with `events` training events.
inline int64_t windows_of(int64_t events, const WindowShape& shape) {
    const int64_t targets = events - 1;
    if (targets < 1) return 0;
    if (shape.per_target) return targets;
    const int64_t later = most(targets - shape.max_len, 0);
    return 1 + (later + shape.stride - 1) / shape.stride;
}

}  // namespace

int64_t count_windows(const int64_t* offsets, const int64_t* stop, int64_t users, const WindowShape& shape) {
    int64_t total = 0;
    for (int64_t u = 0; u < users; ++u) total += windows_of(stop[u] - offsets[u], shape);
    return total;
}

void pack_windows(const int64_t* offsets, const int64_t* stop, int64_t users, const WindowShape& shape,
                  const WindowArrays& out) {
    int64_t w = 0;
    for (int64_t u = 0; u < users; ++u) {
        const int64_t begin = offsets[u], last = stop[u] - 1;  // the last event is a target, never an input
        const int64_t count = windows_of(stop[u] - begin, shape);
        for (int64_t i = 0; i < count; ++i, ++w) {
            int64_t end, first;
            if (shape.per_target) {
                end = first = begin + 1 + i;
            } else {
                end = least(begin + shape.max_len + i * shape.stride, last);
                first = i == 0 ? begin + 1 : begin + shape.max_len + (i - 1) * shape.stride + 1;
            }
            const int64_t reach = shape.context ? first : end;
            out.user[w] = u;
            out.start[w] = most(begin, reach - shape.max_len);
            out.stop[w] = end;
            out.first_target[w] = first;
        }
    }
}

int64_t gather_windows(const int64_t* tape, const int64_t* user_offsets, const WindowArrays& windows,
                       const int64_t* order, int64_t count, int64_t max_len, const BatchArrays& out) {
    int64_t t = 0, n = 0, r = 0, padding = 0;
    out.offsets[0] = 0;
    for (int64_t b = 0; b < count; ++b) {
        const int64_t w = order[b];
        const int64_t start = windows.start[w], stop = windows.stop[w], first = windows.first_target[w];
        const int64_t length = stop - start, targets = stop - first + 1;
        std::memcpy(out.items + t, tape + start, static_cast<size_t>(length) * sizeof(int64_t));
        std::memcpy(out.targets + n, tape + first, static_cast<size_t>(targets) * sizeof(int64_t));
        for (int64_t i = 0; i < targets; ++i) {
            out.rows[n + i] = t + first - 1 - start + i;  // the input before the target
            out.target_sequences[n + i] = b;
        }
        out.users[b] = windows.user[w];
        t += length;
        n += targets;
        out.offsets[b + 1] = static_cast<int32_t>(t);
        if (out.l2_items == nullptr) continue;

        // Row p is in the history [max(begin, t - max_len), t) of the targets t with p < t <= p + max_len.
        const int64_t begin = user_offsets[windows.user[w]], reach = most(begin, first - max_len);
        std::memcpy(out.l2_items + r, tape + reach, static_cast<size_t>(stop - reach) * sizeof(int64_t));
        for (int64_t p = reach; p < stop; ++p)
            out.l2_weights[r++] = static_cast<float>(least(stop, p + max_len) - most(first, p + 1) + 1);
        // A target t with t - begin < max_len leaves max_len - (t - begin) cells: an arithmetic series.
        const int64_t short_targets = most(0, least(stop, begin + max_len) - first + 1);
        const int64_t first_gap = max_len - (first - begin);
        padding += short_targets * first_gap - short_targets * (short_targets - 1) / 2;
    }
    return padding;
}

}  // namespace fastseq::FASTSEQ_ISA
