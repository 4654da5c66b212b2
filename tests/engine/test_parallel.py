"""Two processes that share a model give what one gives; where one of them ends, the other does too, with a line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ranks_world
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen2Config

from streamproc.engine.gpu.parallel import Ranks
from streamproc.engine.gpu.shares import cut, put_together
from streamproc.engine.kv_cache import KVCache, Layout
from streamproc.engine.model import device_of
from streamproc.errors import OutOfMemory, StreamprocError, Usage
from streamproc.kafka.broker import free_port

SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 301, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 2,
}  # fmt: skip
MODELS = {
    "gemma3": Gemma3TextConfig(**SHAPE, head_dim=32, sliding_window=48, tie_word_embeddings=True,
                               layer_types=["sliding_attention", "full_attention"]),
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=False),       # biases
}
PROGRAM = Path(ranks_world.__file__)
LIMIT_S = 60.0      # from the death of one process to the end of the other

Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of random weights and biases."""
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for name, config in MODELS.items():
            model = AutoModelForCausalLM.from_config(config)
            for weight_name, weight in model.named_parameters():
                if weight.ndim == 2 or weight_name.endswith("bias"):
                    weight.normal_(0, 0.3)
            model.save_pretrained(folder / name)
    return folder


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(what, folder)` -> two processes, the first one first; killed with the test at the latest."""
    processes: list[subprocess.Popen[str]] = []

    def start(what: str, folder: Path) -> list[subprocess.Popen[str]]:
        shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
                  "OMP_NUM_THREADS": "1"}  # fmt: skip
        for rank in range(2):
            environ = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-P", str(PROGRAM), what, str(folder)]
            processes.append(subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                              text=True))  # fmt: skip
        return processes

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ended(processes: list[subprocess.Popen[str]], limit_s: float = LIMIT_S) -> list[tuple[int, str]]:
    """Exit codes and what was said, once all have ended."""
    deadline = time.monotonic() + limit_s
    said = [process.communicate(timeout=max(deadline - time.monotonic(), 0.1))[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def check_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["answers"] == expected["answers"]
    assert found["exact"]
    assert found["again"]
    assert found["block_bytes"] == expected["block_bytes"]
    check_saved(found["saved"], expected["saved"])


def check_saved(found: dict[bytes, Any], expected: dict[bytes, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, data in found.items():
        ours, theirs = data.view(torch.float32), expected[name].view(torch.float32)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_two_processes_give_the_answers_and_the_blocks_of_one(folder: Path, start: Start) -> None:
    processes = start("walk", folder)
    expected = {}
    for path in ranks_world.models(folder):
        runner = ranks_world.alone(path)
        tokens, logits = ranks_world.best(runner)
        expected[path.name] = {**ranks_world.Found(runner).walk(), "tokens": tokens, "logits": logits}
        runner.close()
    assert ended(processes, 120) == [(0, ""), (0, "")]
    found = torch.load(folder / "found.pt")
    assert found.keys() == MODELS.keys()
    for name in MODELS:
        check_equal(found[name], expected[name])
        assert torch.equal(found[name]["tokens"], expected[name]["tokens"])
        torch.testing.assert_close(found[name]["logits"], expected[name]["logits"], rtol=1e-4, atol=1e-4)
        assert any(data.any() for data in found[name]["saved"].values())
        assert found[name]["fingerprint"] != expected[name]["fingerprint"]      # sums have other last bits


def test_two_processes_have_the_next_plan_while_one_is_computed(folder: Path, start: Start) -> None:
    """It goes on from tokens that no host has seen, some of them chosen by masks that only the first process has."""
    processes = start("queue", folder)
    runner = ranks_world.alone(ranks_world.models(folder)[0])
    expected = ranks_world.Found(runner).answer(1)
    runner.close()
    assert ended(processes, 120) == [(0, ""), (0, "")]
    found = torch.load(folder / "found.pt")
    assert found["known"] == expected["known"]
    check_saved(found["saved"], expected["saved"])


def test_a_process_that_runs_out_of_memory_in_a_step_keeps_in_step(folder: Path, start: Start) -> None:
    processes = start("forget", folder)
    runner = ranks_world.alone(ranks_world.models(folder)[0])
    expected = ranks_world.Found(runner).walk()
    runner.close()
    assert ended(processes, 120) == [(0, ""), (0, "")]
    found = torch.load(folder / "found.pt")
    (code, mine), behind, (other_code, other), behind_other = found["problems"]
    assert mine.startswith("out of memory on cpu in a step of 73 tokens")
    assert other == f"process 1 of 2: {mine}"
    assert code == other_code == OutOfMemory.code
    assert behind[0] == StreamprocError.code
    assert "goes on from was not carried out" in behind[1]
    assert behind_other == (other_code, other)      # its masks go on from tokens that are not there
    assert [torch.load(folder / f"forgotten{rank}.pt") for rank in range(2)] == [[2], [2]]     # their graphs, each time
    check_equal(found, expected)


@pytest.mark.parametrize(("what", "line"), [
    ("die", "process 1 of 2 has ended; the model needs all of them"),
    ("run_out", "process 1 of 2: this process is out of step with the others: out of memory"),
    ("fail", "process 1 of 2: argument of type 'NoneType' is not iterable"),
])  # fmt: skip
def test_the_end_of_a_process_ends_the_first_one_with_a_line(what: str, line: str, folder: Path, start: Start) -> None:
    first, other = start(what, folder)
    assert first.stdout
    assert first.stdout.readline() == "started\n"
    (code, said), (other_code, _) = ended([first, other])
    assert code == 1
    assert other_code != 0
    assert said.startswith(f"streamproc: {line}")
    assert said.count("\n") == 1


def test_a_model_that_the_first_process_refuses_is_refused_by_all(folder: Path, start: Start) -> None:
    for code, said in ended(start("disagree", folder)):
        assert code == 2
        assert "cannot be shared by 2 processes (its logits are not those of transformers)" in said
        assert said.count("\n") == 1


def test_the_first_process_ends_the_other_when_it_cannot_go_on(folder: Path, start: Start) -> None:
    """Which waits for it in what they compute together; its error has been told in full."""
    first, other = start("fail_first", folder)
    (code, said), (other_code, _) = ended([first, other])
    assert (code, other_code) == (1, 1)
    assert said.startswith("process 0 of 2 cannot go on\nTraceback")
    assert "\nstreamproc: process 0 of 2: a runner without a constrainer\n" in said


def test_the_death_of_the_first_process_ends_the_other(folder: Path, start: Start) -> None:
    first, other = start("idle", folder)
    assert first.stdout
    assert first.stdout.readline() == "started\n"
    first.send_signal(signal.SIGKILL)
    assert ended([first, other]) == [(-signal.SIGKILL, ""), (1, "")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_a_block_is_cut_by_heads_and_put_together_again(dtype: torch.dtype) -> None:
    whole, layout = Layout(3, 6, 8, 4, dtype), Layout(3, 2, 8, 4, dtype)
    pool, part = KVCache(whole, 1, torch.device("cpu")), KVCache(layout, 1, torch.device("cpu"))
    pool.write(0, np.random.default_rng(0).integers(0, 256, whole.block_bytes, np.uint8))
    pieces = cut(pool.read(0), layout, 3)
    assert bytes(put_together(pieces, layout)) == bytes(pool.read(0))
    for rank, piece in enumerate(pieces):
        part.write(0, piece)
        heads = slice(2 * rank, 2 * rank + 2)
        assert torch.equal(part.blocks[0].view(torch.uint8), pool.blocks[0, :, :, heads].contiguous().view(torch.uint8))
        if part.scales is not None and pool.scales is not None:
            ours, theirs = part.scales[0], pool.scales[0, :, :, heads]
            assert torch.equal(ours.view(torch.int32), theirs.contiguous().view(torch.int32))


def test_a_model_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(Usage, match="4 processes cannot share the model's 2 heads of K and V; start torchrun"):
        Ranks(0, 4).check(2, 96)
    with pytest.raises(Usage, match="96 columns of its MLP"):
        Ranks(0, 5).check(10, 96)


def test_each_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: True, device_count=lambda: 2))
    assert device_of("auto", Ranks(1, 2)) == torch.device("cuda:1")
    assert device_of("cuda", Ranks(0, 2)) == torch.device("cuda:0")
    assert device_of("cpu", Ranks(1, 2)) == torch.device("cpu")
    with pytest.raises(Usage, match="torch sees 2 GPUs here, 4 processes take one each"):
        device_of("auto", Ranks(1, 4))
    with pytest.raises(Usage, match="cuda:1 is one GPU, 2 processes take one each"):
        device_of("cuda:1", Ranks(1, 2))
