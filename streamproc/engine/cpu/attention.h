// Attention of query rows over the keys of one KV head, a tile of keys at a time.
//
// What a row has summed up lies in memory between the tiles, so that many rows can take one tile of keys after the
// other while it is in the cache. A row takes its tiles in ascending order, whoever else takes them with it.
//
// Blocks are short runs of memory far apart, for which a processor does not read ahead by itself. So the first rows that
// take a tile fetch the next one, line by line as they read their own, into the second cache: it waits for many more
// lines at once than the first.

#pragma once

#include <algorithm>
#include <cstring>
#include <utility>

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

// Rows of queries of one KV head: row by row of the step, its query heads beside each other.
template <class Cell> struct Queries {
    const typename Sum<Cell>::Operand* scaled;      // [query rows][head_dim]
    float* out;                                     // [query rows][head_dim]: of what they have seen
    Floats* sums;                                   // of the weights of what they have seen
    float* highest;                                 // score of what they have seen
    const int* positions;
    int head_dim, window;                           // a row sees `window` keys, its own the last
    float cap;                                      // of scores; 0: none

    Queries from(int i) const {
        return {scaled + size_t(i) * head_dim, out + size_t(i) * head_dim, sums + i, highest + i, positions + i, head_dim, window,
                cap};
    }
    void begin(int count) const {
        std::fill(out, out + size_t(count) * head_dim, 0.0f);
        std::fill(sums, sums + count, Floats{});
        std::fill(highest, highest + count, LOWEST);
    }
    int start(int count) const {        // of the first tile that one of so many rows sees
        return std::max(0, *std::min_element(positions, positions + count) + 1 - window) / KEYS * KEYS;
    }
    int end(int count) const { return *std::max_element(positions, positions + count) + 1; }
};

inline void fetch(const void* line) { __builtin_prefetch(line, 0, 2); }

template <int ROWS, bool FETCHES, class Cell> struct Tile {
    using S = Sum<Cell>;
    using Operand = typename S::Operand;

    const Queries<Cell> rows;
    const Keys<Cell>& keys;

    const int next;     // first key of the tile to fetch, a whole one

    Operand queries[ROWS][MAX_HEAD_DIM];
    float scores[ROWS][KEYS];
    Operand weights[ROWS][KEYS];

    // Nothing is filled in.
    Tile(const Queries<Cell>& rows, const Keys<Cell>& keys, int next) : rows(rows), keys(keys), next(next) {}

    // The keys from `first` on, a multiple of KEYS.
    void run(int first) {
        const int end = rows.end(ROWS);
        if (first >= end || first < rows.start(ROWS)) return;
        const int count = std::min(KEYS, end - first), head_dim = keys.head_dim;
        for (int r = 0; r < ROWS; r++)
            std::memcpy(queries[r], rows.scaled + r * head_dim, head_dim * sizeof(Operand));
        score(first, count);
        for (int r = 0; r < ROWS; r++) soften(r, first, (count + LANES - 1) / LANES * LANES);
        int d = 0;
        if constexpr (ROWS < 8)
            for (; d + 4 * LANES <= head_dim; d += 4 * LANES) gather<4>(first, count, d);
        for (; d + 2 * LANES <= head_dim; d += 2 * LANES) gather<2>(first, count, d);
        if (d < head_dim) gather<1>(first, count, d);
    }

    // Scores of `count` keys from `first` on, and of what else their last vector holds.
    void score(int first, int count) {
        constexpr int WIDTH = ROWS == 8 ? 2 : 4;    // vectors of keys at once: sums enough to hide each other's latency
        int j = 0;
        for (; j + (WIDTH - 1) * LANES < count; j += WIDTH * LANES) score_part<WIDTH>(first, j);
        for (; j < count; j += LANES) score_part<1>(first, j);
    }

    template <int WIDTH> void score_part(int first, int j) {
        const Cell *k[WIDTH], *ahead[WIDTH];
        for (int w = 0; w < WIDTH; w++) {
            k[w] = keys.k(first + j + w * LANES);
            if constexpr (FETCHES) ahead[w] = keys.k(next + j + w * LANES);
        }
        Floats dots[ROWS][WIDTH] = {};
        const int step = keys.block_size * S::PAIR;
        for (int d = 0, at = 0; d < keys.head_dim; d += S::PAIR, at += step) {
#pragma GCC unroll 4
            for (int w = 0; w < WIDTH; w++) {
                if constexpr (FETCHES) fetch(ahead[w] + at);
                const auto cells = S::take(k[w] + at);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++) dots[r][w] = S::add(dots[r][w], &queries[r][d], cells);
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < WIDTH; w++) store(&scores[r][j + w * LANES], dots[r][w]);
    }

    // Weights from the scores of a row; what was summed so far is scaled to the new maximum.
    void soften(int r, int first, int count) {
        const int last = rows.positions[r] - first, before = last - rows.window;      // seen: before < j <= last
        if (rows.cap > 0.0f)
            for (int j = 0; j < count; j += LANES) store(&scores[r][j], capped(load(&scores[r][j]), rows.cap));
        if (last < count - 1 || before >= 0) hide(scores[r], last, before, count);
        const float was = rows.highest[r];
        Floats top = all(was);
        for (int j = 0; j < count; j += LANES) top = larger(top, load(&scores[r][j]));
        const float now = largest(top);
        Floats total = rows.sums[r];
        if (now != was) {
            const Floats scale = exp(all(was - now));
            total *= scale;
            float* out = rows.out + r * keys.head_dim;
            for (int d = 0; d < keys.head_dim; d += LANES) store(out + d, load(out + d) * scale);
            rows.highest[r] = now;
        }
        for (int j = 0; j < count; j += LANES) {
            const Floats weight = S::weight(load(&scores[r][j]), now);
            S::narrow(weight, &weights[r][j]);
            total += weight;
        }
        rows.sums[r] = total;
    }

    static void hide(float* scores, int last, int before, int count) {
        const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        for (int j = 0; j < count; j += LANES)
            store(scores + j, (lane + j > last) | (lane + j <= before) ? all(UNSEEN) : load(scores + j));
    }

    // WIDTH vectors of the head's dimensions from d on.
    template <int WIDTH> void gather(int first, int count, int d) {
        float* const out = rows.out + d;
        const int head_dim = keys.head_dim;
        Floats sums[ROWS][WIDTH];
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < WIDTH; w++) sums[r][w] = load(out + r * head_dim + w * LANES);
        for (int j = 0; j < count;) {
            const int end = std::min(count, j + keys.block_size - (first + j) % keys.block_size);
            const Cell* v = keys.v(first + j) + d * S::PAIR;
            const Cell* ahead = FETCHES ? keys.v(next + j) + d * S::PAIR : nullptr;
            for (; j < end; j += S::PAIR, v += head_dim * S::PAIR, ahead += head_dim * S::PAIR) {
#pragma GCC unroll 4
                for (int w = 0; w < WIDTH; w++) {
                    if constexpr (FETCHES) fetch(ahead + w * LANES * S::PAIR);
                    auto cells = S::take(v + w * LANES * S::PAIR);
                    if constexpr (S::PAIR == 2)
                        if (j + 1 == count) cells = S::first(cells);    // the second may never have been written
#pragma GCC unroll 8
                    for (int r = 0; r < ROWS; r++) sums[r][w] = S::add(sums[r][w], &weights[r][j], cells);
                }
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < WIDTH; w++) store(out + r * head_dim + w * LANES, sums[r][w]);
    }
};

constexpr int NOTHING = 0;      // to fetch: the first tile is no other's next

template <int ROWS, class Cell> void attend_tile(const Queries<Cell>& rows, const Keys<Cell>& keys, int first, int next) {
    if (next != NOTHING) Tile<ROWS, true, Cell>(rows, keys, next).run(first);
    else Tile<ROWS, false, Cell>(rows, keys, next).run(first);
}

// `count` query rows over the keys from `start`, a multiple of KEYS, to `end`.
template <class Cell> void attend_keys(const Queries<Cell>& queries, int count, const Keys<Cell>& keys, int start, int end) {
    end = std::min(end, queries.end(count));
    for (int first = std::max(start, queries.start(count)); first < end; first += KEYS) {
        int next = first + 2 * KEYS <= end ? first + KEYS : NOTHING;
        int i = 0;
        for (; i + 8 <= count; i += 8) attend_tile<8>(queries.from(i), keys, first, std::exchange(next, NOTHING));
        if (i + 4 <= count) attend_tile<4>(queries.from(i), keys, first, std::exchange(next, NOTHING)), i += 4;
        switch (count - i) {
            case 3: attend_tile<3>(queries.from(i), keys, first, next); break;
            case 2: attend_tile<2>(queries.from(i), keys, first, next); break;
            case 1: attend_tile<1>(queries.from(i), keys, first, next); break;
        }
    }
}

}  // namespace
