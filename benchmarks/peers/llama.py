"""llama.cpp through llama-cpp-python's low-level calls: nothing of it is slowed down by Python.

The same weights as GGUF in bfloat16, batches of 512, attention and the type of K and V as `Setting` says. The context
stays in llama.cpp's own cache between questions; a question is taken off its end again by `llama_memory_seq_rm`.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import llama_cpp
import numpy as np
import torch
from asking import Asking

from peers.subject import PORTION, Ids

KV_TYPES = {"f16": gguf.GGMLQuantizationType.F16, "bf16": gguf.GGMLQuantizationType.BF16}
NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}  # fmt: skip
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


class Setting(NamedTuple):
    """How llama.cpp attends."""

    kv_type: str
    flash_attention: bool


def export(shape: dict[str, Any], weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write the weights as GGUF: matrices bfloat16, norms float32, no tokenizer."""
    writer = gguf.GGUFWriter(path, "llama")
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    head_dim = shape["hidden_size"] // heads
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)         # transformers' default, as is the base of the rotary positions
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, weight in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = interleaved(weight, heads if "q_proj" in name else kv_heads)   # noqa: PLW2901
        add_tensor(writer, gguf_name(name), weight.contiguous())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    stem = name.removesuffix(".weight")
    if stem in OUTER:
        return f"{OUTER[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in llama.cpp's order: it rotates neighbours, transformers the halves of a head."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def add_tensor(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor) -> None:
    if weight.ndim == 1:
        writer.add_tensor(name, weight.float().numpy())
    else:
        writer.add_tensor(name, weight.view(torch.uint8).numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16)


class Library:
    """A loaded GGUF file and one context on it."""

    def __init__(self, path: Path, threads: int, setting: Setting, **more: int | bool) -> None:
        """`more`: fields of llama_context_params, such as n_ctx."""
        quiet()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self.model, "llama.cpp refused the model"
        context = llama_cpp.llama_context_default_params()
        given: dict[str, Any] = {
            "n_batch": PORTION, "n_ubatch": PORTION, "n_threads": threads, "n_threads_batch": threads, "no_perf": True,
            "flash_attn_type": int(setting.flash_attention), "type_k": KV_TYPES[setting.kv_type],
            "type_v": KV_TYPES[setting.kv_type], "offload_kqv": False, "op_offload": False, **more}  # fmt: skip
        for name, value in given.items():
            assert hasattr(context, name), name
            setattr(context, name, value)
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        assert self.context, "llama.cpp refused the context"
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def decode(self, ids: np.ndarray, positions: np.ndarray, seqs: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """One batch, all of length n -> the greedy token after each row where `wanted` is 1."""
        ids, positions, seqs = (np.ascontiguousarray(part, np.int32) for part in (ids, positions, seqs))
        wanted, ones = np.ascontiguousarray(wanted, np.int8), np.ones(len(ids), np.int32)
        places = seqs.ctypes.data + np.arange(len(ids), dtype=np.uint64) * np.uint64(seqs.itemsize)
        batch = llama_cpp.llama_batch(len(ids), pointer(ids, ctypes.c_int32), None, pointer(positions, ctypes.c_int32),
                                      pointer(ones, ctypes.c_int32), pointer(places, ctypes.POINTER(ctypes.c_int32)),
                                      pointer(wanted, ctypes.c_int8))  # fmt: skip
        failed = llama_cpp.llama_decode(self.context, batch)
        assert not failed, f"llama_decode gave {failed}"
        llama_cpp.llama_synchronize(self.context)
        return np.array([self.logits(row).argmax() for row in np.flatnonzero(wanted)], np.int32)

    def logits(self, row: int) -> np.ndarray:
        """A view of the logits after that row of the batch."""
        found = llama_cpp.llama_get_logits_ith(self.context, int(row))
        return np.ctypeslib.as_array(ctypes.cast(found, ctypes.POINTER(ctypes.c_float)), (self.vocab_size,))

    def remove(self, seq: int, start: int) -> None:
        """Forget a sequence's cells from this position on."""
        assert llama_cpp.llama_memory_seq_rm(self.memory, seq, start, -1)

    def copy(self, source: int, target: int) -> None:
        """Let `target` have all cells of `source`."""
        llama_cpp.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def close(self) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


class Llama(Asking):
    """One sequence in llama.cpp's cache."""

    def __init__(self, name: str, path: Path, num_tokens: int, threads: int, setting: Setting) -> None:
        self.name = name
        self.size = 0
        self.library = Library(path, threads, setting, n_ctx=num_tokens, n_seq_max=1)

    def grow(self, ids: Sequence[int]) -> None:
        self._step(self.size, ids, 0)
        self.size += len(ids)

    def cut(self, num_tokens: int) -> None:
        self.library.remove(0, num_tokens)
        self.size = num_tokens

    def close(self) -> None:
        self.library.close()

    def _crop(self) -> None:
        self.library.remove(0, self.size)

    def _step(self, start: int, ids: Sequence[int], num_samples: int) -> Ids:
        count = len(ids)
        wanted = np.arange(count) >= count - num_samples
        found = self.library.decode(np.array(ids), start + np.arange(count), np.zeros(count), wanted)
        return tuple(int(token) for token in found)


def pointer(array: np.ndarray, kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


@llama_cpp.llama_log_callback
def _say_nothing(level: int, text: bytes, data: Any) -> None:
    """Warnings of a model without words."""


def quiet() -> None:
    llama_cpp.llama_log_set(_say_nothing, ctypes.c_void_p(0))


def version() -> str:
    """Of llama-cpp-python, and what llama.cpp was built with in its own words."""
    return f"{llama_cpp.__version__}: {llama_cpp.llama_print_system_info().decode().strip()}"
