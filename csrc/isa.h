// Run-time choice of the instruction set.
//
// A kernel lives in csrc/<op>.cpp inside `namespace fastseq::FASTSEQ_ISA`; setup.py compiles that file once per
// instruction set. csrc/<op>.h declares it with FASTSEQ_KERNEL, which makes `fastseq::<name>(...)` call the best
// one this machine can run. FASTSEQ_CPU_ISA=baseline|avx2|avx512 lowers the choice (for tests and comparisons).
//
// A kernel for float and double is a template, with `template <typename T> void` for its result. Its file ends with
// FASTSEQ_INSTANTIATE(name).
#pragma once

#include <cstdint>
#include <utility>

namespace fastseq {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

// The instruction set in use; decided at the first call. Defined in bindings/module.cpp.
Isa isa();

}  // namespace fastseq

#ifdef FASTSEQ_HAS_AVX2
#define FASTSEQ_PICK(name, ...)                                       \
    switch (isa()) {                                                  \
        case Isa::avx512: return avx512::name(__VA_ARGS__);           \
        case Isa::avx2: return avx2::name(__VA_ARGS__);               \
        default: return baseline::name(__VA_ARGS__);                  \
    }
#define FASTSEQ_KERNEL(result, name, parameters)                      \
    namespace baseline { result name parameters; }                    \
    namespace avx2 { result name parameters; }                        \
    namespace avx512 { result name parameters; }                      \
    template <typename... A> auto name(A&&... a) { FASTSEQ_PICK(name, std::forward<A>(a)...) }
#else
#define FASTSEQ_KERNEL(result, name, parameters)                      \
    namespace baseline { result name parameters; }                    \
    template <typename... A> auto name(A&&... a) { return baseline::name(std::forward<A>(a)...); }
#endif

#define FASTSEQ_INSTANTIATE(name)               \
    template decltype(name<float>) name<float>; \
    template decltype(name<double>) name<double>;
