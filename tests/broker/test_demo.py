"""The demo from end to end on a real Kafka, in a process of its own as a user starts it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamproc.config import state_dir
from streamproc.demo.show import alone
from streamproc.errors import Refused

pytestmark = pytest.mark.broker

COMMAND = (sys.executable, "-P", "-m", "streamproc", "demo", "--json")
LEAST = 0.9  # share of right answers; in a run this short one wrong answer is two points


@pytest.fixture
def environ(tmp_path: Path, bootstrap_servers: str) -> Iterator[dict[str, str]]:
    """A state folder of the test's own that shares the model of noise."""
    models = state_dir() / "models"
    models.mkdir(parents=True, exist_ok=True)
    (tmp_path / "models").symlink_to(models)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STREAMPROC_")}
    return {**kept, "STREAMPROC_STATE_DIR": str(tmp_path), "STREAMPROC_BOOTSTRAP_SERVERS": bootstrap_servers}


def demo(environ: dict[str, str], *arguments: str) -> dict[str, object]:
    done = subprocess.run([*COMMAND, *arguments], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_answer_comes_and_is_right_and_those_recomputed_are_equal(environ):
    for arguments, records in (("--clean",), 40), ((), 24):
        doc = demo(environ, "--records", str(records), "--rate", "40/s", *arguments)
        assert (doc["records"], doc["asks"], doc["exact"]) == (records, 3, True)
        assert doc["answers"] > 0
        assert doc["judged"] >= doc["answers"]
        assert doc["accuracy"] >= LEAST


def test_a_model_whose_words_are_noise_is_judged_too_and_exact_all_the_same(environ):
    doc = demo(environ, "--records", "24", "--rate", "40/s", "--clean", "--model", "random-tiny")
    assert (doc["asks"], doc["exact"]) == (3, True)
    assert doc["judged"] >= doc["answers"]
    assert doc["accuracy"] < LEAST


def test_one_demo_at_a_time(tmp_path):
    with alone(tmp_path), pytest.raises(Refused, match="another demo"), alone(tmp_path):
        pass
