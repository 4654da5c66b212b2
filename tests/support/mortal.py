"""A worker's surroundings that let it die at a named moment: from then on nothing that it does reaches the world.

Moments, each counted by itself; those within a hand-over begin with "hand-over ":
    launch, launched, landed          a step with tokens to compute
    saves, saved                      a step that copies blocks out: before it, and when it has landed
    loads, loaded                     a step that copies blocks in
    commit, committed, settled        before a transaction; it is committed, its reply is not read; it is read, recorded
    rewind                            after an epoch that seems to have failed
    stamp                             before offsets are committed again with other stamps
    segment, torn segment, stored segment, and so for a manifest: before it is written, half of it lies at its place
    and nothing follows, after it was written
    fetch                             bytes are read from a segment
    done                              a hand-over is over, the partition is still here
"""

import errno
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakes import FakeSink, FakeSource
from wrapping import Around, AroundFlight

from streamproc.errors import EpochAborted, Unavailable
from streamproc.keeper import Keeper
from streamproc.schedule.plan import Plan
from streamproc.snapshots.store import FileStore
from streamproc.snapshots.writer import SnapshotWriter
from streamproc.state.epoch import Message
from streamproc.state.partition import Recovery


class Killed(BaseException):
    """The process is dead: nothing of it may handle that."""


@dataclass
class Death:
    """Comes when `moment` is there for the nth time; "" : never."""

    moment: str = ""
    nth: int = 1
    is_dead: bool = False
    during: str = ""  # "hand-over "
    seen: Counter[str] = field(default_factory=Counter)

    def comes(self, moment: str) -> bool:
        """Whether it is this moment."""
        moment = self.during + moment
        self.seen[moment] += 1
        is_now = (moment, self.seen[moment]) == (self.moment, self.nth)
        self.is_dead |= is_now
        return is_now

    def at(self, moment: str) -> None:
        """For the loop's thread."""
        if self.is_dead or self.comes(moment):
            raise Killed(moment)


@dataclass
class MortalRunner(Around):
    """`num_tokens`: computed by the worker; `num_loaded`: blocks that it copied in."""

    death: Death
    num_tokens: int = 0
    num_loaded: int = 0

    def launch(self, plan: Plan) -> "MortalFlight":
        for moment in moments(plan, "launch", "saves", "loads"):
            self.death.at(moment)
        flight = self.runner.launch(plan)
        for moment in moments(plan, "launched", "", ""):
            self.death.at(moment)
        self.num_tokens += plan.num_tokens
        self.num_loaded += len(plan.loads)
        return MortalFlight(flight, plan, self.death)


def moments(plan: Plan, computes: str, saves: str, loads: str) -> list[str]:
    """Those of these that a plan is about."""
    about = ((plan.chunks, computes), (plan.saves, saves), (plan.loads, loads))
    return [name for part, name in about if part and name]


@dataclass
class MortalFlight(AroundFlight):
    plan: Plan
    death: Death

    def wait(self) -> dict[int, tuple[int, ...]]:
        sampled = self.flight.wait()
        for moment in moments(self.plan, "landed", "saved", "loaded"):
            self.death.at(moment)
        return sampled


class MortalSink(FakeSink):
    """`death`; "rewind" comes after an epoch that landed and whose reply was lost."""

    death: Death

    def commit(self, epoch: Any, membership: Any, timeout_s: float | None = None) -> None:
        self.death.at("commit")
        super().commit(epoch, membership, timeout_s)
        self.death.at("committed")
        if self.death.moment == "rewind":
            raise EpochAborted("the reply is lost")


class MortalSource(FakeSource):
    death: Death

    def poll(self, timeout_s: float) -> list[Message]:
        self.death.at("poll")
        return super().poll(timeout_s)

    def rewind(self, fallbacks: dict[int, int]) -> dict[int, Recovery]:
        self.death.at("rewind")
        return super().rewind(fallbacks)

    def stamp(self, stamps: Any) -> None:
        self.death.at("stamp")
        super().stamp(stamps)


class MortalKeeper(Keeper):
    death: Death

    def committed(self, partitions: Any) -> None:
        super().committed(partitions)
        self.death.at("settled")

    def hand_over(self, partitions: Any, copy_out: Any, deadline_s: float) -> None:
        self.death.during = "hand-over "
        super().hand_over(partitions, copy_out, deadline_s)
        self.death.at("done")
        self.death.during = ""


class MortalWriter(SnapshotWriter):
    death: Death

    def wait(self, deadline_s: float) -> bool:
        """Not for a store that takes nothing any more."""
        end = time.monotonic() + deadline_s
        while not (done := super().wait(0.01)) and self.room and time.monotonic() < end and not self.death.is_dead:
            pass
        return done


class MortalStore(FileStore):
    """A folder that takes nothing any more from the dead. Full from its `num_files`-th file on."""

    def __init__(self, root: Path, death: Death, num_files: int = 10**9) -> None:
        super().__init__(root)
        self.death = death
        self._num_left = num_files

    def put_if_absent(self, path: str, parts: Sequence[bytes | memoryview]) -> bool:
        self._check_alive(path)
        kind = "segment" if "/segments/" in path else "manifest" if "/manifests/" in path else "mark"
        self._die(path, kind)
        if self.death.comes(f"torn {kind}"):
            tear(self.root / path, parts)
        self._check_alive(path)
        written = super().put_if_absent(path, parts)
        self._die(path, f"stored {kind}")
        return written

    def put(self, path: str, parts: Sequence[bytes | memoryview]) -> None:
        self._check_alive(path)
        super().put(path, parts)

    def get_range(self, path: str, start: int, num_bytes: int) -> memoryview | None:
        if start:  # no header
            self._die(path, "fetch")
        return super().get_range(path, start, num_bytes)

    def delete(self, path: str) -> None:
        self._check_alive(path)
        super().delete(path)

    def _written(self, path: str, parts: Sequence[bytes | memoryview]) -> Any:
        self._num_left -= 1
        if self._num_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super()._written(path, parts)

    def _die(self, path: str, moment: str) -> None:
        self.death.comes(moment)
        self._check_alive(path)

    def _check_alive(self, path: str) -> None:
        if self.death.is_dead:
            raise Unavailable(f"snapshots: cannot touch {path}: killed")


def tear(place: Path, parts: Sequence[bytes | memoryview]) -> None:
    """The first half of a file at its final place, as a file system may leave it after a crash."""
    content = b"".join(parts)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content[: len(content) // 2])
