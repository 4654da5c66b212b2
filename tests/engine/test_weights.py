"""Weights that are refused: before they are loaded, where the files tell, or right after."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from spoiling import edit, edit_weights, recast, refusal

from streamproc.config import Engine as Settings
from streamproc.engine import weights
from streamproc.engine.build import Engine
from streamproc.engine.gpu.parallel import Ranks
from streamproc.engine.loaded import LoadedModel, describe
from streamproc.engine.model import load_model
from streamproc.errors import Usage

MIB = 2**20


@pytest.mark.parametrize(("dtype", "name"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8")], ids=str)
def test_weights_of_a_dtype_that_is_not_computed_are_refused(dtype: torch.dtype, name: str, folder: Path) -> None:
    edit_weights(folder, recast(dtype))
    for asked in ("auto", "float32"):
        assert (f"{folder} is not supported: 39 of its weights are stored as {name}, such as lm_head.weight; use one "
                "saved in float32") in refusal(Settings(model=str(folder), dtype=asked))


def test_weights_are_rounded_only_where_it_was_asked_for(folder: Path) -> None:
    edit_weights(folder, recast(torch.float64))
    assert "stored as F64, such as lm_head.weight; set engine.dtype=float32" in refusal(Settings(model=str(folder)))
    assert load_model(Settings(model=str(folder), dtype="float32")).dtype == torch.float32


def test_half_precision_is_computed_in_full(folder: Path) -> None:
    edit_weights(folder, recast(torch.float16))
    edit(folder, dtype="float16")
    assert load_model(Settings(model=str(folder))).dtype == torch.float32


def test_weights_that_have_no_place_are_refused(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(128),
                                                         "model.layers.9.mlp.up_proj.weight": torch.ones(3, 3)}))
    assert ("config.json has no place for 2 of the weights, such as model.layers.0.self_attn.q_proj.bias; get both "
            "from the same model") in refusal(Settings(model=str(folder)))


def test_tables_of_old_files_and_a_tied_head_have_no_place_and_need_none(engine: Engine, folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16), "rope.freqs": torch.ones(16),
        "model.layers.0.attn.masked_bias": torch.ones(1)}))
    assert load_model(Settings(model=str(folder))).fingerprint == engine.loaded.fingerprint
    edit(folder, tie_word_embeddings=True)
    edit_weights(folder, lambda weights: weights.update(
        {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}))
    assert load_model(Settings(model=str(folder))).vocab_size == 99


def test_weights_of_another_shape_are_told_with_both_shapes(folder: Path) -> None:
    edit(folder, intermediate_size=512)
    assert ("12 weights have another shape than config.json says, such as model.layers.0.mlp.down_proj.weight with "
            "[128, 256], not [128, 512]") in refusal(Settings(model=str(folder)))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_weights_that_are_no_numbers_are_said_to_be_so(name: str, number: float, folder: Path) -> None:
    edit_weights(folder, lambda weights: weights[name][-1].fill_(number))
    assert f"{folder} has weights that are not finite, such as in {name}" in refusal(Settings(model=str(folder)))


def test_logits_that_are_too_large_are_not_blamed_on_the_attention(load: Callable[..., LoadedModel]) -> None:
    model = copy.deepcopy(load("llama", torch.float32).model)
    with torch.no_grad():
        model.lm_head.weight.fill_(3e38)
    with pytest.raises(Usage, match=r"^engine.dtype: the logits of it are not finite in float32"):
        describe(model, Path(), "it")


def test_a_model_that_does_not_fit_the_memory_is_refused_before_loading(folder: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in one has 2.4 MiB of weights in float32."""
    settings = Settings(model=str(folder), kv_bytes=100 * MIB)
    monkeypatch.setattr(weights, "free_memory_bytes", lambda: 50 * MIB)
    assert refusal(settings) == (f"engine.kv_bytes: 100 MiB beside 2 x 3 MiB of float32 weights of {folder} do not "
                                 "fit, this machine has 50 MiB free; set engine.kv_bytes=45MiB or less")
    monkeypatch.setattr(weights, "free_memory_bytes", lambda: 2 * MIB)
    assert refusal(settings) == (f"engine.model: {folder} does not fit: it takes 2 x 3 MiB of float32 weights, this "
                                 "machine has 2 MiB free; use a smaller one, or engine.dtype=bfloat16")
    assert "2 x 2 MiB of bfloat16 weights, this" in refusal(replace(settings, dtype="bfloat16"))
    monkeypatch.setattr(weights, "free_memory_bytes", lambda: 106 * MIB)
    load_model(settings)


def test_the_memory_that_is_proposed_is_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "free_memory_bytes", lambda: 50 * MIB)
    load_model(Settings(model=str(folder), kv_bytes=45 * MIB))


def test_weights_in_several_files_are_counted_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(Settings(model="random-tiny")).model
    model.save_pretrained(folder, max_shard_size="1MB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    num_bytes = sum(weight.numel() * 4 for weight in model.parameters())
    assert sum(weight.size * 4 for weight in weights.stored_weights(folder)) == num_bytes
    monkeypatch.setattr(weights, "free_memory_bytes", lambda: 2 * num_bytes + 255 * MIB)
    assert "set engine.kv_bytes=255MiB or less" in refusal(Settings(model=str(folder)))


def test_weights_in_torchs_own_format_are_counted_by_their_files(folder: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setattr(weights, "free_memory_bytes", lambda: MIB)
    assert "it takes 2 x 3 MiB of float32 weights" in refusal(Settings(model=str(folder)))


def test_several_gpus_hold_the_weights_and_the_pool_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, gpu = {"free": 4 * MIB}, {"free": 13 * MIB}
    monkeypatch.setattr(weights, "free_memory_bytes", lambda: here["free"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gpu["free"], 2**40))
    settings = Settings(model=str(folder), kv_bytes=48 * MIB)
    first, last = (Ranks(rank, 4) for rank in (0, 3))
    for ranks in (first, last):
        weights.check_weights(settings, folder, torch.float32, torch.device("cuda", ranks.rank), ranks)
    with pytest.raises(Usage, match=r"4 x 2 MiB of bfloat16 weights, this machine has 4 MiB free"):     # not mapped
        weights.check_weights(settings, folder, torch.bfloat16, torch.device("cuda", 0), first)
    gpu["free"] = 12 * MIB
    with pytest.raises(Usage, match=r"4 x cuda:3 has 48 MiB free; set engine.kv_bytes=45MiB"):
        weights.check_weights(settings, folder, torch.float32, torch.device("cuda", 3), last)


def test_a_gpu_holds_the_weights_once_and_the_pool(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"here": 100 * MIB, "gpu": 50 * MIB}
    monkeypatch.setattr(weights, "free_memory_bytes", lambda: free["here"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free["gpu"], 2**40))
    settings, gpu = Settings(model=str(folder), kv_bytes=48 * MIB), torch.device("cuda", 1)
    with pytest.raises(Usage, match=r"48 MiB beside 3 MiB .* cuda:1 has 50 MiB free; set engine.kv_bytes=47MiB"):
        weights.check_weights(settings, folder, torch.float32, gpu)
    free["gpu"] = 51 * MIB
    weights.check_weights(settings, folder, torch.float32, gpu)
    free["here"] = MIB
    with pytest.raises(Usage, match=r"does not fit: it takes 3 MiB of float32 weights, this machine has 1 MiB free"):
        weights.check_weights(settings, folder, torch.float32, gpu)
