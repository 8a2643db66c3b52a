// The module fastseq._C: its files of functions, and the choice of the instruction set.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "bfloat16.h"
#include "bindings.h"
#include "isa.h"

// Every file of this folder that binds functions.
#define FASTSEQ_EACH_FILE(bind) \
    bind(dropout) bind(attention) bind(topk) bind(dropout_add_norm) bind(cross_entropy) bind(embed_sequence) \
    bind(bias_gelu_dropout) bind(negatives) bind(windows) bind(gru) bind(linear) bind(sampled_loss)          \
    bind(adam_rows) bind(caser_windows) bind(tape) bind(gru_sampled_loss)

namespace fastseq {

#define FASTSEQ_DECLARE(name) void bind_##name(py::module_& m);
FASTSEQ_EACH_FILE(FASTSEQ_DECLARE)

namespace {

constexpr const char* kIsaNames[] = {"baseline", "avx2", "avx512"};

Isa detect() {
    Isa best = Isa::baseline;
#ifdef FASTSEQ_HAS_AVX2
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
        best = Isa::avx2;
    if (best == Isa::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        best = Isa::avx512;
#endif
    const char* asked = std::getenv("FASTSEQ_CPU_ISA");
    if (asked == nullptr || *asked == '\0') return best;
    for (int i = 0; i < 3; ++i)
        if (std::strcmp(asked, kIsaNames[i]) == 0) return std::min(static_cast<Isa>(i), best);
    throw py::value_error(std::string("FASTSEQ_CPU_ISA is '") + asked + "', expected baseline, avx2 or avx512");
}

}  // namespace

Isa isa() {
    static const Isa best = detect();
    return best;
}

bool has_bfloat16_products() {
#ifdef FASTSEQ_HAS_AVX2
    static const bool supported = isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
    return supported;
#else
    return false;
#endif
}

}  // namespace fastseq

PYBIND11_MODULE(_C, m) {
    m.doc() = "C++ kernels of fastseq. Call them through fastseq.ops and fastseq.data.";
    m.def("isa", [] { return fastseq::kIsaNames[static_cast<int>(fastseq::isa())]; });
    m.def("has_bfloat16_products", &fastseq::has_bfloat16_products, "whether the processor multiplies bfloat16");
#define FASTSEQ_BIND(name) fastseq::bind_##name(m);
    FASTSEQ_EACH_FILE(FASTSEQ_BIND)
}
