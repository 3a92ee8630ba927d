// Which of several ways is the quickest, where processors with the same instructions differ. The build
// names the maker; `docs/kernels.md` has the figures.

#pragma once

#include <cstdint>

namespace popxl {
namespace {

// Weights are asked for AHEAD bytes before their use. On AMD as what is used once; Intel does that at half
// the rate: there they are asked for in the second cache, and SOON bytes before their use in the first.
constexpr int64_t AHEAD = 4096;
#if defined(POPXL_AMD)
constexpr int ONCE = 0;
constexpr int64_t SOON = 0;
#elif defined(POPXL_INTEL)
constexpr int ONCE = 2;
constexpr int64_t SOON = 1024;
#else
constexpr int ONCE = 3;
constexpr int64_t SOON = 0;
#endif

inline void ask_ahead(const char* weights) { __builtin_prefetch(weights, 0, ONCE); }
inline void ask_soon(const char* in_use) {
    if (SOON) __builtin_prefetch(in_use + SOON);
}

// Whether products of pairs of bfloat16 are worth their instruction: on AMD twice as many products a
// cycle as floats have, on Intel half as many.
#if defined(__AVX512BF16__) && !defined(POPXL_INTEL)
#define POPXL_PAIRS 1
#endif

// Whether weights of 8 and 4 bits are multiplied as whole numbers.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define POPXL_BYTES 1
#endif

// Whether there are panels of weights for many rows.
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define POPXL_PANELS 1
#endif

}  // namespace
}  // namespace popxl
