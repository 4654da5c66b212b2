"""What the engine refuses, and that it says so in one line that names what, where and what would do."""

import copy
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from spoiling import edit, refusal
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    BartConfig,
    BloomConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    FalconMambaConfig,
    Gemma2Config,
    GptOssConfig,
    JambaConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MiniMaxConfig,
    MixtralConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
    T5Config,
    Zamba2Config,
)

from streamproc.config import Engine as Settings
from streamproc.engine import support
from streamproc.engine.build import Engine
from streamproc.engine.choice import choose_forward
from streamproc.engine.forward import run_step
from streamproc.engine.kv_cache import KVCache
from streamproc.engine.loaded import LoadedModel, describe, fingerprint, max_positions
from streamproc.engine.model import load_model, resolve_device, stored_dtype
from streamproc.errors import Unavailable, Usage
from streamproc.market.rendering import market_model
from streamproc.schedule.plan import Chunk, Plan

SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                         "num_key_value_heads": 2, "vocab_size": 100, "head_dim": 8}

MLA: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "kv_lora_rank": 8, "q_lora_rank": None}


def test_a_local_folder_is_loaded(folder: Path, engine: Engine) -> None:
    loaded = load_model(Settings(model=str(folder)))
    assert loaded.fingerprint == engine.loaded.fingerprint
    assert (loaded.num_layers, loaded.num_kv_heads, loaded.head_dim, loaded.vocab_size) == (4, 2, 32, 99)
    assert (loaded.max_positions, loaded.eos_ids, loaded.dtype) == (8192, frozenset([2]), torch.float32)
    assert loaded.kv_bytes_per_token == 4 * 2 * 2 * 32 * 4


def test_dtype_is_as_asked_or_as_stored(folder: Path, engine: Engine) -> None:
    half = load_model(Settings(model=str(folder), dtype="bfloat16"))
    assert half.dtype == torch.bfloat16
    assert half.fingerprint != engine.loaded.fingerprint
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    brain, half = LlamaConfig(dtype="bfloat16"), LlamaConfig(dtype="float16")
    assert [stored_dtype(brain, device) for device in (cpu, gpu)] == [torch.bfloat16, torch.bfloat16]
    assert [stored_dtype(half, device) for device in (cpu, gpu)] == [torch.float32, torch.float16]
    assert "engine.dtype: 'int8' is unknown, use one of auto" in refusal(Settings(dtype="int8"))


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(Settings(model=str(tmp_path / "nothing")))
    assert "is not a folder" in refusal(Settings(model="./nothing"))
    assert "has no config.json" in refusal(Settings(model=str(tmp_path)))
    assert "neither a folder nor a hub name" in refusal(Settings(model="not a name!"))


def test_a_hub_that_cannot_be_reached_is_said_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    began = time.monotonic()
    text = refusal(Settings(model="nobody/no-such-model"), Unavailable)
    assert time.monotonic() - began < 15
    assert "nobody/no-such-model" in text
    assert "use market-tiny" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    assert "torch sees no GPU" in refusal(Settings(device="cuda"))
    assert "cuda:1, but torch sees no GPU" in refusal(Settings(device="cuda:1"))
    assert "'tpu' is unknown, use one of auto, cpu, cuda" in refusal(Settings(device="tpu"))


def test_one_of_several_gpus_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cuda") == resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(Usage, match="cuda:2, but torch sees 2 GPUs here"):
        resolve_device("cuda:2")


def test_damaged_models_are_refused(folder: Path) -> None:
    edit(folder, num_hidden_layers=5)
    assert "lacks 9 weights, such as model.layers.4" in refusal(Settings(model=str(folder)))
    (folder / "model.safetensors").write_bytes(b"no weights")
    assert "cannot be loaded" in refusal(Settings(model=str(folder)))
    edit(folder, model_type="martian")
    assert "config.json cannot be used" in refusal(Settings(model=str(folder)))
    (folder / "config.json").write_text("{")
    assert "config.json cannot be used" in refusal(Settings(model=str(folder)))


@pytest.mark.parametrize(("change", "reason"), [
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "its weights are quantised"),
    ({"kv_lora_rank": 64}, r"\(MLA\)"),
    ({"num_kv_shared_layers": 2}, "its layers share K and V"),
    ({"layer_types": ["full_attention", "linear_attention"] * 2}, "it has layers other than attention"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "its rotary frequencies change"),
])
def test_unsupported_configurations_are_refused_before_loading(change: dict[str, Any], reason: str,
                                                               folder: Path) -> None:
    edit(folder, **change)
    (folder / "model.safetensors").unlink()
    with pytest.raises(Usage, match=reason):
        load_model(Settings(model=str(folder)))


@pytest.mark.parametrize(("config", "reason"), [
    (T5Config(), "it is an encoder-decoder"),
    (BartConfig(), "it is an encoder-decoder"),
    (DeepseekV2Config(**MLA), r"its attention compresses K and V \(MLA\)"),
    (DeepseekV3Config(**MLA), r"its attention compresses K and V \(MLA\)"),
    (MambaConfig(), "it has layers other than attention"),
    (Mamba2Config(), "it has layers other than attention"),
    (FalconMambaConfig(), "it has layers other than attention"),
    (JambaConfig(), "it has layers other than attention"),
    (BambaConfig(), "it has layers other than attention"),
    (Zamba2Config(), "it has layers other than attention"),
    (Qwen3NextConfig(), "it has layers other than attention"),
    (MiniMaxConfig(), "it has layers other than attention"),
    (RecurrentGemmaConfig(), "it has layers other than attention"),
    (RwkvConfig(), "its attention, if it has any, does not go through"),
    (BloomConfig(), "its attention, if it has any, does not go through"),
    (LlamaConfig(**{**SHAPE, "num_key_value_heads": 3}), "its attention heads are no multiple of its heads of K and V"),
], ids=lambda given: getattr(given, "model_type", None))  # fmt: skip
def test_kinds_that_are_not_supported_are_refused_before_any_weight_is_loaded(config: Any, reason: str,
                                                                              tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(Usage, match=rf"^engine.model: {tmp_path} is not supported: {reason}[^\n]*; use a decoder-only"):
        load_model(Settings(model=str(tmp_path)))


@pytest.mark.parametrize(("config", "reason"), [
    (MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=100, state_size=8), "not supported"),
    (BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=100), "does not go through transformers' attention"),
    (GptOssConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1, layer_types=["full_attention"] * 2),
     "its attention has sinks"),
], ids=["state-space", "own attention", "sinks"])
def test_models_whose_attention_is_not_plain_are_refused(config: Any, reason: str) -> None:
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    if type(model)._can_set_attn_implementation():
        model.set_attn_implementation("streamproc")
    with pytest.raises(Usage, match=reason):
        support.probe(model, config, "it")


def test_scores_capped_in_some_layers_only_are_refused() -> None:
    model = AutoModelForCausalLM.from_config(Gemma2Config(**SHAPE), attn_implementation="streamproc").eval()
    assert support.probe(model, model.config, "gemma2").softcap == 50.0
    model.model.layers[0].self_attn.attn_logit_softcapping = 20.0
    with pytest.raises(Usage, match="cap their attention scores"):
        support.probe(model, model.config, "gemma2")


def test_a_model_that_computes_something_else_is_refused(load: Callable[..., LoadedModel]) -> None:
    model = copy.deepcopy(load("llama", torch.float32).model)
    forward = model.forward
    model.forward = lambda **kwargs: forward(**{**kwargs, "position_ids": kwargs["position_ids"] * (
        2 if "streamproc_step" in kwargs else 1)})
    with pytest.raises(Usage, match="other logits than plain causal attention"):
        support.probe(model, model.config, "it")


def test_experts_are_known_as_such() -> None:
    config = MixtralConfig(**SHAPE, num_local_experts=2)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="streamproc")
    assert any(weight.ndim > 2 for weight in model.parameters())


@pytest.mark.parametrize(("head_dim", "hidden"), [(20, 64), (300, 64), (2, 64), (272, 80)])
def test_heads_of_any_size_are_computed_right(head_dim: int, hidden: int) -> None:
    """Where our own code has no such heads, torch computes them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(**{**SHAPE, "hidden_size": hidden, "head_dim": head_dim})
        model = AutoModelForCausalLM.from_config(config, attn_implementation="streamproc").eval()
    loaded = describe(model, Path(), "it")
    forward, _ = choose_forward(loaded, 16, 1)      # exact or not, as this machine's products are
    ids = [i * 37 % 100 for i in range(60)]
    kv, found = KVCache(loaded.layout(16), 4, loaded.device), []
    for start in range(0, 60, 10):
        chunk = Chunk(0, start, tuple(ids[start:start + 10]), (0, 1, 2, 3), 1)
        found.append(run_step(forward, kv, Plan((), (chunk,)))[0])
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1)[9::10]
    assert torch.tensor(found).flatten().equal(expected)


def test_heads_that_cannot_be_rotated_are_refused_with_the_reason(folder: Path) -> None:
    edit(folder, head_dim=33)
    assert "RoPE requires an even rotary dimension, but got `head_dim`=33" in refusal(Settings(model=str(folder)))


def test_longrope_is_limited_to_its_short_range() -> None:
    config = LlamaConfig(max_position_embeddings=131072, rope_parameters={
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 64, "long_factor": [2.0] * 64,
        "original_max_position_embeddings": 4096})
    assert max_positions(config) == 4096
    assert max_positions(LlamaConfig(max_position_embeddings=2048)) == 2048


def test_the_fingerprint_sees_one_changed_weight_or_setting(load: Callable[..., LoadedModel]) -> None:
    model = copy.deepcopy(load("llama", torch.float32).model)
    before = fingerprint(model)
    assert before == load("llama", torch.float32).fingerprint
    model.config.rope_parameters["rope_theta"] = 5e5
    changed = fingerprint(model)
    with torch.no_grad():
        model.lm_head.weight[3, 4] += 1e-3
    assert len({before, changed, fingerprint(model)}) == 3


@pytest.mark.parametrize("change", [{"layer_types": ["x"] * 7}, {"sliding_window": "64"}, {"head_dim": 31}])
def test_a_config_that_transformers_refuses_is_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    copied = Path(shutil.copytree(market_model(), tmp_path / "model"))
    edit(copied, **change)
    assert "\n" not in refusal(Settings(model=str(copied)))
