"""Any causal LM that transformers loads, from the settings that name it."""

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from streamproc import config as settings_of
from streamproc.engine import attention, support
from streamproc.engine.gpu.parallel import ALONE, Ranks
from streamproc.engine.kv_cache import CODES
from streamproc.engine.loaded import LoadedModel, Ways, describe
from streamproc.engine.parts import Unknown, join_in_place, take_apart
from streamproc.engine.source import model_folder
from streamproc.engine.weights import check_weights
from streamproc.errors import Usage, one_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FP8_CAPABILITY = (8, 9)      # of the first GPUs that convert it
DEVICES = r"auto|cpu|cuda(:\d+)?"
NO_WEIGHTS = ("inv_freq", "rope.freqs", ".masked_bias", ".attn.bias", ".position_ids")    # old files keep such tables


def load_model(settings: settings_of.Engine, ranks: Ranks = ALONE) -> LoadedModel:
    """The model of these settings. Raises Usage or Unavailable, where it cannot be had or is not supported.

    Where several processes share it, it stays in the CPU's memory, as its files are mapped there, once for all of them;
    `device` is where this one computes.
    """
    device = resolve_device(settings.device) if ranks.size == 1 else device_of(settings.device, ranks)
    if settings.dtype not in ("auto", *DTYPES):
        raise Usage(f"engine.dtype: {settings.dtype!r} is unknown, use one of auto, {', '.join(DTYPES)}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = ranks.of_first(lambda: model_folder(settings.model))       # it may have to be fetched, or written
    config = _load_config(folder, settings.model)
    support.check_config(config, settings.model)
    dtype = DTYPES.get(settings.dtype) or stored_dtype(config, device)
    check_formats(settings, device)
    check_weights(settings, folder, dtype, device, ranks)
    model = _load_weights(folder, config, dtype, settings.model).eval()
    ways = Ways(CODES.get(settings.kv_dtype), settings.deterministic, ranks)
    if ranks.size == 1:
        loaded = describe(model.to(device), folder, settings.model, ways)
        if device.type == "cuda":
            make_room(loaded)
        return loaded
    return replace(describe(model, folder, settings.model, ways), device=device)


def make_room(loaded: LoadedModel) -> None:
    """Before the KV pool takes what is free: what our kernels will want of the weights takes no memory later."""
    with suppress(Unknown, AttributeError, KeyError, TypeError):    # a model that torch computes
        join_in_place(take_apart(loaded))
    torch.cuda.empty_cache()


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


def device_of(name: str, ranks: Ranks) -> torch.device:
    """That of one of several processes: the GPU of its number. Raises Usage where there are too few."""
    device = resolve_device(name)
    if device.type == "cpu":
        return device
    if device.index is not None:
        raise Usage(f"engine.device: {name} is one GPU, {ranks.size} processes take one each; use auto or cuda")
    if torch.cuda.device_count() < ranks.size:
        raise Usage(f"engine.device: torch sees {torch.cuda.device_count()} GPUs here, {ranks.size} processes take one "
                    f"each; start torchrun with --nproc-per-node {torch.cuda.device_count()}, or use cpu")
    return torch.device("cuda", ranks.rank)


def stored_dtype(config: Any, device: torch.device) -> torch.dtype:
    """The dtype of the stored weights; on a CPU float16 is computed in float32, which holds it exactly."""
    stored = getattr(config, "dtype", None)
    if stored == torch.float16 and device.type == "cpu":
        return torch.float32
    return stored if stored in DTYPES.values() else torch.float32


def check_formats(settings: settings_of.Engine, device: torch.device) -> None:
    """Raises Usage where the device does not compute in these number formats."""
    if device.type == "cpu":
        if settings.dtype == "float16":
            raise Usage("engine.dtype: float16 is computed on GPUs only; use auto, float32 or bfloat16")
        if settings.kv_dtype != "auto":
            raise Usage(f"engine.kv_dtype: {settings.kv_dtype} is computed on GPUs only; use auto")
    elif settings.kv_dtype == "fp8" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise Usage(f"engine.kv_dtype: fp8, but {torch.cuda.get_device_name(device)} cannot convert it; use int8")


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
