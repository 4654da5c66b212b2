"""The parts that a decoder is made of, for code that computes it without its modules: on the CPU and on the GPU.

Known are the families of FAMILIES, and of them what is made of the parts below. That they are put together as the model
does it is not taken on trust: engine/forward.py compares logits before anything of the kind is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamproc.engine.loaded import LoadedModel

# Other families compute more than their parts tell.
FAMILIES = {"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "smollm3"}
ATTENTION = ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"},
             {"qkv_proj", "o_proj"})
MLP = ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"})
NORMS = ({"input_layernorm", "post_attention_layernorm"},
         {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"})
ACTIVATIONS = {"silu": False, "gelu_pytorch_tanh": True}    # whether it is GELU
BODY = ("layers", "rotary_emb", "embed_tokens", "norm")
UNROTATED = ""              # the kind of a layer that does not know positions


class Unknown(Exception):
    """A model that is not made of the known parts."""


@dataclass(frozen=True, slots=True)
class LayerParts:
    """One layer. Norms are weights in float32, as they are multiplied; None where there is none."""

    qkv: tuple[nn.Linear, ...]          # queries, keys and values: three, or one that gives all of them
    output: nn.Linear
    gates: tuple[nn.Linear, ...]        # gate and up: two, or one that gives both
    gate: Tensor                        # [intermediate, hidden]
    up: Tensor
    down: nn.Linear
    before_attention: Tensor
    query_norm: Tensor | None           # [head_dim]
    key_norm: Tensor | None
    after_attention: Tensor | None      # of what attention gives, before it is added
    before_mlp: Tensor
    after_mlp: Tensor | None
    window: int | None
    kind: str | None                    # what the rotary module wants to know of the layer; UNROTATED: not rotated


@dataclass(frozen=True, slots=True)
class Parts:
    """A decoder."""

    embedding: Any
    embedding_scale: float
    layers: tuple[LayerParts, ...]
    final_norm: Tensor
    head: nn.Linear
    rotary: Any                         # its module: cosines and sines of positions
    epsilon: float                      # of all norms
    scaling: float                      # of all attention scores
    is_gelu: bool
    final_softcap: float | None         # of the logits, Gemma 2's


def take_apart(loaded: LoadedModel) -> Parts:
    """Raises Unknown, with the reason; or AttributeError, KeyError or TypeError where parts have other names."""
    return _Dissection(loaded).parts()


class _Dissection:
    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.config = loaded.model.config.get_text_config()
        self.body: Any = getattr(loaded.model, "model", None)
        self.epsilons: set[float] = set()
        self.scalings: set[float] = set()

    def parts(self) -> Parts:
        is_gelu = ACTIVATIONS.get(getattr(self.config, "hidden_activation", None) or self.config.hidden_act)
        if self.config.model_type not in FAMILIES:
            raise Unknown(f"{self.config.model_type} is another family")
        if self.loaded.has_experts:
            raise Unknown("it has experts")
        if not all(hasattr(self.body, part) for part in BODY):
            raise Unknown("its parts have other names")
        if is_gelu is None:
            raise Unknown("its activation is another one")
        layers = tuple(self._layer(*each) for each in zip(self.body.layers, self.loaded.shapes.windows, self._kinds(),
                                                          strict=True))
        final_norm = self._norm(self.body.norm)
        if len(self.epsilons) > 1 or len(self.scalings) > 1:
            raise Unknown("its norms or its attention differ from layer to layer")
        if len({(layer.down.in_features, len(layer.gate)) for layer in layers}) > 1:
            raise Unknown("its layers differ in size")
        head = self.loaded.model.lm_head
        check_linears([head])
        softcap = getattr(self.config, "final_logit_softcapping", None)
        return Parts(self.body.embed_tokens, embedding_scale(self.body.embed_tokens), layers, final_norm, head,
                     self.body.rotary_emb, self.epsilons.pop(), self.scalings.pop(), is_gelu, softcap)

    def _kinds(self) -> list[str | None]:
        kinds = getattr(self.config, "layer_types", None) or ()
        differ = kinds and isinstance(next(iter(self.config.rope_parameters.values())), dict)
        layers = self.body.layers
        rotated = [bool(getattr(layer.self_attn, "use_rope", True)) for layer in layers]
        if not any(rotated):
            raise Unknown("its layers do not know positions")
        return [kind if is_rotated else UNROTATED
                for kind, is_rotated in zip(kinds if differ else [None] * len(layers), rotated, strict=True)]

    def _layer(self, module: Any, window: int | None, kind: str | None) -> LayerParts:
        attention, mlp, names = module.self_attn, module.mlp, children(module) - {"self_attn", "mlp"}
        if names not in NORMS or children(attention) not in ATTENTION or children(mlp) not in MLP:
            raise Unknown("its layers have other parts")
        is_joined = hasattr(attention, "qkv_proj")
        qkv = (attention.qkv_proj,) if is_joined else (attention.q_proj, attention.k_proj, attention.v_proj)
        gates = (mlp.gate_up_proj,) if hasattr(mlp, "gate_up_proj") else (mlp.gate_proj, mlp.up_proj)
        gate, up = gates[0].weight.chunk(2) if len(gates) == 1 else (gates[0].weight, gates[1].weight)
        if any(linear.bias is not None for linear in mlp.children() if isinstance(linear, nn.Linear)):
            raise Unknown("its MLP has biases")
        check_linears([*qkv, attention.o_proj, *gates, mlp.down_proj])
        has_after = "post_feedforward_layernorm" in names
        before_mlp = module.pre_feedforward_layernorm if has_after else module.post_attention_layernorm
        self.scalings.add(float(attention.scaling))
        return LayerParts(
            qkv, attention.o_proj, gates, gate, up, mlp.down_proj, self._norm(module.input_layernorm),
            self._norm_of(attention, "q_norm"), self._norm_of(attention, "k_norm"),
            self._norm(module.post_attention_layernorm) if has_after else None, self._norm(before_mlp),
            self._norm_of(module, "post_feedforward_layernorm"), window, kind)

    def _norm_of(self, module: Any, name: str) -> Tensor | None:
        return self._norm(getattr(module, name)) if hasattr(module, name) else None

    def _norm(self, module: Any) -> Tensor:
        """Weights of an RMS norm; Gemma's are kept less one."""
        name = type(module).__name__
        if not name.endswith("RMSNorm"):
            raise Unknown(f"it has a {name}")
        self.epsilons.add(float(getattr(module, "variance_epsilon", None) or module.eps))
        return (module.weight.float() + (1.0 if "Gemma" in name else 0.0)).detach().contiguous()


def check_linears(linears: Sequence[Any]) -> None:
    """Raises Unknown where a product is no plain one, or only some of those that are joined have a bias."""
    if any(type(linear) is not nn.Linear for linear in linears):
        raise Unknown("its products are not plain ones")


def joined(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weights and biases of one product instead of several. Raises Unknown where only some have a bias."""
    biases = [linear.bias for linear in linears]
    if len({bias is None for bias in biases}) > 1:
        raise Unknown("some of its products have a bias")
    weight = side_by_side([linear.weight.detach() for linear in linears])
    return weight, None if biases[0] is None else torch.cat(biases)


def side_by_side(weights: Sequence[Tensor]) -> Tensor:
    """One weight of all rows; itself, not a copy, where they lie in memory like that."""
    first, places = weights[0], [0]
    for weight in weights:
        places.append(places[-1] + weight.numel())
    is_one = all(
        weight.is_contiguous() and weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and weight.storage_offset() == first.storage_offset() + place
        for weight, place in zip(weights, places, strict=False))
    if is_one:
        return first.as_strided((sum(map(len, weights)), *first.shape[1:]), first.stride())
    return torch.cat(list(weights))


def join_in_place(parts: Parts) -> None:
    """Have the weights of each product that is computed at once lie in one piece, of which the model's own are views:
    no memory is taken but that of a layer.
    """
    for layer in parts.layers:
        for linears in (layer.qkv, layer.gates):
            if len(linears) > 1:
                whole = side_by_side([linear.weight.detach() for linear in linears])
                rows = [linear.out_features for linear in linears]
                for linear, part in zip(linears, whole.split(rows), strict=True):
                    linear.weight = nn.Parameter(part, requires_grad=False)


def rotary_tables(module: Any, kind: str | None, places: range, device: torch.device) -> Tensor:
    """Cosines and sines [2, positions, rotated dimensions / 2] in float32, as the model's own module gives them."""
    given = (torch.zeros(1, dtype=torch.float32, device=device),
             torch.arange(places.start, places.stop, device=device)[None])
    found = module(*given) if kind is None else module(*given, kind)
    return torch.stack([table[0, :, :table.shape[-1] // 2] for table in found])


def embedding_scale(embedding: Any) -> float:
    """Gemma's, as it multiplies: in the dtype of the weights."""
    scale = getattr(embedding, "embed_scale", None)
    return 1.0 if scale is None else float(scale.to(embedding.weight.dtype))


def children(module: Any) -> set[str]:
    """Names of the parts that compute something: no dropout, no activation."""
    return {name for name, part in module.named_children()
            if isinstance(part, nn.Linear) or type(part).__name__.endswith("Norm") or name in {"self_attn", "mlp"}}
