// Attention of ROWS query rows of one KV head.

#pragma once

#include <algorithm>
#include <cstring>

#include "vectors.h"

namespace {

template <class Cell> struct Keys {
    static constexpr int PAIR = Sum<Cell>::PAIR;

    const Cell* pool;
    const int32_t* block_table;
    size_t block_stride, offset, to_values;     // cells: from block to block, to this layer's K of this head, from K to V
    int block_size, head_dim;

    const Cell* block(int position) const { return pool + block_table[position / block_size] * block_stride + offset; }
    const Cell* k(int position) const { return block(position) + position % block_size * PAIR; }
    const Cell* v(int position) const { return block(position) + to_values + size_t(position % block_size) * head_dim; }
};

template <int ROWS, class Cell> struct Tile {
    using S = Sum<Cell>;
    using Operand = typename S::Operand;

    Operand queries[ROWS][MAX_HEAD_DIM];
    float out[ROWS][MAX_HEAD_DIM];
    float scores[ROWS][KEYS];
    Operand weights[ROWS][KEYS];
    float highest[ROWS];
    Floats sums[ROWS];

    // Scores of `count` keys from `first` on, and of what else their last vector holds.
    void score(const Keys<Cell>& keys, int first, int count) {
        constexpr int WIDTH = ROWS == 8 ? 2 : 4;    // vectors of keys at once: sums enough to hide each other's latency
        int j = 0;
        for (; j + (WIDTH - 1) * LANES < count; j += WIDTH * LANES) score_part<WIDTH>(keys, first, j);
        for (; j < count; j += LANES) score_part<1>(keys, first, j);
    }

    template <int WIDTH> void score_part(const Keys<Cell>& keys, int first, int j) {
        const Cell* k[WIDTH];
        for (int w = 0; w < WIDTH; w++) k[w] = keys.k(first + j + w * LANES);
        Floats dots[ROWS][WIDTH] = {};
        const int step = keys.block_size * S::PAIR;
        for (int d = 0, at = 0; d < keys.head_dim; d += S::PAIR, at += step) {
#pragma GCC unroll 4
            for (int w = 0; w < WIDTH; w++) {
                const auto cells = S::take(k[w] + at);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++) dots[r][w] = S::add(dots[r][w], &queries[r][d], cells);
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < WIDTH; w++) store(&scores[r][j + w * LANES], dots[r][w]);
    }

    // Weights from scores; what was summed so far is scaled to the new maximum.
    void soften(const int* positions, int window, int first, int count, int head_dim) {
        const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        for (int r = 0; r < ROWS; r++) {
            const int last = positions[r] - first, before = last - window;      // seen: before < j <= last
            Floats top = all(highest[r]);
            for (int j = 0; j < count; j += LANES) {
                Floats x = load(&scores[r][j]);
                if (j + LANES - 1 > last || j <= before) {
                    x = (lane + j > last) | (lane + j <= before) ? all(UNSEEN) : x;
                    store(&scores[r][j], x);
                }
                top = larger(top, x);
            }
            const float now = largest(top);
            const Floats scale = exp(all(highest[r] - now));
            Floats total = sums[r] * scale;
            for (int j = 0; j < count; j += LANES) {
                const Floats weight = exp(load(&scores[r][j]) - now);
                S::narrow(weight, &weights[r][j]);
                total += weight;
            }
            sums[r] = total;
            if (now != highest[r])
                for (int d = 0; d < head_dim; d += LANES) store(&out[r][d], load(&out[r][d]) * scale);
            highest[r] = now;
        }
    }

    // WIDTH vectors of the head's dimensions from d on.
    template <int WIDTH> void gather(const Keys<Cell>& keys, int first, int count, int d) {
        Floats sums[ROWS][WIDTH];
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < WIDTH; w++) sums[r][w] = load(&out[r][d + w * LANES]);
        for (int j = 0; j < count;) {
            const int end = std::min(count, j + keys.block_size - (first + j) % keys.block_size);
            const Cell* v = keys.v(first + j) + d * S::PAIR;
            for (; j < end; j += S::PAIR, v += keys.head_dim * S::PAIR) {
#pragma GCC unroll 4
                for (int w = 0; w < WIDTH; w++) {
                    auto cells = S::take(v + w * LANES * S::PAIR);
                    if constexpr (S::PAIR == 2)
                        if (j + 1 == count) cells = S::first(cells);    // the second may never have been written
#pragma GCC unroll 8
                    for (int r = 0; r < ROWS; r++) sums[r][w] = S::add(sums[r][w], &weights[r][j], cells);
                }
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < WIDTH; w++) store(&out[r][d + w * LANES], sums[r][w]);
    }

    // ROWS query rows at ascending positions, each of which sees `window` keys, its own the last.
    void run(const Keys<Cell>& keys, const int* positions, int window) {
        std::memset(out, 0, sizeof out);
        for (int r = 0; r < ROWS; r++) highest[r] = LOWEST, sums[r] = Floats{};
        const int end = positions[ROWS - 1] + 1;
        const int start = std::max(0, positions[0] + 1 - window) / KEYS * KEYS;
        for (int first = start; first < end; first += KEYS) {
            const int count = std::min(KEYS, end - first);
            score(keys, first, count);
            soften(positions, window, first, (count + LANES - 1) / LANES * LANES, keys.head_dim);
            int d = 0;
            if constexpr (ROWS < 8)
                for (; d + 4 * LANES <= keys.head_dim; d += 4 * LANES) gather<4>(keys, first, count, d);
            for (; d + 2 * LANES <= keys.head_dim; d += 2 * LANES) gather<2>(keys, first, count, d);
            if (d < keys.head_dim) gather<1>(keys, first, count, d);
        }
        for (int r = 0; r < ROWS; r++) {
            const float inverse = 1.0f / sum(sums[r]);
            for (int d = 0; d < keys.head_dim; d += LANES) store(&out[r][d], load(&out[r][d]) * inverse);
        }
    }
};

}  // namespace
