// The event tape: a stable counting sort by user, then a stable sort by time of those users that need it.
#include "tape.h"

#include <algorithm>
#include <memory>

#include "simd.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

template <typename T>
struct Event {
    T time;
    int64_t item;
};

// Sorts events [begin, end) by time; equal times keep their order.
template <typename T>
void sort_by_time(int64_t* items, T* times, int64_t begin, int64_t end, Event<T>* scratch) {
    if (std::is_sorted(times + begin, times + end)) return;
    const int64_t count = end - begin;
    for (int64_t i = 0; i < count; ++i) scratch[i] = {times[begin + i], items[begin + i]};
    std::stable_sort(scratch, scratch + count, [](const Event<T>& a, const Event<T>& b) { return a.time < b.time; });
    for (int64_t i = 0; i < count; ++i) {
        times[begin + i] = scratch[i].time;
        items[begin + i] = scratch[i].item;
    }
}

}  // namespace

template <typename T>
int64_t build_tape(const int32_t* users, const int32_t* items, const T* times, int64_t n, int64_t n_users,
                   int64_t* offsets, int64_t* tape, T* tape_times, int threads) {
    std::fill_n(offsets, n_users + 1, int64_t(0));
    for (int64_t i = 0; i < n; ++i) {
        if (users[i] < 0 || users[i] >= n_users) return i;
        ++offsets[users[i] + 1];
    }
    int64_t longest = 0;
    for (int64_t u = 0; u < n_users; ++u) {
        longest = std::max(longest, offsets[u + 1]);
        offsets[u + 1] += offsets[u];
    }
    std::unique_ptr<int64_t[]> next(new int64_t[n_users]);
    std::copy_n(offsets, n_users, next.get());
    const Buffer<Event<T>> scratch(times ? longest * threads : 0);
    // Each part owns a range of users, read from all rows: no two threads write to one user, and a user's rows stay in
    // order. Ranges of equal event counts, not of equal user counts.
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; ++part) {
        int64_t* end = offsets + n_users;
        const int64_t low = std::lower_bound(offsets, end, n / threads * part) - offsets;
        const int64_t high =
            part + 1 == threads ? n_users : std::lower_bound(offsets, end, n / threads * (part + 1)) - offsets;
        for (int64_t i = 0; i < n; ++i) {
            const int64_t user = users[i];
            if (user < low || user >= high) continue;
            const int64_t event = next[user]++;
            tape[event] = items[i];
            if (times) tape_times[event] = times[i];
        }
        for (int64_t u = low; times && u < high; ++u)
            sort_by_time(tape, tape_times, offsets[u], offsets[u + 1], scratch.get() + part * longest);
    }
    return -1;
}

template decltype(build_tape<int64_t>) build_tape<int64_t>;
template decltype(build_tape<double>) build_tape<double>;

}  // namespace fastseq::FASTSEQ_ISA
