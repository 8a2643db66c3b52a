// Negative sampling. What is drawn from which random word is the contract of fastseq/ops/negatives.py.
//
// Sixteen consecutive targets go side by side: a binary search is a chain of dependent loads, so one alone waits for
// memory most of the time, and sixteen wait together.
#include "negatives.h"

#include <algorithm>
#include <memory>
#include <new>

#include "philox_lanes.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

constexpr uint32_t kSite = 0x8000, kSharedSite = 0x8001;
constexpr int kLanes = kPhiloxRows;
constexpr int kAttempts = 31;           // two words each; words 62 and 63 are for the exact draw
constexpr int kBlocksPerNegative = 16;  // 64 words

inline int64_t scaled(uint32_t word, int64_t n) {
    return static_cast<int64_t>((static_cast<uint64_t>(word) * static_cast<uint64_t>(n)) >> 32);
}

inline int64_t pick(const AliasTable& table, int64_t n_items, uint32_t column, uint32_t fraction) {
    const int64_t item = scaled(column, n_items), other = table.alias[item];
    const int64_t keep = -static_cast<int64_t>(static_cast<int64_t>(fraction) < table.probability[item]);
    return other ^ ((item ^ other) & keep);  // no branch: it would be guessed wrong half of the time
}

// Sixteen consecutive targets, with what their users have seen. Lanes past the end repeat the last target.
struct Targets {
    const int64_t* seen;
    int64_t count, first, longest = 0;
    int64_t start[kLanes], size[kLanes];  // the seen list of each lane
    int64_t positive[kLanes];
    int64_t before[kLanes];     // seen items below the positive
    bool new_positive[kLanes];  // whether the positive is not among the seen

    Targets(const NegativesProblem& problem, int64_t first_) : seen(problem.seen_items), first(first_) {
        count = std::min<int64_t>(kLanes, problem.targets - first);
        for (int l = 0; l < kLanes; ++l) {
            const int64_t n = first + std::min<int64_t>(l, count - 1), user = problem.users[n];
            const int64_t begin = problem.seen_offsets[user];
            size[l] = problem.seen_offsets[user + 1] - begin;
            start[l] = size[l] > 0 ? begin : 0;  // an empty list still has an address that can be read
            positive[l] = problem.positives[n];
            longest = std::max(longest, size[l]);
        }
        int64_t at_most[kLanes];
        search<false>(positive, at_most);
        for (int l = 0; l < kLanes; ++l) {
            new_positive[l] = !contains(l, at_most[l], positive[l]);
            before[l] = at_most[l] - !new_positive[l];
        }
    }

    // at_most[l] = how many entries of list l are at most value[l]; with `rank`, of its entries less their index, which
    // counts the seen items that come before the unseen item number value[l].
    template <bool rank>
    void search(const int64_t* value, int64_t* at_most) const {
        int64_t passed[kLanes] = {};
        int64_t bit = 1;
        while (bit <= longest) bit *= 2;
        for (bit /= 2; bit > 0; bit /= 2) {
            for (int l = 0; l < kLanes; ++l) {  // no branch: a wrong guess costs more than the whole step
                const int64_t next = passed[l] + bit;
                const int64_t index = std::max<int64_t>(std::min(next, size[l]) - 1, 0);
                const int64_t entry = seen[start[l] + index] - (rank ? index : 0);
                passed[l] += bit & -static_cast<int64_t>((next <= size[l]) & (entry <= value[l]));
            }
        }
        std::copy_n(passed, kLanes, at_most);
    }

    // Whether `item` is in list l, of which `at_most` entries are at most `item`.
    bool contains(int l, int64_t at_most, int64_t item) const {
        return at_most > 0 && seen[start[l] + at_most - 1] == item;
    }

    bool excludes(int l, int64_t item) const {
        const int64_t* list = seen + start[l];
        int64_t left = size[l];
        while (left > 1) {
            const int64_t half = left / 2;
            list += half & -static_cast<int64_t>(list[half] <= item);
            left -= half;
        }
        return item == positive[l] || (left == 1 && *list == item);
    }
};

// The exact draw from what a user has not seen, for when rejection has failed: weights summed in the order of ids.
class Complement {
  public:
    bool out_of_memory = false;  // an exception must not leave an OpenMP region

    Complement(const NegativesProblem& problem, const AliasTable& table) : problem_(problem), table_(table) {}

    // Item by a 64-bit number, or -1 where nothing is left.
    int64_t draw(int64_t user, int64_t excluded, uint64_t number) {
        if (user != user_ || excluded != excluded_) prepare(user, excluded);
        if (out_of_memory) return 0;
        const int64_t n = problem_.n_items;
        const uint64_t total = cumulative_[n - 1];
        if (total == 0) return -1;
        const uint64_t rank = static_cast<uint64_t>((static_cast<unsigned __int128>(number) * total) >> 64);
        return std::upper_bound(cumulative_.get(), cumulative_.get() + n, rank) - cumulative_.get();
    }

  private:
    void prepare(int64_t user, int64_t excluded) {
        const int64_t n = problem_.n_items;
        if (!mass_) {
            mass_.reset(new (std::nothrow) uint64_t[n]());
            cumulative_.reset(new (std::nothrow) uint64_t[n]);
            out_of_memory = !mass_ || !cumulative_;
            if (out_of_memory) return;
            for (int64_t i = 0; i < n; ++i) {
                mass_[i] += static_cast<uint64_t>(table_.probability[i]);
                mass_[table_.alias[i]] += (uint64_t(1) << 32) - static_cast<uint64_t>(table_.probability[i]);
            }
        }
        const int64_t* next = problem_.seen_items + problem_.seen_offsets[user];
        const int64_t* end = problem_.seen_items + problem_.seen_offsets[user + 1];
        uint64_t sum = 0;
        for (int64_t i = 0; i < n; ++i) {
            const bool seen = next < end && *next == i;
            next += seen;
            if (!seen && i != excluded) sum += mass_[i];
            cumulative_[i] = sum;
        }
        user_ = user;
        excluded_ = excluded;
    }

    const NegativesProblem& problem_;
    const AliasTable& table_;
    std::unique_ptr<uint64_t[]> mass_, cumulative_;
    int64_t user_ = -1, excluded_ = -1;
};

// The attempts of one negative after its first two, and the exact draw after the last. -1 where nothing is left.
int64_t draw_on(const NegativesProblem& problem, const AliasTable& table, const Rng& rng, const Targets& targets,
                int l, int64_t number, Complement& complement) {
    const int64_t n = targets.first + l;
    uint32_t block[4];
    for (int attempt = 2;; ++attempt) {
        if (attempt % 2 == 0) {
            block[0] = static_cast<uint32_t>(number * kBlocksPerNegative + attempt / 2);
            block[1] = static_cast<uint32_t>(problem.first + n);
            block[2] = rng.step;
            block[3] = kSite;
            philox(rng, block);
        }
        const uint32_t* pair = block + 2 * (attempt % 2);
        if (attempt == kAttempts)
            return complement.draw(problem.users[n], targets.new_positive[l] ? targets.positive[l] : -1,
                                   static_cast<uint64_t>(pair[0]) << 32 | pair[1]);
        const int64_t item = pick(table, problem.n_items, pair[0], pair[1]);
        if (!targets.excludes(l, item)) return item;
    }
}

}  // namespace

int64_t negatives_uniform(const NegativesProblem& problem, const Rng& rng, int64_t* out, int threads) {
    const int64_t k = problem.k, chunks = (problem.targets + kLanes - 1) / kLanes;
    int64_t failed = problem.targets;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(min : failed)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const Targets targets(problem, chunk * kLanes);
        int64_t left[kLanes], skip[kLanes];
        for (int l = 0; l < kLanes; ++l) {
            left[l] = problem.n_items - targets.size[l] - targets.new_positive[l];
            // A positive that is not among the seen is skipped: its number among what is not seen.
            skip[l] = targets.new_positive[l] ? targets.positive[l] - targets.before[l] : problem.n_items;
            if (left[l] <= 0 && l < targets.count) failed = std::min(failed, targets.first + l);
        }
        const uint32_t row = static_cast<uint32_t>(problem.first + targets.first);
        uint32_t words[4][kLanes];
        for (int64_t j = 0; j < k; ++j) {
            if (j % 4 == 0) philox_rows(rng, static_cast<uint32_t>(j / 4), row, kSite, words);
            int64_t value[kLanes], seen_before[kLanes];
            for (int l = 0; l < kLanes; ++l) {
                value[l] = scaled(words[j % 4][l], left[l]);
                value[l] += value[l] >= skip[l];
            }
            targets.search<true>(value, seen_before);
            for (int l = 0; l < targets.count; ++l) out[(targets.first + l) * k + j] = value[l] + seen_before[l];
        }
    }
    return failed == problem.targets ? -1 : failed;
}

int64_t negatives_weighted(const NegativesProblem& problem, const AliasTable& table, const Rng& rng, int64_t* out,
                           int threads) {
    const int64_t k = problem.k, chunks = (problem.targets + kLanes - 1) / kLanes;
    int64_t failed = problem.targets;
    bool out_of_memory = false;
#pragma omp parallel num_threads(threads) reduction(min : failed) reduction(|| : out_of_memory)
    {
        Complement complement(problem, table);
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const Targets targets(problem, chunk * kLanes);
            const uint32_t row = static_cast<uint32_t>(problem.first + targets.first);
            for (int64_t j = 0; j < k; ++j) {
                uint32_t words[4][kLanes];
                philox_rows(rng, static_cast<uint32_t>(j * kBlocksPerNegative), row, kSite, words);
                int64_t drawn[2][kLanes], at_most[kLanes];
                bool good[2][kLanes];
                for (int a = 0; a < 2; ++a) {
                    for (int l = 0; l < kLanes; ++l)
                        drawn[a][l] = pick(table, problem.n_items, words[2 * a][l], words[2 * a + 1][l]);
                    targets.search<false>(drawn[a], at_most);
                    for (int l = 0; l < kLanes; ++l)
                        good[a][l] = drawn[a][l] != targets.positive[l] &&
                                     !targets.contains(l, at_most[l], drawn[a][l]);
                }
                for (int l = 0; l < targets.count; ++l) {
                    const int64_t item = good[0][l]   ? drawn[0][l]
                                         : good[1][l] ? drawn[1][l]
                                                      : draw_on(problem, table, rng, targets, l, j, complement);
                    if (item < 0) failed = std::min(failed, targets.first + l);
                    out[(targets.first + l) * k + j] = item;
                }
            }
        }
        out_of_memory = complement.out_of_memory;
    }
    if (out_of_memory) throw std::bad_alloc();
    return failed == problem.targets ? -1 : failed;
}

void shared_negatives_uniform(int64_t size, int64_t n_items, const Rng& rng, int64_t* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t group = 0; group < (size + kWords - 1) / kWords; ++group) {
        alignas(64) uint32_t words[kWords];
        philox_group(rng, static_cast<uint32_t>(group * kWords / 4), 0, kSharedSite, words);
        const int64_t start = group * kWords, width = std::min<int64_t>(kWords, size - start);
        for (int64_t i = 0; i < width; ++i) out[start + i] = scaled(words[i], n_items);
    }
}

void shared_negatives_weighted(int64_t size, int64_t n_items, const AliasTable& table, const Rng& rng, int64_t* out,
                               int threads) {
    constexpr int64_t pairs = kWords / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t group = 0; group < (size + pairs - 1) / pairs; ++group) {
        alignas(64) uint32_t words[kWords];
        philox_group(rng, static_cast<uint32_t>(group * kWords / 4), 0, kSharedSite, words);
        const int64_t start = group * pairs, width = std::min<int64_t>(pairs, size - start);
        for (int64_t i = 0; i < width; ++i)
            out[start + i] = pick(table, n_items, words[2 * i], words[2 * i + 1]);
    }
}

void build_alias_table(int64_t* mass, int64_t n, int64_t* probability, int64_t* alias) {
    constexpr int64_t full = int64_t(1) << 32;
    // One stack of item numbers from each end: those with less than a column's worth, and the others.
    std::unique_ptr<int64_t[]> stack(new int64_t[n]);
    int64_t less = 0, more = n;
    for (int64_t i = n - 1; i >= 0; --i) {
        if (mass[i] < full) stack[less++] = i;
        else stack[--more] = i;
    }
    while (less > 0) {
        const int64_t poor = stack[--less], rich = stack[more];
        probability[poor] = mass[poor];
        alias[poor] = rich;
        mass[rich] -= full - mass[poor];
        if (mass[rich] < full) {
            ++more;
            stack[less++] = rich;
        }
    }
    for (; more < n; ++more) {
        probability[stack[more]] = full;
        alias[stack[more]] = stack[more];
    }
}

}  // namespace fastseq::FASTSEQ_ISA
