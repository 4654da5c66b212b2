import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamproc.config import Config, check_config
from streamproc.engine import random_model, source, weights
from streamproc.engine.build import Engine, build_engine, share_threads, stateless_answer
from streamproc.errors import StreamprocError, Usage
from streamproc.market.rendering import FILE
from streamproc.records import Trade
from streamproc.schedule.plan import Chunk, Plan

RECORDS = [Trade("BTCUSDT", i, f"{39000 + i}.5", "0.25", "buy") for i in range(30)]


Spoil = Callable[..., Config]


@pytest.fixture
def spoilt(config: Config, engine: Engine, tmp_path: Path) -> Spoil:
    """(file, changes) -> settings of a copy of the model with these changes in that file."""

    def spoilt(file: str, **changes: Any) -> Config:
        path = Path(shutil.copytree(engine.loaded.folder, tmp_path / "model")) / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return replace(config, engine=replace(config.engine, model=str(path.parent)))

    return spoilt


def refusal(config: Config) -> str:
    with pytest.raises(Usage) as caught:
        build_engine(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_defaults_run_and_are_exact(engine: Engine) -> None:
    assert engine.runner.exact
    assert engine.runner.device == "cpu"
    assert engine.runner.eos_ids == engine.renderer.eos_ids
    assert len(engine.fingerprint) == 16


def test_the_same_settings_have_the_same_fingerprint(config: Config, engine: Engine) -> None:
    again = build_engine(config)
    other = build_engine(replace(config, prompts=replace(config.prompts, trade="{sym} {px}\n")))
    assert again.fingerprint == engine.fingerprint
    assert other.fingerprint != engine.fingerprint
    assert other.runner.fingerprint == engine.runner.fingerprint
    again.close()
    other.close()


def test_nothing_is_printed(config: Config, capfd: pytest.CaptureFixture[str]) -> None:
    build_engine(config).close()
    assert capfd.readouterr() == ("", "")


def test_the_pool_has_the_size_that_was_asked_for(config: Config, engine: Engine) -> None:
    assert engine.runner.num_blocks == config.engine.kv_bytes // (engine.loaded.kv_bytes_per_token * 16)
    assert engine.runner.block_size == 16


@pytest.mark.parametrize(("settings", "reason"), [
    ({"block_size": 24}, "engine.block_size: 24 does not divide 512"),
    ({"context_tokens": 8000}, "makes 8576, but random-tiny has 8192 positions; use at most 7616"),
    ({"kv_bytes": 2**20}, "the longest sequence needs 1616; use at least 3309568"),
    ({"kv_bytes": 2**50}, "do not fit, this machine has"),
    ({"context_tokens": 40}, "leaves no room for records after the"),
])
def test_settings_that_do_not_fit_are_refused(settings: dict[str, int], reason: str, config: Config) -> None:
    assert reason in refusal(replace(config, engine=replace(config.engine, **settings)))


def test_a_pool_that_cannot_be_had_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "free_memory_bytes", lambda: None)
    assert "cannot be had on cpu" in refusal(replace(config, engine=replace(config.engine, kv_bytes=2**60)))


def test_a_foreign_tokenizer_is_refused(engine: Engine, config: Config, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(engine.loaded.folder, tmp_path / "model"))
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"~": 98', '"~": 99'))
    assert "its tokenizer has ids up to 99, its embedding only 99 rows" in refusal(
        replace(config, engine=replace(config.engine, model=str(folder))))


@pytest.mark.parametrize(("positions", "reason"), [
    (1300, "makes 1600, but {} has 1300 positions; use at most 720"),
    (600, "makes 1600, but {} has 600 positions; lower worker.max_question_tokens too, or use another model"),
])
def test_a_context_longer_than_the_models_positions_is_refused(positions: int, reason: str, spoilt: Spoil) -> None:
    config = spoilt("config.json", max_position_embeddings=positions)
    assert reason.format(config.engine.model) in refusal(config)


def test_the_context_that_is_proposed_is_taken(spoilt: Spoil) -> None:
    config = spoilt("config.json", max_position_embeddings=1300)
    fits = replace(config, engine=replace(config.engine, context_tokens=720))
    check_config(fits)
    build_engine(fits).close()


@pytest.mark.parametrize(("file", "ids", "reason"), [
    ("config.json", {"bos_token_id": 99}, "its bos_token_id is 99, its embedding has only 99 rows"),
    ("generation_config.json", {"eos_token_id": [2, 50256]}, "its eos_token_id is 50256, its embedding has only 99"),
])
def test_ids_outside_the_embedding_are_refused(file: str, ids: dict[str, Any], reason: str, spoilt: Spoil) -> None:
    assert reason in refusal(spoilt(file, **ids))


def test_an_embedding_with_rows_to_spare_is_padding(config: Config, tmp_path: Path) -> None:
    model = random_model.make_model()
    model.resize_token_embeddings(512, mean_resizing=False)
    model.save_pretrained(tmp_path)
    random_model.make_tokenizer().save_pretrained(tmp_path)
    engine = build_engine(replace(config, engine=replace(config.engine, model=str(tmp_path))))
    assert (engine.loaded.vocab_size, engine.renderer.max_id) == (512, 98)
    assert len(stateless_answer(engine, engine.renderer.prefix_ids, 4, ())) == 4
    engine.close()


@pytest.fixture(scope="module")
def asked(engine: Engine) -> tuple[int, ...]:
    """A context with a question."""
    records = [i for ids in engine.renderer.record_ids(RECORDS) for i in ids]
    return (*engine.renderer.prefix_ids, *records, *engine.renderer.tail_ids("last price?"))


def test_an_answer_in_pieces_equals_the_stateless_one(engine: Engine, asked: tuple[int, ...]) -> None:
    expected = stateless_answer(engine, asked, 20, ())
    table = tuple(range(-(-(len(asked) + 20) // 16)))
    answer: list[int] = []
    start, new = 0, asked
    while len(answer) < 20:
        part, new = new[:100], new[100:]
        found = engine.runner.launch(Plan((), (Chunk(1, start, part, table, int(not new)),))).wait()
        start += len(part)
        if not new:
            new = found[1]
            answer += new
    assert tuple(answer) == expected


def test_the_stateless_answer_ends_at_a_stop_string(engine: Engine, asked: tuple[int, ...]) -> None:
    whole = stateless_answer(engine, asked, 20, ())
    stop = engine.renderer.decode(whole[6:8])
    cut = stateless_answer(engine, asked, 20, (stop,))
    assert cut == whole[:len(cut)]
    assert engine.renderer.decode(cut).endswith(stop)
    assert len(cut) <= 8


def test_nothing_to_continue_is_an_error(engine: Engine) -> None:
    with pytest.raises(StreamprocError, match="context is empty"):
        stateless_answer(engine, (), 4)


def test_a_small_model_has_lanes_of_one_thread_each(engine: Engine, config: Config) -> None:
    assert share_threads(0, engine.loaded) == (1, torch.get_num_threads())
    assert share_threads(3, engine.loaded) == (1, 3)
    told = build_engine(replace(config, engine=replace(config.engine, threads=3)))
    assert told.runner.num_lanes == 3
    assert told.runner.call(torch.get_num_threads) == 1
    assert told.runner.fingerprint == engine.runner.fingerprint
    told.close()


def test_what_is_wrong_in_a_models_own_rendering_is_said_with_its_name(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(random_model.folder(), folder)
    (folder / FILE).write_text('[prompts]\ntrade = "{sym} {foo}"\n')
    own = replace(config, engine=replace(config.engine, model=str(folder)))
    with pytest.raises(Usage, match=rf"{FILE}: prompts.trade: {{foo}}"):
        build_engine(own)
    with pytest.raises(Usage, match=r"^prompts\.trade: \{bar\}"):
        build_engine(replace(own, prompts=replace(own.prompts, trade="{bar}")))


def test_a_models_rendering_is_among_what_is_downloaded() -> None:
    assert FILE in source.TEXTS
