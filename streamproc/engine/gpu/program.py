"""A loaded model as the tensors that the kernels take: joined weights, norms in float32, tables of the rotary angles.

On several GPUs each has a part of every layer: some heads of K and V with their queries, some columns of the MLP, some
rows of the output head. What attention and MLP give is then a sum over the GPUs (parallel.py).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamproc.engine.gpu.parallel import ALONE, Ranks
from streamproc.engine.loaded import LoadedModel
from streamproc.engine.parts import UNROTATED, LayerParts, Unknown, joined, rotary_tables, side_by_side, take_apart

POSITIONS = 1024        # of the rotary tables, computed at once: the same pieces always, so that the bits are the same
MAX_HEAD_DIM = 256


class Rotary:
    """Cosines and sines in float32, by kind of layer: [2, positions, rotated dimensions / 2]."""

    def __init__(self, module: Any, kinds: Collection[str | None], loaded: LoadedModel) -> None:
        self._module, self._kinds, self._loaded = module, kinds, loaded
        self._tables: dict[str | None, Tensor] = {}
        self.size = 0

    def reserve(self, positions: int) -> bool:
        """Have so many positions -> whether the tables are other ones now."""
        if positions <= self.size:
            return False
        limit = self._loaded.max_positions
        size = POSITIONS
        while size < positions:
            size *= 2
        size = size if limit is None else min(size, limit)
        assert positions <= size, "a position beyond the model's"
        places = [range(i, min(i + POSITIONS, size)) for i in range(0, size, POSITIONS)]
        here = next(self._module.buffers()).device      # several processes leave the model on the CPU
        self._tables = {kind: torch.cat([rotary_tables(self._module, kind, piece, here) for piece in places], 1)
                        .to(self._loaded.device) for kind in self._kinds}
        self.size = size
        return True

    def of(self, kind: str | None) -> tuple[Tensor, Tensor] | tuple[None, None]:
        if kind == UNROTATED:
            return None, None
        cosines, sines = self._tables[kind]
        return cosines, sines


@dataclass(frozen=True, slots=True)
class Affine:
    """weight [outputs, inputs], bias [outputs]"""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True)
class GpuLayer:
    """What one GPU has of a layer."""

    qkv: Affine            # queries of all its heads, then keys, then values
    output: Affine         # a sum over the GPUs
    gate_up: Affine        # all gates, then all ups
    down: Affine           # a sum over the GPUs
    before_attention: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None
    after_attention: Tensor | None
    before_mlp: Tensor
    after_mlp: Tensor | None
    window: int | None
    kind: str | None        # of its rotary tables; UNROTATED: none


@dataclass(frozen=True, slots=True)
class GpuProgram:
    """A decoder, or a GPU's part of it."""

    embedding: Tensor       # [vocabulary, hidden]
    embedding_scale: float
    layers: tuple[GpuLayer, ...]
    final_norm: Tensor
    head: Affine           # its part of the vocabulary
    rotary: Rotary
    num_heads: int          # of this GPU
    num_kv_heads: int
    head_dim: int
    epsilon: float
    scaling: float
    is_gelu: bool
    softcap: float | None
    final_softcap: float | None


def compile_gpu_program(loaded: LoadedModel, ranks: Ranks = ALONE) -> GpuProgram:
    """What this process has of the model goes to its device. Raises Unknown where the model is made of other parts."""
    parts = take_apart(loaded)
    shapes, device = loaded.shapes, loaded.device
    if shapes.head_dim > MAX_HEAD_DIM:
        raise Unknown("its heads are too large")
    ranks.check(shapes.num_kv_heads, len(parts.layers[0].gate))
    with torch.inference_mode():
        layers = tuple(_layer(layer, loaded, ranks) for layer in parts.layers)
        weight, bias = (None if each is None else ranks.part(each) for each in joined([parts.head]))
        head = _product(weight, bias, device)
        return GpuProgram(
            parts.embedding.weight.detach().to(device), parts.embedding_scale, layers, parts.final_norm.to(device),
            head, Rotary(parts.rotary, {layer.kind for layer in parts.layers} - {UNROTATED}, loaded),
            shapes.num_heads // ranks.size, shapes.num_kv_heads // ranks.size, shapes.head_dim, parts.epsilon,
            parts.scaling, parts.is_gelu, shapes.softcap, parts.final_softcap)


def _layer(layer: LayerParts, loaded: LoadedModel, ranks: Ranks) -> GpuLayer:
    if layer.output.bias is not None and ranks.size > 1:
        raise Unknown("its attention's output has a bias")
    device = loaded.device
    return GpuLayer(
        _qkv(layer.qkv, loaded, ranks), _product(ranks.part(layer.output.weight, 1), layer.output.bias, device),
        _product(side_by_side([ranks.part(layer.gate), ranks.part(layer.up)]), None, device),
        _product(ranks.part(layer.down.weight, 1), None, device),
        layer.before_attention.to(device), _moved(layer.query_norm, device), _moved(layer.key_norm, device),
        _moved(layer.after_attention, device), layer.before_mlp.to(device), _moved(layer.after_mlp, device),
        layer.window, layer.kind)


def _qkv(linears: Sequence[nn.Linear], loaded: LoadedModel, ranks: Ranks) -> Affine:
    """Of the heads that are this GPU's."""
    dim, kv_rows = loaded.shapes.head_dim, loaded.shapes.num_kv_heads * loaded.shapes.head_dim
    rows = [loaded.shapes.num_heads * dim, kv_rows, kv_rows]
    weight, bias = (None if whole is None else side_by_side([ranks.part(each) for each in whole.split(rows)])
                    for whole in joined(linears))
    return _product(weight, bias, loaded.device)


def _product(weight: Tensor | None, bias: Tensor | None, device: torch.device) -> Affine:
    assert weight is not None, "a product without weights"
    return Affine(weight.to(device), _moved(bias, device))


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
