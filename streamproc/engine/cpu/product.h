// Products with weights; norms and rotation.

#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "tables.h"
#include "team.h"
#include "vectors.h"

namespace {

enum class Then { STORE, ADD, GATE_SILU, GATE_GELU };

inline Floats activated(Floats gate, bool is_gelu) {
    if (!is_gelu) return gate / (1.0f + exp(-larger(gate, all(-88.0f))));
    const Floats inner = fma(gate * gate * gate, all(0.044715f), gate) * 1.5957691216f;     // 2 sqrt(2 / pi)
    const Floats bounded = inner > 80.0f ? all(80.0f) : larger(inner, all(-80.0f));
    return gate - gate / (exp(bounded) + 1.0f);
}

struct Product {
    const Matrix& weights;
    const float* x;         // [rows][inputs]
    float* y;               // [rows][stride]
    int rows, stride;
    Then then;
};

template <class Weight> struct Multiply : Product {
    using S = Sum<Weight>;
    using Operand = typename S::Operand;

    void run(Team* team) const {
        constexpr int AT_ONCE = 128;        // rows of a task
        const int panels = (weights.outputs + PANEL - 1) / PANEL, cuts = (rows + AT_ONCE - 1) / AT_ONCE;
        const Operand* operands = narrowed(team, x);
        share(team, panels * cuts, [&](int task) {
            const int first = task / panels * AT_ONCE;
            column(operands, task % panels, first, std::min(rows, first + AT_ONCE));
        });
    }

    const float* narrowed(Team*, const float* from) const requires std::is_same_v<Operand, float> { return from; }
    const bfloat16* narrowed(Team* team, const float* from) const requires std::is_same_v<Operand, bfloat16> {
        static thread_local std::vector<bfloat16> memory;
        constexpr int AT_ONCE = 64;         // rows of a task
        const size_t size = size_t(rows) * weights.inputs, part = size_t(AT_ONCE) * weights.inputs;
        if (memory.size() < size) memory.resize(size);
        bfloat16* to = memory.data();
        share(team, (rows + AT_ONCE - 1) / AT_ONCE, [=](int task) {
            for (size_t i = task * part; i < std::min(size, (task + 1) * part); i += LANES) S::narrow(load(from + i), to + i);
        });
        return to;
    }

    void column(const Operand* operands, int panel, int first, int last) const {
        int row = first;
        for (; row + 8 <= last; row += 8) tile<8>(operands, row, panel);
        if (row + 4 <= last) tile<4>(operands, row, panel), row += 4;
        if (row + 2 <= last) tile<2>(operands, row, panel), row += 2;
        if (row < last) tile<1>(operands, row, panel);
    }

    // ROWS rows against one panel; every output has one sum, over k in ascending order.
    template <int ROWS> void tile(const Operand* operands, int row, int panel) const {
        const int n = panel * PANEL, inputs = weights.inputs;
        const Weight* packed = static_cast<const Weight*>(weights.packed) + size_t(panel) * inputs * PANEL;
        const Operand* from = operands + size_t(row) * inputs;
        Floats out[ROWS][2] = {};
        for (int k = 0; k < inputs; k += S::PAIR, packed += PANEL * S::PAIR) {
            const auto left = S::take(packed), right = S::take(packed + LANES * S::PAIR);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                out[r][0] = S::add(out[r][0], from + r * inputs + k, left);
                out[r][1] = S::add(out[r][1], from + r * inputs + k, right);
            }
        }
        for (int r = 0; r < ROWS; r++) finish(out[r], y + size_t(row + r) * stride, n);
    }

    void finish(Floats (&out)[2], float* to, int n) const {
        if (weights.bias) out[0] += load(weights.bias + n), out[1] += load(weights.bias + n + LANES);
        if (then == Then::GATE_SILU || then == Then::GATE_GELU) {
            store(to + n / 2, activated(out[0], then == Then::GATE_GELU) * out[1]);
            return;
        }
        for (int half = 0; half < 2 && n + half * LANES < weights.outputs; half++) {
            float* place = to + n + half * LANES;
            store(place, then == Then::ADD ? load(place) + out[half] : out[half]);
        }
    }
};

template <class Weight> void multiply(Team* team, const Product& product) { Multiply<Weight>{product}.run(team); }

void normalise(float* to, const float* from, const float* weight, int size, float epsilon) {
    Floats squares = {};
    for (int i = 0; i < size; i += LANES) squares = fma(load(from + i), load(from + i), squares);
    const float scale = 1.0f / std::sqrt(sum(squares) / size + epsilon);
    for (int i = 0; i < size; i += LANES) store(to + i, load(from + i) * scale * load(weight + i));
}

void rotate(float* x, const float* cosines, const float* sines, int half) {
    for (int i = 0; i < half; i++) {
        const float first = x[i], second = x[i + half];
        x[i] = first * cosines[i] - second * sines[i];
        x[i + half] = second * cosines[i] + first * sines[i];
    }
}

}  // namespace
