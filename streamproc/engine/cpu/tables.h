// What cpu/program.py and cpu/forward.py hand over; the fields lie as their ctypes.Structure says.

#pragma once

#include <cstdint>

extern "C" {

struct Matrix {
    const void* packed;         // [ceil(outputs / PANEL)][inputs][PANEL]
    const float* bias;          // [outputs], or null
    int32_t outputs, inputs;
};

struct Layer {
    Matrix qkv, out, gate_up, down;         // gate and up alternate, LANES rows of each
    const float *input_norm, *q_norm, *k_norm, *attention_norm, *mlp_norm, *after_mlp_norm;     // null: none
    const float *cosines, *sines;           // [positions][rotary_dim / 2]; null: positions are not told
    int32_t window;                         // keys a row sees; 0: all before it
};

struct Model {
    const void* embedding;      // [vocabulary][hidden]
    const float* final_norm;
    const Layer* layers;
    Matrix head;
    int32_t num_layers, hidden, num_heads, num_kv_heads, head_dim, rotary_dim, intermediate, block_size;
    int32_t is_bfloat16, is_gelu;
    float epsilon, scaling, embedding_scale;
    float score_cap, logit_cap;             // of attention and of the head; 0: none
};

struct Chunk {
    const int32_t* block_table;
    int32_t start, num_rows, first_row, samples;     // of how many of its last rows the next token is wanted
};

}  // extern "C"
