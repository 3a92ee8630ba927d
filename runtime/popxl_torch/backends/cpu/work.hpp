// How threads share the work of an instruction.

#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "instructions.hpp"

namespace popxl {

// How many items of a thread's range are taken, from its front (low half) and its back. On a cache
// line of its own.
struct alignas(LINE) Taken {
    std::atomic<uint64_t> counts{0};

    // The next of `size` items, or -1: from the front for the range's own thread, else the back.
    int64_t take(int64_t size, bool own) {
        uint64_t held = counts.load(std::memory_order_relaxed);
        for (;;) {
            int64_t front = held & 0xffffffff, back = held >> 32;
            if (front + back >= size) return -1;
            uint64_t one = own ? 1 : uint64_t(1) << 32;
            if (counts.compare_exchange_weak(held, held + one, std::memory_order_relaxed))
                return own ? front : size - 1 - back;
        }
    }
};

// One thread's view of an instruction. Each thread has a range of items, so that it reads memory in
// one stream; who is done helps the others, since the machine's cores need not be equally fast.
struct Worker {
    Taken* taken;  // of each thread
    int thread, threads;
    std::vector<char>* scratch;  // of this thread, kept from one instruction to the next

    int64_t begin(int64_t items, int of) const { return items * of / threads; }

    // The next item to do, or -1.
    int64_t next(int64_t items) const {
        for (int step = 0; step < threads; step++) {
            int of = (thread + step) % threads;
            int64_t first = begin(items, of), size = begin(items, of + 1) - first;
            int64_t item = taken[of].take(size, step == 0);
            if (item >= 0) return first + item;
        }
        return -1;
    }

    // Gives a function each of `rows` short rows of `row` elements: a few of them are an item, so that
    // taking one costs little beside it.
    template <class F> void pieces(int64_t rows, int64_t row, F run) const {
        constexpr int64_t ELEMENTS = 4096, PIECES = 8;  // of an item at most; items of a thread
        int64_t fair = rows / (PIECES * threads), most = ELEMENTS / (row > 0 ? row : 1);
        int64_t some = std::max<int64_t>(std::min(fair, most), 1), items = (rows + some - 1) / some;
        for (int64_t item = next(items); item >= 0; item = next(items))
            for (int64_t i = item * some; i < std::min(rows, (item + 1) * some); i++) run(i);
    }

    // Room for `count` elements, aligned to a line; what was there before is lost.
    template <class T> T* room(int64_t count) const {
        size_t bytes = count * sizeof(T) + LINE;
        if (scratch->size() < bytes) scratch->resize(bytes);
        uintptr_t start = reinterpret_cast<uintptr_t>(scratch->data());
        return reinterpret_cast<T*>((start + LINE - 1) / LINE * LINE);
    }
};

// Where all threads meet after an instruction. Who waits has something to do meanwhile.
class Barrier {
   public:
    template <class Meanwhile> void wait(int threads, Meanwhile meanwhile) {
        int round = rounds.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived.store(0, std::memory_order_relaxed);
            rounds.store(round + 1, std::memory_order_release);
            return;
        }
        for (int tries = 0; rounds.load(std::memory_order_acquire) == round; tries++) {
            meanwhile();
            if (tries > PATIENCE) sched_yield();  // others may want the core that this thread holds
        }
    }

   private:
    static constexpr int PATIENCE = 20000;
    alignas(LINE) std::atomic<int> arrived{0};
    alignas(LINE) std::atomic<int> rounds{0};
};

// Asks for the first weights of a product to come, a line at a time.
struct Fetcher {
    const char* from = nullptr;
    int64_t done = 0, most = 0;

    void start(const char* weights, int64_t bytes) { from = weights, done = 0, most = bytes; }

    void line() {
        if (done < most) __builtin_prefetch(from + done, 0, 2);
        done += LINE;
    }

    void lines(int count) {
        for (int i = 0; i < count; i++) line();
    }
};

// A shard's place among those that an instruction is run for; at most three axes.
struct MeshPosition {
    int64_t index[3];

    MeshPosition(const int64_t (&mesh)[3], int64_t number)
        : index{number / (mesh[1] * mesh[2]), number / mesh[2] % mesh[1], number % mesh[2]} {}

    int64_t offset(const int64_t (&strides)[3]) const {
        return strides[0] * index[0] + strides[1] * index[1] + strides[2] * index[2];
    }
};

inline int64_t count_of(const int64_t (&mesh)[3]) { return mesh[0] * mesh[1] * mesh[2]; }

void run(const Linear& op, const Worker& worker);
const char* first_weights(const Linear& op, const Worker& worker);  // of this thread; may be null
void run(const Norm& op, const Worker& worker);
void run(const Attention& op, const Worker& worker);

}  // namespace popxl
