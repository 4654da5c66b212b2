"""A loaded model as the tables that forward.cpp reads: weights packed, norms folded, rotary tables filled.

Known are the families of FAMILIES, and of them what is made of the parts below. That the program computes what the
model does is not taken on trust: engine/forward.py compares their logits before it is used.
"""

import ctypes
import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from streamproc.engine.cpu.tables import Layer, Matrix, Model
from streamproc.engine.memory import copied
from streamproc.engine.model import LoadedModel

LANES, PANEL, MAX_HEAD_DIM, MAX_WINDOW = 16, 32, 256, 2**30     # as in forward.cpp; a longer window is none
# Other families compute more than their parts tell.
FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "smollm3"}
ATTENTION = ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"},
             {"qkv_proj", "o_proj"})
MLP = ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"})
NORMS = ({"input_layernorm", "post_attention_layernorm"},
         {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"})
ACTIVATIONS = {"silu": False, "gelu_pytorch_tanh": True}    # whether it is GELU
POSITIONS = 1024            # of the rotary tables, computed at once
UNROTATED = ""              # the kind of a layer that does not know positions


class Unknown(Exception):
    """A model that is not made of the known parts."""


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
        """[2, positions, rotated dimensions / 2]. Cut at the same positions always, so that the bits are the same."""
        given = torch.zeros(1, dtype=torch.float32), torch.arange(places.start, places.stop)[None]
        found = self.module(*given) if kind is None else self.module(*given, kind)
        return torch.stack([table[0, :, :table.shape[-1] // 2] for table in found])

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
        self.config = loaded.model.config.get_text_config()
        self.body: Any = getattr(loaded.model, "model", None)
        self.kept: list[Tensor] = []
        self.epsilons: set[float] = set()
        self.scalings: set[float] = set()

    def program(self) -> Program:
        self._check()
        layers = (Layer * self.loaded.num_layers)(*(
            self._layer(module, window)
            for module, window in zip(self.body.layers, self.loaded.shapes.windows, strict=True)))
        rotary = Rotary(self.body.rotary_emb, self._rotary_kinds(), self.loaded.max_positions)
        rotary.grow(1, layers)
        shapes, embedding = self.loaded.shapes, self.body.embed_tokens
        final_norm = self._norm(self.body.norm)
        if len(self.epsilons) > 1 or len(self.scalings) > 1:
            raise Unknown("its norms or its attention differ from layer to layer")
        if len({(layer.down.inputs, layer.gate_up.outputs) for layer in layers}) > 1:
            raise Unknown("its layers differ in size")
        intermediate = layers[0].down.inputs
        head = self._matrix([self.loaded.model.lm_head])
        model = Model(
            self._keep(copied(embedding.weight)), final_norm, ctypes.addressof(layers), head,
            shapes.num_layers, embedding.weight.shape[1], shapes.num_heads, shapes.num_kv_heads, shapes.head_dim,
            rotary.dim, intermediate, self.block_size, self.loaded.dtype == torch.bfloat16, self._is_gelu(),
            self.epsilons.pop(), self.scalings.pop(), embedding_scale(embedding), shapes.softcap or 0.0,
            getattr(self.config, "final_logit_softcapping", None) or 0.0)
        return Program(model, layers, rotary, self.kept)

    def _check(self) -> None:
        """What forward.cpp takes for granted."""
        loaded, shapes = self.loaded, self.loaded.shapes
        if self.config.model_type not in FAMILIES:
            raise Unknown(f"{self.config.model_type} is another family")
        parts = ("layers", "rotary_emb", "embed_tokens", "norm")
        sizes = (shapes.head_dim, self.config.hidden_size, self.config.intermediate_size, self.block_size)
        for is_missing, reason in (
            (loaded.device.type != "cpu" or loaded.dtype not in (torch.float32, torch.bfloat16), "not on the CPU"),
            (loaded.has_experts, "it has experts"),
            (not all(hasattr(self.body, part) for part in parts), "its parts have other names"),
            (any(not isinstance(size, int) or size % LANES for size in sizes), f"a size is no multiple of {LANES}"),
            (shapes.head_dim > MAX_HEAD_DIM, "its heads are too large"),
            (self._is_gelu() is None, "its activation is another one"),
        ):
            if is_missing:
                raise Unknown(reason)

    def _is_gelu(self) -> bool | None:
        return ACTIVATIONS.get(getattr(self.config, "hidden_activation", None) or self.config.hidden_act)

    def _rotary_kinds(self) -> list[str | None]:
        """What the rotary module wants to know of each layer."""
        kinds = getattr(self.config, "layer_types", None) or ()
        differ = kinds and isinstance(next(iter(self.config.rope_parameters.values())), dict)
        layers = self.body.layers
        rotated = [bool(getattr(layer.self_attn, "use_rope", True)) for layer in layers]
        if not any(rotated):
            raise Unknown("its layers do not know positions")
        return [kind if is_rotated else UNROTATED
                for kind, is_rotated in zip(kinds if differ else [None] * len(layers), rotated, strict=True)]

    def _layer(self, module: Any, window: int | None) -> Layer:
        attention, mlp, names = module.self_attn, module.mlp, children(module) - {"self_attn", "mlp"}
        if names not in NORMS or children(attention) not in ATTENTION or children(mlp) not in MLP:
            raise Unknown("its layers have other parts")
        is_joined = hasattr(attention, "qkv_proj")
        qkv = [attention.qkv_proj] if is_joined else [attention.q_proj, attention.k_proj, attention.v_proj]
        gates = mlp.gate_up_proj.weight.chunk(2) if hasattr(mlp, "gate_up_proj") else (mlp.gate_proj.weight,
                                                                                       mlp.up_proj.weight)
        if any(linear.bias is not None for linear in mlp.children() if isinstance(linear, nn.Linear)):
            raise Unknown("its MLP has biases")
        gate_up = torch.stack([gate.unflatten(0, (-1, LANES)) for gate in gates], 1).flatten(0, 2)
        has_after = "post_feedforward_layernorm" in names
        between = module.pre_feedforward_layernorm if has_after else module.post_attention_layernorm
        self.scalings.add(float(attention.scaling))
        return Layer(
            self._matrix(qkv), self._matrix([attention.o_proj]), self._packed(gate_up), self._matrix([mlp.down_proj]),
            self._norm(module.input_layernorm), *(self._norm(getattr(attention, name, None))
                                                  for name in ("q_norm", "k_norm")),
            self._norm(module.post_attention_layernorm if has_after else None), self._norm(between),
            self._norm(module.post_feedforward_layernorm if has_after else None), None, None,
            window if window and window < MAX_WINDOW else 0)

    def _matrix(self, linears: list[Any]) -> Matrix:
        if any(type(linear) is not nn.Linear for linear in linears):
            raise Unknown("its products are not plain ones")
        biases = [linear.bias for linear in linears]
        if len({bias is None for bias in biases}) > 1:
            raise Unknown("some of its products have a bias")
        bias = None if biases[0] is None else torch.cat(biases)
        return self._packed(torch.cat([linear.weight for linear in linears]), bias)

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

    def _norm(self, module: Any) -> int | None:
        """Weights of an RMS norm, in float32; Gemma's are kept less one."""
        if module is None:
            return None
        name = type(module).__name__
        if not name.endswith("RMSNorm"):
            raise Unknown(f"it has a {name}")
        self.epsilons.add(float(getattr(module, "variance_epsilon", None) or module.eps))
        return self._keep(module.weight.float() + (1.0 if "Gemma" in name else 0.0))

    def _keep(self, tensor: Tensor) -> int:
        self.kept.append(tensor.detach().contiguous())
        return int(self.kept[-1].data_ptr())


def embedding_scale(embedding: Any) -> float:
    """Gemma's, as it multiplies: in the dtype of the weights."""
    scale = getattr(embedding, "embed_scale", None)
    return 1.0 if scale is None else float(scale.to(embedding.weight.dtype))


def children(module: Any) -> set[str]:
    """Names of the parts that compute something: no dropout, no activation."""
    return {name for name, part in module.named_children()
            if isinstance(part, nn.Linear) or type(part).__name__.endswith("Norm") or name in {"self_attn", "mlp"}}
