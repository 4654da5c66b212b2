"""A loaded model as the tables that forward.cpp reads: weights packed, norms folded, rotary tables filled."""

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from streamproc.engine.cpu.tables import Layer, Matrix, Model
from streamproc.engine.loaded import LoadedModel
from streamproc.engine.memory import copied
from streamproc.engine.parts import UNROTATED, LayerParts, Parts, Unknown, joined, rotary_tables, take_apart

LANES, PANEL, MAX_HEAD_DIM, MAX_WINDOW = 16, 32, 256, 2**30     # as in forward.cpp; a longer window is none
POSITIONS = 1024            # of the rotary tables, computed at once


@dataclass
class Program:
    """The tables, and the tensors that they point into."""

    model: Model
    layers: Any                     # ctypes array of Layer
    rotary: "Rotary"
    kept: list[Tensor] = field(default_factory=list)

    def reserve(self, positions: int) -> None:
        """Have rotary tables for so many positions."""
        if positions > self.rotary.size:
            self.rotary.grow(positions, self.layers)
            assert positions <= self.rotary.size, "a position beyond the model's"


class Rotary:
    """Cosines and sines of every position, as the model's own module gives them, by kind of layer."""

    def __init__(self, module: Any, kinds: list[str | None], max_positions: int | None) -> None:
        self.module = module
        self.kinds = kinds
        self.limit = max_positions
        self.size = 0
        self._tables: dict[str | None, list[Tensor]] = {kind: [] for kind in kinds if kind != UNROTATED}
        self._outgrown: list[Tensor] = []       # another thread may still read them
        self._lock = threading.Lock()

    def grow(self, positions: int, layers: Any) -> None:
        """At least to so many positions; `layers` then point to the new tables."""
        with self._lock:
            size, positions = self.size, max(positions, 2 * self.size)     # doubled: all old tables are one at most
            if self.limit is not None:
                positions = min(positions, self.limit)
            while size < positions:
                end = size + POSITIONS if self.limit is None else min(size + POSITIONS, self.limit)
                for kind in self._tables:
                    self._tables[kind].append(self._piece(kind, range(size, end)))
                size = end
            joined = {kind: torch.cat(pieces, 1) for kind, pieces in self._tables.items()}
            for layer, kind in zip(layers, self.kinds, strict=True):
                if kind != UNROTATED:
                    layer.cosines, layer.sines = (table.data_ptr() for table in joined[kind])
            self._outgrown += joined.values()
            self.size = size

    def _piece(self, kind: str | None, places: range) -> Tensor:
        """Cut at the same positions always, so that the bits are the same."""
        return rotary_tables(self.module, kind, places, torch.device("cpu"))

    @property
    def dim(self) -> int:
        """Dimensions of a head that are rotated."""
        return 2 * int(next(iter(self._tables.values()))[0].shape[-1])


def compile_program(loaded: LoadedModel, block_size: int) -> Program:
    """Raises Unknown with the reason where forward.cpp has no such part."""
    with torch.inference_mode():
        return _Compiler(loaded, block_size).program()


class _Compiler:
    def __init__(self, loaded: LoadedModel, block_size: int) -> None:
        self.loaded = loaded
        self.block_size = block_size
        self.kept: list[Tensor] = []

    def program(self) -> Program:
        parts = take_apart(self.loaded)
        self._check(parts)
        layers = (Layer * self.loaded.num_layers)(*map(self._layer, parts.layers))
        rotary = Rotary(parts.rotary, [layer.kind for layer in parts.layers], self.loaded.max_positions)
        rotary.grow(1, layers)
        shapes, weight = self.loaded.shapes, parts.embedding.weight
        model = Model(
            self._keep(copied(weight)), self._keep(parts.final_norm), ctypes.addressof(layers),
            self._matrix([parts.head]), shapes.num_layers, weight.shape[1], shapes.num_heads, shapes.num_kv_heads,
            shapes.head_dim, rotary.dim, layers[0].down.inputs, self.block_size, self.loaded.dtype == torch.bfloat16,
            parts.is_gelu, parts.epsilon, parts.scaling, parts.embedding_scale, shapes.softcap or 0.0,
            parts.final_softcap or 0.0)
        return Program(model, layers, rotary, self.kept)

    def _check(self, parts: Parts) -> None:
        """What forward.cpp takes for granted."""
        loaded, shapes = self.loaded, self.loaded.shapes
        sizes = shapes.head_dim, parts.embedding.weight.shape[1], len(parts.layers[0].gate), self.block_size
        for is_missing, reason in (
            (loaded.device.type != "cpu" or loaded.dtype not in (torch.float32, torch.bfloat16), "not on the CPU"),
            (any(size % LANES for size in sizes), f"a size is no multiple of {LANES}"),
            (shapes.head_dim > MAX_HEAD_DIM, "its heads are too large"),
        ):
            if is_missing:
                raise Unknown(reason)

    def _layer(self, layer: LayerParts) -> Layer:
        gate_up = torch.stack([gate.unflatten(0, (-1, LANES)) for gate in (layer.gate, layer.up)], 1).flatten(0, 2)
        norms = (layer.before_attention, layer.query_norm, layer.key_norm, layer.after_attention, layer.before_mlp,
                 layer.after_mlp)
        return Layer(
            self._matrix(layer.qkv), self._matrix([layer.output]), self._packed(gate_up), self._matrix([layer.down]),
            *(None if norm is None else self._keep(norm) for norm in norms), None, None,
            layer.window if layer.window and layer.window < MAX_WINDOW else 0)

    def _matrix(self, linears: Sequence[nn.Linear]) -> Matrix:
        return self._packed(*joined(linears))

    def _packed(self, weight: Tensor, bias: Tensor | None = None) -> Matrix:
        """[outputs, inputs] -> [outputs / PANEL, inputs, PANEL], filled up with zeros; bfloat16 by two inputs."""
        outputs, inputs = weight.shape
        if outputs % LANES and weight.shape[0] != self.loaded.vocab_size:
            raise Unknown(f"a size is no multiple of {LANES}")
        pad, padding = nn.functional.pad, -outputs % PANEL
        panels = pad(weight, (0, 0, 0, padding)).unflatten(0, (-1, PANEL)).transpose(1, 2)
        if weight.dtype == torch.bfloat16:
            panels = panels.unflatten(1, (-1, 2)).transpose(2, 3)
        padded = None if bias is None else self._keep(pad(bias.float(), (0, padding)))
        return Matrix(self._keep(copied(panels)), padded, outputs, inputs)

    def _keep(self, tensor: Tensor) -> int:
        self.kept.append(tensor.detach().contiguous())
        return int(self.kept[-1].data_ptr())
