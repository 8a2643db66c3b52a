#include "negatives.h"

#include "bindings.h"

namespace fastseq {

using Ids = Array<int64_t>;

static std::optional<AliasTable> table_of(const OptionalArray<int64_t>& probability, const OptionalArray<int64_t>& alias,
                                          int64_t n_items) {
    if (probability.has_value() != alias.has_value())
        throw py::value_error("probability and alias must both be given or both be None");
    if (!probability) return std::nullopt;
    check_shapes({n_items}, *probability, "probability", *alias, "alias");
    const AliasTable table{probability->data(), alias->data()};
    check_ids(*probability, "probability", (int64_t(1) << 32) + 1);
    check_ids(*alias, "alias", n_items);
    return table;
}

void bind_negatives(py::module_& m) {
    define(m, "sample_negatives",
           {"users", "positives", "seen_offsets", "seen_items", "n_items", "seed", "step", "probability", "alias",
            "first", "out", "threads"},
           "Fills out[N, K]; returns the first target that has nothing left to draw, or -1",
           [](const Ids& users, const Ids& positives, const Ids& seen_offsets, const Ids& seen_items, int64_t n_items,
              int64_t seed, int64_t step, const OptionalArray<int64_t>& probability, const OptionalArray<int64_t>& alias,
              int64_t first, Ids& out, Threads threads) {
               check_shape(users, "users", {-1});
               check_shape(seen_offsets, "seen_offsets", {-1});
               check_shape(seen_items, "seen_items", {-1});
               check_shape(positives, "positives", {users.shape(0)});
               check_shape(out, "out", {users.shape(0), -1});
               check_number("n_items", n_items, 1, INT32_MAX);
               const NegativesProblem problem{users.data(),   positives.data(), seen_offsets.data(), seen_items.data(),
                                              users.shape(0), out.shape(1),     n_items,             first};
               check_number("first", first, 0, INT64_MAX - problem.targets);
               const int64_t n_users = seen_offsets.shape(0) - 1, n_seen = seen_items.shape(0);
               int64_t* result = out.mutable_data();
               // The checks read every target and the whole table, and the caller may be a thread beside the training.
               py::gil_scoped_release release;
               const auto table = table_of(probability, alias, n_items);
               for (int64_t n = 0; n < problem.targets; ++n) {
                   const int64_t user = problem.users[n];
                   check_range("users", n, user, n_users);
                   check_range("positives", n, problem.positives[n], n_items);
                   const int64_t begin = problem.seen_offsets[user], end = problem.seen_offsets[user + 1];
                   if (begin < 0 || end < begin || end > n_seen || end - begin > n_items)
                       throw py::value_error("seen_offsets of user " + std::to_string(user) + " are " +
                                             std::to_string(begin) + ", " + std::to_string(end));
                   if (begin == end) continue;  // a list is sorted, so its ends tell
                   check_range("seen_items", begin, problem.seen_items[begin], n_items);
                   check_range("seen_items", end - 1, problem.seen_items[end - 1], n_items);
               }
               const Rng rng(seed, step);
               if (problem.k == 0) return int64_t(-1);
               return table ? negatives_weighted(problem, *table, rng, result, threads)
                            : negatives_uniform(problem, rng, result, threads);
           });
    define(m, "sample_shared_negatives",
           {"n_items", "seed", "step", "probability", "alias", "out", "threads"},
           "Fills out[S] from the whole catalogue",
           [](int64_t n_items, int64_t seed, int64_t step, const OptionalArray<int64_t>& probability,
              const OptionalArray<int64_t>& alias, Ids& out, Threads threads) {
               check_shape(out, "out", {-1});
               check_number("n_items", n_items, 1, INT32_MAX);
               const auto table = table_of(probability, alias, n_items);
               const Rng rng(seed, step);
               int64_t* result = out.mutable_data();
               const int64_t size = out.shape(0);
               py::gil_scoped_release release;
               if (table)
                   shared_negatives_weighted(size, n_items, *table, rng, result, threads);
               else
                   shared_negatives_uniform(size, n_items, rng, result, threads);
           });
    define(m, "alias_table",
           {"mass", "probability", "alias"},
           "Walker's table of integer masses that sum to n * 2^32; uses mass up",
           [](Ids& mass, Ids& probability, Ids& alias) {
               check_shape(mass, "mass", {-1});
               const int64_t n = mass.shape(0);
               check_number("mass.size", n, 1, INT32_MAX);
               check_shapes({n}, probability, "probability", alias, "alias");
               int64_t* weight = mass.mutable_data();
               int64_t rest = n << 32;
               for (int64_t i = 0; i < n; ++i) {
                   check_range("mass", i, weight[i], rest + 1);
                   rest -= weight[i];
               }
               if (rest != 0) throw py::value_error("mass sums to less than n * 2^32, by " + std::to_string(rest));
               int64_t *threshold = probability.mutable_data(), *other = alias.mutable_data();
               py::gil_scoped_release release;
               build_alias_table(weight, n, threshold, other);
           });
}

}  // namespace fastseq
