import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamproc.config import Prompts
from streamproc.engine import random_model
from streamproc.engine.build import Engine, stateless_answer
from streamproc.errors import Unavailable
from streamproc.prompts import Renderer, load_tokenizer
from streamproc.records import Trade

MAKE = "from streamproc.engine.random_model import folder; print(folder())"


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_two_processes_at_once_make_one_and_the_same_model(tmp_path: Path, engine: Engine) -> None:
    environment = {**os.environ, "STREAMPROC_STATE_DIR": str(tmp_path)}
    makers = [subprocess.Popen([sys.executable, "-c", MAKE], env=environment, stdout=subprocess.PIPE, text=True)
              for _ in range(2)]
    folders = {maker.communicate(timeout=120)[0].strip() for maker in makers}
    assert folders == {str(tmp_path / "models" / f"random-tiny-{random_model.VERSION}")}
    assert [path.name for path in (tmp_path / "models").iterdir()] == [f"random-tiny-{random_model.VERSION}"]
    assert digests(Path(folders.pop())) == digests(engine.loaded.folder)


def test_its_tokenizer_keeps_every_printable_character(tmp_path: Path) -> None:
    random_model.write(tmp_path)
    renderer = Renderer(load_tokenizer(tmp_path), Prompts())
    text = "".join(random_model.CHARACTERS)
    ids = renderer.tail_ids(text)[3:-3]
    assert renderer.decode(ids) == text
    assert len(ids) == len(text) == 96
    assert renderer.decode(renderer.tail_ids("é€")) == "Q: \nA:"


def test_its_answers_depend_on_the_context(engine: Engine) -> None:
    prefix, tail = engine.renderer.prefix_ids, engine.renderer.tail_ids("What is the last price?")
    answers = set()
    for changed in range(8):
        records = [Trade("BTCUSDT", i, f"{39000 + i + (i == changed)}.5", "0.25", "buy") for i in range(8)]
        stream = [token for ids in engine.renderer.record_ids(records) for token in ids]
        answers.add(stateless_answer(engine, [*prefix, *stream, *tail], 12, ()))
    assert len(answers) > 4
    assert all(len(set(answer)) > 2 for answer in answers)


def test_a_state_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STREAMPROC_STATE_DIR", str(tmp_path / "file" / "state"))
    with pytest.raises(Unavailable, match="the model random-tiny cannot be written there") as raised:
        random_model.folder()
    assert "\n" not in str(raised.value)
