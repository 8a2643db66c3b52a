// Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), one block at a time; many at
// once are in philox_lanes.h. fastseq/ops/philox.py is the written contract of the counter layout.
#pragma once

#include <cstdint>

namespace fastseq {

// Seed and step of one training step, as they enter every random op.
struct Rng {
    uint32_t key0, key1;  // low and high word of the seed
    uint32_t step;        // low word of the step

    Rng(int64_t seed, int64_t step_)
        : key0(static_cast<uint32_t>(static_cast<uint64_t>(seed))),
          key1(static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)),
          step(static_cast<uint32_t>(static_cast<uint64_t>(step_))) {}
};

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;

// One block: four random words for the counter (c0, c1, c2, c3), in place.
static inline void philox(const Rng& rng, uint32_t c[4]) {
    uint32_t k0 = rng.key0, k1 = rng.key1;
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = static_cast<uint64_t>(kPhiloxM0) * c[0];
        const uint64_t p1 = static_cast<uint64_t>(kPhiloxM1) * c[2];
        const uint32_t y0 = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0;
        const uint32_t y2 = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1;
        c[0] = y0;
        c[1] = static_cast<uint32_t>(p1);
        c[2] = y2;
        c[3] = static_cast<uint32_t>(p0);
        k0 += kPhiloxW0;
        k1 += kPhiloxW1;
    }
}

}  // namespace fastseq
