"""What forward.cpp is handed: its structs, field by field."""

import ctypes
from ctypes import c_float, c_int32, c_void_p

import numpy as np

CHUNK = np.dtype([("block_table", np.uintp), *((name, np.int32) for name in ("start", "rows", "first", "samples"))])


class Matrix(ctypes.Structure):
    _fields_ = [("packed", c_void_p), ("bias", c_void_p), ("outputs", c_int32), ("inputs", c_int32)]


class Layer(ctypes.Structure):
    _fields_ = [*((name, Matrix) for name in ("qkv", "out", "gate_up", "down")),
                *((name, c_void_p) for name in ("input_norm", "q_norm", "k_norm", "attention_norm", "mlp_norm",
                                                "after_mlp_norm", "cosines", "sines")), ("window", c_int32)]


class Model(ctypes.Structure):
    _fields_ = [*((name, c_void_p) for name in ("embedding", "final_norm", "layers")), ("head", Matrix),
                *((name, c_int32) for name in ("num_layers", "hidden", "num_heads", "num_kv_heads", "head_dim",
                                               "rotary_dim", "intermediate", "block_size", "is_bfloat16", "is_gelu")),
                *((name, c_float) for name in ("epsilon", "scaling", "embedding_scale",
                                               "score_cap", "logit_cap"))]


class Step(ctypes.Structure):
    _fields_ = [*((name, c_void_p) for name in ("blocks", "token_ids", "chunks", "sampled_ids", "sampled_logits",
                                               "sampled_rows", "masks")),
                *((name, c_int32) for name in ("num_rows", "num_chunks"))]
