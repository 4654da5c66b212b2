"""The command, end to end, with the built-in model whose words are noise: what it says of itself must be true."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from streamproc.cli.main import cli
from streamproc.config import Config
from streamproc.engine.build import Engine, stateless_answer
from streamproc.evaluate import Settings, evaluate_engine
from streamproc.evaluate.feeds import Synthetic
from streamproc.market.questions import KINDS
from streamproc.state.ending import finished_text

NOISE = ("eval", "--model", "random-tiny", "-X", "engine.context_tokens=512", "-X", "engine.kv_bytes=8MiB")


@pytest.fixture
def run(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`run("--asks", "8")` -> the result; the model lies in the folder of this test run."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> Result:
        return CliRunner().invoke(cli, [*NOISE, *args])

    return run


def test_answers_are_what_the_model_says_after_exactly_these_records(config: Config, engine: Engine) -> None:
    """Each answer of an evaluation is the stateless one over the records that its outcome names."""
    report = evaluate_engine(engine, config, Settings(asks=32, seed=3))
    assert any(outcome.has_hopped for outcome in report.outcomes)
    for outcome in report.outcomes[::4]:
        source = Synthetic(3).stretch(outcome.partition, True, 0)
        records = [next(source) for _ in range(outcome.offset + 1)][outcome.from_offset :]
        renderer = engine.renderer
        context = [token_id for ids in renderer.record_ids(records) for token_id in ids]
        ids = [*renderer.prefix_ids, *context, *renderer.tail_ids(outcome.question)]
        assert outcome.context_tokens == len(renderer.prefix_ids) + len(context)
        found = stateless_answer(engine, ids, 32, None, KINDS[outcome.kind].answer)
        assert outcome.text == finished_text(renderer, found, renderer.stop, 32)


def test_the_last_line_of_json_tells_all_and_the_outcomes_are_in_the_file(run: Any, tmp_path: Path) -> None:
    result = run("--asks", "66", "--json", "--out", "answers.jsonl")
    assert result.exit_code == 0, result.output
    doc = json.loads(result.stdout.splitlines()[-1])
    assert (doc["_command"], doc["model"], doc["feed"], doc["asked"]) == ("eval", "random-tiny", "synthetic", 66)
    assert set(doc["by_question"]) == set(KINDS)
    assert set(doc["by_context"]) == {"256", "512"}
    outcomes = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(outcomes) == 66
    assert doc["right"] == sum(outcome["is_right"] for outcome in outcomes)
    assert doc["unparsed"] == sum(not outcome["is_read"] for outcome in outcomes) > 0
    assert doc["overall"] == round(doc["right"] / 66, 4) < 0.5


def test_a_share_below_the_one_wanted_is_exit_code_3_after_the_table(run: Any) -> None:
    result = run("--asks", "8", "--feed", "sample", "--min", "0.99")
    assert result.exit_code == 3
    assert result.stdout.startswith("% right")
    assert result.stderr.splitlines()[-1].startswith("below --min: ")
    assert run("--asks", "8", "--feed", "sample", "--min", "0").exit_code == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--feed", "nowhere.csv"), "no such file"),
        (("--out", "answers.csv"), "--out: 'answers.csv' is no name of a file that ends in .jsonl"),
        (("--out", "no/answers.jsonl"), "cannot write in the folder no"),
        (("--model", "./nowhere"), "is not a folder"),
        (("-X", "engine.context_tokens=16000"), "positions"),
        (("--min", "2"), "--min"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run: Any, args: tuple[str, ...], said: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
