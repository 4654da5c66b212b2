"""Graphs are captured and kept by torch's rules, on a device that is not there: what it would refuse, this one does."""

import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from streamproc.engine.gpu import graphs
from streamproc.engine.gpu.graphs import Graphs


class Device:
    """It counts, and keeps which graphs hold which pool of memory."""

    def __init__(self) -> None:
        self.pools: dict[int, weakref.WeakSet[Any]] = {}
        self.streams: list[Any] = []
        self.captured_on: list[Any] = []
        self.is_capturing = False
        self.num_replays = self.num_emptied = self.num_kept = 0
        self.numbers = itertools.count()
        self.stream_now: Any = SimpleNamespace(wait_stream=lambda _: None)

    def graph_pool_handle(self) -> int:
        return next(self.numbers)

    def make_stream(self, _: torch.device) -> Any:
        self.streams.append(SimpleNamespace(wait_stream=lambda _: None))
        return self.streams[-1]

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.stream_now = self.stream_now, stream
        yield
        self.stream_now = before

    def empty_cache(self) -> None:
        """What a failed graph has taken is free by now."""
        assert not self.is_capturing
        assert sum(map(len, self.pools.values())) == self.num_kept
        self.num_emptied += 1


class Graph:
    """torch's, as far as it refuses."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def capture_begin(self, pool: int, capture_error_mode: str) -> None:
        if pool in self.device.pools and not self.device.pools[pool]:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
        self.device.pools.setdefault(pool, weakref.WeakSet()).add(self)
        self.device.captured_on.append(self.device.stream_now)
        self.device.is_capturing, self.is_broken = True, False

    def capture_end(self) -> None:
        self.device.is_capturing = False
        if self.is_broken:
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self) -> None:
        self.device.num_replays += 1


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(
        CUDAGraph=lambda: Graph(device), graph_pool_handle=device.graph_pool_handle, Stream=device.make_stream,
        stream=device.stream, current_stream=lambda: device.stream_now, empty_cache=device.empty_cache,
        synchronize=lambda: None))
    return device


@pytest.fixture
def made(device: Device) -> Graphs:
    return Graphs(torch.device("cuda"))


def lacking(device: Device, times: int) -> Callable[[], str]:
    """Work that lacks memory so often, while it is captured."""
    left = iter(range(times))

    def work() -> str:
        if device.is_capturing and next(left, None) is not None:
            raise torch.OutOfMemoryError("out")
        return "captured" if device.is_capturing else "done"

    return work


def test_the_second_step_of_a_size_is_captured_and_from_then_on_replayed(made: Graphs, device: Device) -> None:
    assert [made.run("size", lacking(device, 0)) for _ in range(4)] == ["done", "captured", "captured", "captured"]
    assert device.num_replays == 3


def test_all_are_captured_on_one_stream(made: Graphs, device: Device) -> None:
    """The allocator keeps memory by stream: graphs of several would not share theirs."""
    for key in range(5):
        for _ in range(2):
            made.run(key, lacking(device, 0))
    assert len(device.streams) == 1
    assert device.captured_on == device.streams * 5


def test_only_so_many_are_kept(made: Graphs, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST", 2)
    for key in ("a", "b", "c", "b"):
        for _ in range(2):
            made.run(key, lacking(device, 0))
    assert list(made._captured) == ["c", "b"]


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("times", [1, 2])
def test_where_memory_lacks_it_is_captured_once_more_or_never_again(
    others: int, times: int, made: Graphs, device: Device
) -> None:
    """A pool whose only graph was the failed one may not be used again."""
    for _ in range(2 * others):
        made.run("other", lacking(device, 0))
    device.num_kept = others
    work = lacking(device, times)
    assert made.run("size", work) == "done"
    assert [made.run("size", work) for _ in range(2)] == (["captured"] * 2 if times == 1 else ["done"] * 2)
    assert device.num_emptied == 1
    assert [made.run("next", lacking(device, 0)) for _ in range(2)] == ["done", "captured"]


def test_a_first_run_that_fails_is_no_first_run(made: Graphs, device: Device) -> None:
    """What it did not come to is not compiled yet."""
    def fail() -> None:
        raise torch.OutOfMemoryError("out")

    with pytest.raises(torch.OutOfMemoryError):
        made.run("size", fail)
    assert [made.run("size", lacking(device, 0)) for _ in range(2)] == ["done", "captured"]


def test_memory_may_lack_at_the_end_of_a_capture_too(made: Graphs, device: Device,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def short(graph: Graph) -> None:
        graph.device.is_capturing = False
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Graph, "capture_end", short)
    assert [made.run("size", lacking(device, 0)) for _ in range(3)] == ["done"] * 3


def test_the_error_that_broke_a_capture_is_the_one_that_is_raised(made: Graphs, device: Device) -> None:
    def work() -> None:
        if device.is_capturing:
            next(graph for pool in device.pools.values() for graph in pool).is_broken = True
            raise RuntimeError("operation not permitted when stream is capturing")

    made.run("size", work)
    with pytest.raises(RuntimeError, match="not permitted"):
        made.run("size", work)
