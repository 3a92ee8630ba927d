// What the Python side calls: lists of instructions, and the rate at which memory is read.

#include <omp.h>

#include <atomic>
#include <chrono>
#include <memory>

#include "vectors.hpp"
#include "work.hpp"
// One unit: the compiler starts once.
#include "attention.cpp"
#include "chunk.cpp"
#include "decompress.cpp"
#include "elementwise.cpp"
#include "finish.cpp"
#include "linear.cpp"
#include "norm.cpp"
#include "place.cpp"

namespace popxl {

struct Instruction {
    int64_t kind;
    const void* fields;
};

namespace {

std::vector<char>& scratch_of_thread() {
    thread_local std::vector<char> scratch;
    return scratch;
}

void run(const Instruction& instruction, const Worker& worker) {
    switch (instruction.kind) {
        case LINEAR: return run(*static_cast<const Linear*>(instruction.fields), worker);
        case NORM: return run(*static_cast<const Norm*>(instruction.fields), worker);
        case ATTENTION: return run(*static_cast<const Attention*>(instruction.fields), worker);
        case FINISH: return run(*static_cast<const Finish*>(instruction.fields), worker);
        case DECOMPRESS: return run(*static_cast<const Decompress*>(instruction.fields), worker);
        case CHUNK: return run(*static_cast<const Chunk*>(instruction.fields), worker);
        case KEEP: return keep(*static_cast<const Chunk*>(instruction.fields), worker);
        case PUT: return run(*static_cast<const Put*>(instruction.fields), worker);
        default: return run(*static_cast<const Elementwise*>(instruction.fields), worker);
    }
}

}  // namespace
}  // namespace popxl

using namespace popxl;

extern "C" void popxl_run(const Instruction* instructions, int64_t count, int64_t threads) {
    constexpr int64_t AT_LEAST = 16 << 10, AT_MOST = 256 << 10;  // bytes that are asked for ahead
    auto taken = std::make_unique<Taken[]>(count * threads);
    Barrier barrier;
#pragma omp parallel num_threads(threads)
    {
        auto* scratch = &scratch_of_thread();
        int thread = omp_get_thread_num(), all = omp_get_num_threads();
        Fetcher fetcher;
        int64_t product = 0;  // the next one
        for (int64_t i = 0; i < count; i++) {
            Worker worker{&taken[i * threads], thread, all, scratch};
            run(instructions[i], worker);
            if (i + 1 == count) break;
            if (product <= i) {
                do product++;
                while (product < count && instructions[product].kind != LINEAR);
                const char* weights =
                    product == count ? nullptr
                                     : first_weights(*static_cast<const Linear*>(
                                                         instructions[product].fields),
                                                     worker);
                fetcher.start(weights, weights ? AT_MOST : 0);
                while (fetcher.done < AT_LEAST) fetcher.line();
            }
            barrier.wait(all, [&] { fetcher.line(); });
        }
    }
}

extern "C" void popxl_run_one(int64_t kind, const void* fields, int64_t threads) {
    Instruction one{kind, fields};
    popxl_run(&one, 1, threads);
}

// Seconds that reading `bytes` once takes; a multiple of 64.
extern "C" double popxl_read(const char* data, int64_t bytes, int64_t threads) {
    constexpr int64_t PART = 1 << 18;
    std::atomic<int64_t> taken{0};
    std::atomic<uint32_t> sink{0};
    auto begin = std::chrono::steady_clock::now();
#pragma omp parallel num_threads(threads)
    {
        Words all[4] = {};
        for (int64_t first = taken.fetch_add(PART); first < bytes; first = taken.fetch_add(PART)) {
            int64_t end = first + PART < bytes ? first + PART : bytes;
            for (int64_t i = first; i + 256 <= end; i += 256) {
                for (int j = 0; j < 4; j++) {
                    const char* from = data + i + 64 * j;
                    ask_ahead(from + AHEAD);
                    ask_soon(from);
                    all[j] ^= load<Words>(from);
                }
            }
        }
        Words any = all[0] ^ all[1] ^ all[2] ^ all[3];
        sink ^= any[0] ^ any[5];  // so that no load can be left out
    }
    std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
    return passed.count();
}

// Whether products of bfloat16 are done in the processor's tile registers.
extern "C" int64_t popxl_tiles() {
#ifdef POPXL_TILES
    return has_tiles();
#else
    return 0;
#endif
}

// Bytes of the largest weight of a type that `Linear` multiplies more than FEW_ROWS rows with. Torch's product
// is quicker at float32 on Intel's processors, and at bfloat16 on those with tiles, where the sizes fill none of
// ours; where a weight is small, so is that gain beside the passes that torch makes for what follows.
extern "C" int64_t popxl_many_rows(int64_t type) {
    constexpr int64_t ANY = INT64_MAX, SMALL = 1 << 20;
#ifdef __AMX_BF16__
    if (type == BFLOAT16) return 0;
#endif
#ifndef POPXL_PANELS
    return 0;
#elif defined(POPXL_INTEL)
    return type == FLOAT32 ? SMALL : ANY;
#else
    return ANY;
#endif
}
