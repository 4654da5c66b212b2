"""The suite for GPUs, tried without one: its parts on the CPU, and what it does when one of them fails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu_suite
from gpu import supervisor
from gpu.blocks import crossover
from gpu.checking import roundings
from gpu.guards import Guards
from gpu.hf import batching_settings
from gpu.questions import portions
from gpu.targets import verdict
from gpu.worker import SHARES, Report, work

from streamproc.schedule.plan import Chunk

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
ABSENT = ("click", "confluent_kafka", "llguidance", "obstore", "orjson", "rich", "zstandard")


def suite(tmp_path: Path, *options: str) -> dict[str, Any]:
    """Its last line, where only torch, transformers and triton are; none of it is installed."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run([sys.executable, "-P", ROOT / "benchmarks" / "gpu_suite.py", "--tiny", *options],
                           env={**environment, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path, check=False,
                           stdout=subprocess.PIPE, text=True)
    assert found.returncode == 0, found.stdout
    last: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return last


def test_tiny_runs_every_part(tmp_path: Path) -> None:
    told = suite(tmp_path)
    assert list(told["parts"]) == list(gpu_suite.PARTS) == list(SHARES)
    assert told["failed"] == []
    assert told["card"]["torch"] == torch.__version__
    for name, part in told["parts"].items():
        assert part["rows"], name
        assert not part.get("not_run"), name
    assert all(row["ok"] for row in told["parts"]["kernels"]["rows"])
    scenarios = told["parts"]["scenarios"]
    assert scenarios["failed_peers"] == {}
    assert {row["contender"] for row in scenarios["rows"]} == {
        "ours", "transformers static", "transformers dynamic", "transformers continuous batching"}
    assert scenarios["s3"]["how"] == "json in place of orjson"
    wanted = {name for name, part in told["parts"].items() for verdict in part.get("targets", ())
              if {"target", "value", "wanted", "met"} <= {*verdict}}
    assert wanted == {"scenarios", "determinism", "blocks"}


def test_only_some_parts(tmp_path: Path) -> None:
    assert list(suite(tmp_path, "--only", "ceilings")["parts"]) == ["ceilings"]
    assert gpu_suite.arguments(["--only", "fleet,kernels"]).only == ["kernels", "fleet"]
    with pytest.raises(SystemExit):
        gpu_suite.arguments(["--only", "fleet,nothing"])


class Bench:
    """As much of one as a worker needs."""

    clock: Any = None


def fails(_: Any) -> dict[str, Any]:
    raise RuntimeError("out of luck\nand more")


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_part_that_fails_is_recorded_and_the_others_are_run(tmp_path: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    parts = {"ceilings": fails, "kernels": lambda bench: {"left": bench.clock.left}}
    work(Bench(), parts, 60, Report(tmp_path / "told"), lambda: True)
    ends = {event["ends"]: event["result"] for event in events(tmp_path / "told") if "ends" in event}
    assert ends["ceilings"]["error"] == "RuntimeError: out of luck"
    assert ends["kernels"]["left"] > 50       # what the first one did not need
    assert "fails" in capsys.readouterr().err       # the traceback


def test_nothing_more_is_run_on_a_lost_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work(Bench(), {"ceilings": fails, "kernels": fails}, 60, Report(tmp_path / "told"), lambda: False)
    assert [event["ends"] for event in events(tmp_path / "told") if "ends" in event] == ["ceilings"]
    capsys.readouterr()


def test_a_part_for_which_there_is_no_time_says_so(tmp_path: Path) -> None:
    work(Bench(), {"fleet": fails}, 0, Report(tmp_path / "told"), lambda: True)
    assert events(tmp_path / "told")[-1]["result"] == {"error": "not run: the time was over"}


WORKER = """
import json, os, sys, time
report, names = sys.argv[1], sys.argv[2].split(",")
def tell(**event):
    with open(report, "a") as file:
        file.write(json.dumps(event) + "\\n")
tell(card={"device": "none"})
for name in names:
    tell(begins=name, budget_s=0.1)
    if name == "dies":
        os.abort()
    if name == "hangs":
        time.sleep(60)
    tell(ends=name, result={"rows": [name]})
"""


def test_a_process_that_dies_or_hangs_takes_no_other_part_with_it(monkeypatch: pytest.MonkeyPatch,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(supervisor, "LATE_S", 1.0)
    told = supervisor.supervise(
        ["a", "dies", "b", "hangs", "c"], 60,
        lambda report, names, _: [sys.executable, "-c", WORKER, str(report), ",".join(names)])
    assert told.card == {"device": "none"}
    assert {name: result.get("rows") for name, result in told.results.items()} == {
        "a": ["a"], "dies": None, "b": ["b"], "hangs": None, "c": ["c"]}
    assert "ended with status -6" in told.results["dies"]["error"]
    assert "no end" in told.results["hangs"]["error"]
    assert "hangs does not end" in capsys.readouterr().err


def test_a_process_that_does_not_even_start_is_not_started_again() -> None:
    told = supervisor.supervise(["a", "b"], 60, lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    assert {name: result["error"] for name, result in told.results.items()} == dict.fromkeys(
        "ab", "its process ended with status 3")


def test_streamproc_comes_from_the_checkout_without_a_package_called_kernels() -> None:
    code = ("import sys; sys.path.insert(0, 'benchmarks'); from gpu import checkout; checkout.use(); "
            "import importlib.util; import streamproc.kernels.reference as found; print(found.__file__); "
            "print(importlib.util.find_spec('kernels'))")
    found = subprocess.run([sys.executable, "-P", "-c", code], cwd=ROOT, check=True, capture_output=True, text=True,
                           env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    reference, of_others = found.stdout.splitlines()
    assert Path(reference).resolve() == ROOT / "kernels" / "reference.py"
    assert str(ROOT) not in of_others.replace(str(ROOT / ".venv"), "")     # None, or the package from PyPI


def test_writing_outside_a_guarded_buffer_is_found() -> None:
    guards = Guards(CPU)
    view = guards.copy(torch.ones(3, 4))
    assert guards.empty(5, dtype=torch.float32).isnan().all()
    view += 1
    assert guards.are_untouched()
    view = guards.copy(torch.ones(3, dtype=torch.int32))
    view.as_strided((1,), (1,), view.storage_offset() + 3).fill_(0)
    assert not guards.are_untouched()


def test_errors_are_counted_in_roundings() -> None:
    exact = torch.tensor([[1.0, -1.0, 1.0, 1.0]], dtype=torch.float64)
    assert roundings(exact.bfloat16(), exact) == 0
    assert roundings((exact + 2.0 ** -7).bfloat16(), exact) == pytest.approx(2, rel=1e-6)       # an ulp of bfloat16
    assert not roundings(torch.tensor([[float("nan"), -1, 1, 1]]), exact) <= 1e30


def test_from_how_many_tokens_on_restoring_is_faster() -> None:
    assert crossover([(100, 2.0, 1.0), (200, 2.0, 3.0), (400, 3.0, 9.0)]) == 150
    assert crossover([(100, 1.0, 2.0), (200, 2.0, 3.0)]) == 100
    assert crossover([(100, 1.0, 2.0), (200, 4.0, 3.0)]) == -1
    assert crossover([]) == -1


def test_chunks_are_shared_out_to_steps_in_order() -> None:
    chunks = [Chunk(i, 0, (1,) * count, ()) for i, count in enumerate((3, 2, 2, 9, 1))]
    assert [[chunk.seq_id for chunk in part] for part in portions(chunks, 5)] == [[0, 1], [2], [3], [4]]


def test_continuous_batching_is_set_up_by_the_names_of_this_transformers_and_of_older_ones() -> None:
    sizes = {"num_blocks": 4, "max_batch_tokens": 64}
    assert batching_settings({"block_size", *sizes}, 100, 64) == {"block_size": 32, **sizes}        # 5.17
    newer = batching_settings({"page_size", "auto_switch_to_flash", *sizes}, 100, 64)
    assert newer == {"page_size": 32, "auto_switch_to_flash": False, **sizes}


def test_a_figure_beside_its_target() -> None:
    assert verdict("decode", 0.8)["met"]
    assert not verdict("decode", 0.79)["met"]
    assert verdict("question", 1.3)["met"]
    assert not verdict("question", 1.31)["met"]
