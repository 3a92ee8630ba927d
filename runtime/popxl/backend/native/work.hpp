// How threads share the work of an instruction.

#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace popxl {

// One thread's view of an instruction: parts are taken as threads get free, since the machine's
// cores need not be equally fast.
struct Share {
    std::atomic<int64_t>* taken;
    int thread, threads;
    std::vector<char>* scratch;  // of this thread, kept from one instruction to the next

    int64_t next() const { return taken->fetch_add(1, std::memory_order_relaxed); }

    // Room for `count` elements, aligned to 64 bytes; what was there before is lost.
    template <class T> T* room(int64_t count) const {
        size_t bytes = count * sizeof(T) + 64;
        if (scratch->size() < bytes) scratch->resize(bytes);
        uintptr_t start = reinterpret_cast<uintptr_t>(scratch->data());
        return reinterpret_cast<T*>((start + 63) / 64 * 64);
    }
};

// A shard's place among those that an instruction is run for; at most three axes.
struct Place {
    int64_t index[3];

    Place(const int64_t (&mesh)[3], int64_t number)
        : index{number / (mesh[1] * mesh[2]), number / mesh[2] % mesh[1], number % mesh[2]} {}

    int64_t offset(const int64_t (&strides)[3]) const {
        return strides[0] * index[0] + strides[1] * index[1] + strides[2] * index[2];
    }
};

inline int64_t count_of(const int64_t (&mesh)[3]) { return mesh[0] * mesh[1] * mesh[2]; }

struct Linear;
struct Norm;
struct Attention;

void run(const Linear& op, const Share& share);
void run(const Norm& op, const Share& share);
void run(const Attention& op, const Share& share);

}  // namespace popxl
