"""A model in memory, with our attention function in it, and the facts that the engine needs of it."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from streamproc.engine import support
from streamproc.engine.gpu.parallel import ALONE, Ranks
from streamproc.engine.kv_cache import Layout
from streamproc.engine.support import Shapes
from streamproc.errors import StreamprocError, Usage

WITHOUT_EFFECT = {"transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}


@dataclass(frozen=True, slots=True)
class Ways:
    """How a GPU is to compute. kv_dtype: of codes in the KV pool; None: the model's own numbers."""

    kv_dtype: torch.dtype | None = None
    deterministic: bool = True      # products whose rows do not depend on the batch, or torch's
    ranks: Ranks = ALONE            # the processes that share the model


PLAIN = Ways()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready for steps. Its parameters are never written; they are freed where our own code has packed them."""

    model: Any                      # transformers' PreTrainedModel
    folder: Path
    shapes: Shapes
    vocab_size: int                 # rows of the embedding
    max_positions: int | None       # None: the model sets no limit
    dtype: torch.dtype
    ways: Ways
    device: torch.device
    eos_ids: frozenset[int]
    has_experts: bool               # rows choose their weights, so a matmul's rows depend on the batch
    fingerprint: str                # of weights and configuration

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of the cells of the KV pool."""
        return self.ways.kv_dtype or self.dtype

    @property
    def ranks(self) -> Ranks:
        """The processes that share it."""
        return self.ways.ranks

    @property
    def num_layers(self) -> int:
        return self.shapes.num_layers

    @property
    def num_kv_heads(self) -> int:
        return self.shapes.num_kv_heads

    @property
    def head_dim(self) -> int:
        return self.shapes.head_dim

    @property
    def kv_bytes_per_token(self) -> int:
        """In all processes together."""
        return self.layout(1).bytes_per_token * self.ranks.size

    def layout(self, block_size: int) -> Layout:
        """How this model's KV lies in blocks: that of the heads that are this process's."""
        num_kv_heads = self.shapes.num_kv_heads // self.ranks.size
        return Layout(self.shapes.num_layers, num_kv_heads, self.shapes.head_dim, block_size, self.kv_dtype)

    def require_finite(self, is_finite: bool) -> None:
        """Raises StreamprocError where what was computed is no number."""
        if not is_finite:
            raise StreamprocError(f"engine.model: the model's logits are not finite in {self.dtype}; "
                                  "try engine.dtype = float32, or get the model again")


def describe(model: Any, folder: Path, name: str, ways: Ways = PLAIN) -> LoadedModel:
    """The facts of a model whose attention is ours. Raises Usage where it is not supported.

    Of several processes the first looks at all weights; the others leave those that are not theirs in their files.
    """
    config = model.config.get_text_config()
    if ways.ranks.rank == 0:
        check_finite(model, name)
    shapes = ways.ranks.of_first(lambda: support.probe(model, config, name))
    eos = model.generation_config.eos_token_id if model.generation_config else config.eos_token_id
    eos_ids = frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)
    return LoadedModel(model, folder, shapes, model.get_input_embeddings().num_embeddings, max_positions(config),
                       model.dtype, ways, model.device, eos_ids, any(p.ndim > 2 for p in model.parameters()),
                       fingerprint(model) if ways.ranks.rank == 0 else "")


def max_positions(config: Any) -> int | None:
    """Tokens a sequence may have. With longrope only the short range: beyond it, past keys would have to change."""
    limits = [getattr(config, "max_position_embeddings", None)]
    if "longrope" in support.rope_types(config):
        limits.append(config.rope_parameters.get("original_max_position_embeddings"))
    return min((limit for limit in limits if limit), default=None)


def check_finite(model: Any, name: str) -> None:
    """Raises Usage where a weight is no number."""
    for weight_name, weight in model.named_parameters():
        if not all(torch.isfinite(bound) for bound in torch.aminmax(weight.detach())):   # NaN is both
            raise Usage(f"engine.model: {name} has weights that are not finite, such as in {weight_name}; "
                        "get the model again")


def free_parameters(model: Any) -> None:
    """Leave only their shapes; buffers, such as the rotary frequencies, stay."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(weight.detach().to("meta"), requires_grad=False))


def fingerprint(model: Any) -> str:
    """sha256 over the configuration and the names, dtypes, shapes and bytes of all weights; 16 hex digits."""
    config = {name: value for name, value in model.config.get_text_config().to_dict().items()
              if not name.startswith("_") and name not in WITHOUT_EFFECT}
    weights = sorted(model.state_dict().items())
    with ThreadPoolExecutor() as pool:      # hashing releases the interpreter's lock
        digests = list(pool.map(_digest, [weight for _, weight in weights]))
    facts = [config, [[name, str(weight.dtype), list(weight.shape), digest]
                      for (name, weight), digest in zip(weights, digests, strict=True)]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _digest(weight: torch.Tensor) -> str:
    data = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy()).hexdigest()
