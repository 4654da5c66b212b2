"""Any causal LM that transformers loads, with our attention function in it, and the facts the engine needs of it."""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from streamproc import config as settings_of
from streamproc.engine import attention, support
from streamproc.engine.kv_cache import Layout
from streamproc.engine.source import model_folder, one_line
from streamproc.engine.support import Shapes
from streamproc.engine.weights import check_weights
from streamproc.errors import StreamprocError, Usage

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEVICES = r"auto|cpu|cuda(:\d+)?"
NO_WEIGHTS = ("inv_freq", "rope.freqs", ".masked_bias", ".attn.bias", ".position_ids")    # old files keep such tables
WITHOUT_EFFECT = {"transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready for steps. Its parameters are never written; they are freed where our own code has packed them."""

    model: Any                      # transformers' PreTrainedModel
    folder: Path
    shapes: Shapes
    vocab_size: int                 # rows of the embedding
    max_positions: int | None       # None: the model sets no limit
    dtype: torch.dtype
    device: torch.device
    eos_ids: frozenset[int]
    has_experts: bool               # rows choose their weights, so a matmul's rows depend on the batch
    fingerprint: str                # of weights and configuration

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
        return self.layout(1).bytes_per_token

    def layout(self, block_size: int) -> Layout:
        """How this model's KV lies in blocks."""
        return Layout(self.shapes.num_layers, self.shapes.num_kv_heads, self.shapes.head_dim, block_size, self.dtype)

    def require_finite(self, is_finite: bool) -> None:
        """Raises StreamprocError where what was computed is no number."""
        if not is_finite:
            raise StreamprocError(f"engine.model: the model's logits are not finite in {self.dtype}; "
                                  "try engine.dtype = float32, or get the model again")


def load_model(settings: settings_of.Engine) -> LoadedModel:
    """The model of these settings. Raises Usage or Unavailable, where it cannot be had or is not supported."""
    device = resolve_device(settings.device)
    if settings.dtype not in ("auto", *DTYPES):
        raise Usage(f"engine.dtype: {settings.dtype!r} is unknown, use one of auto, {', '.join(DTYPES)}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = model_folder(settings.model)
    config = _load_config(folder, settings.model)
    support.check_config(config, settings.model)
    dtype = DTYPES.get(settings.dtype) or stored_dtype(config)
    check_weights(settings, folder, dtype, device)
    model = _load_weights(folder, config, dtype, settings.model).to(device).eval()
    return describe(model, folder, settings.model)


def describe(model: Any, folder: Path, name: str) -> LoadedModel:
    """The facts of a model whose attention is ours. Raises Usage where it is not supported."""
    config = model.config.get_text_config()
    check_finite(model, name)
    shapes = support.probe(model, config, name)
    eos = model.generation_config.eos_token_id if model.generation_config else config.eos_token_id
    eos_ids = frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)
    return LoadedModel(model, folder, shapes, model.get_input_embeddings().num_embeddings, max_positions(config),
                       model.dtype, model.device, eos_ids, any(p.ndim > 2 for p in model.parameters()),
                       fingerprint(model))


def resolve_device(name: str) -> torch.device:
    """The device of this setting. Raises Usage where there is none."""
    if not re.fullmatch(DEVICES, name):
        raise Usage(f"engine.device: {name!r} is unknown, use one of auto, cpu, cuda, cuda:0")
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if num_gpus else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        sees = f"{num_gpus} GPUs" if num_gpus else "no GPU"
        raise Usage(f"engine.device: {name}, but torch sees {sees} here; use cpu or auto, or mend the driver")
    return device


def stored_dtype(config: Any) -> torch.dtype:
    """The dtype of the stored weights; float16 is computed in float32, which holds it exactly."""
    stored = getattr(config, "dtype", None)
    return stored if stored in DTYPES.values() else torch.float32


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


def _load_config(folder: Path, name: str) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except Exception as problem:        # transformers and huggingface_hub raise many kinds: all are this file's
        raise Usage(f"engine.model: {name}: its config.json cannot be used: {one_line(problem)}") from problem


def _load_weights(folder: Path, config: Any, dtype: torch.dtype, name: str) -> Any:
    """Raises Usage where transformers cannot load the model, or would fill weights in at random."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention.NAME, trust_remote_code=False, output_loading_info=True,
            ignore_mismatched_sizes=True)       # told below, in words
    except torch.OutOfMemoryError:
        raise Usage(f"engine.model: {name} does not fit the device's memory; use a smaller one") from None
    except Exception as problem:        # transformers and safetensors raise many kinds: all are this model's
        raise Usage(f"engine.model: {name} cannot be loaded: {one_line(problem)}") from problem
    check_report(report, name)
    return model


def check_report(report: dict[str, Any], name: str) -> None:
    """Raises Usage where the files hold other weights than the configuration wants: fewer, more, or of other shapes."""
    if wrong := sorted(report["mismatched_keys"]):
        (weight, found, wanted), num = wrong[0], len(wrong)
        raise Usage(f"engine.model: {name}: {num} weights have another shape than config.json says, such as {weight} "
                    f"with {list(found)}, not {list(wanted)}; get both from the same model")
    if missing := sorted(report["missing_keys"]):
        raise Usage(f"engine.model: {name} lacks {len(missing)} weights, such as {missing[0]}; get the model again")
    if extra := sorted(key for key in report["unexpected_keys"] if not key.endswith(NO_WEIGHTS)):
        raise Usage(f"engine.model: {name}: config.json has no place for {len(extra)} of the weights, such as "
                    f"{extra[0]}; get both from the same model")
