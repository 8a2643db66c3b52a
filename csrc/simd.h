// What the vectorised kernels share: the width of a register, and memory that begins on a cache line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastseq::FASTSEQ_ISA {

// kTileRows: rows of a register tile with up to three vectors of columns, which must leave room for the vectors it is
// made from: there are 32 registers with AVX-512, 16 without.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTileRows = 8;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kTileRows = 4;
#else
constexpr int kVectorBytes = 16, kTileRows = 4;
#endif

// Uninitialised memory for objects without constructors. Throws std::bad_alloc, and an exception that leaves an OpenMP
// region ends the program: make it outside, with a part for every thread. Large ones ask for large pages: a fault for
// each 4 KB of a buffer that lives for one call costs more than many a kernel.
template <typename T>
class Buffer {
  public:
    explicit Buffer(int64_t count) {
        const std::size_t size = static_cast<std::size_t>(count) * sizeof(T);
        alignment_ = size >= 2 * kLargePage ? kLargePage : 64;
        data_ = static_cast<T*>(::operator new(size, std::align_val_t(alignment_)));
#ifdef MADV_HUGEPAGE
        if (alignment_ == kLargePage) madvise(data_, size, MADV_HUGEPAGE);  // advice: no harm where it fails
#endif
    }
    ~Buffer() { ::operator delete(data_, std::align_val_t(alignment_)); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* get() const { return data_; }

  private:
    static constexpr std::size_t kLargePage = 2 << 20;
    std::size_t alignment_;
    T* data_;
};

}  // namespace fastseq::FASTSEQ_ISA
