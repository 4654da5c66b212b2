"""A worker on a real engine is killed at every kind of moment; what comes after it has the cells, bit for bit, and the
answers, record for record, of a run in which nobody was killed and no snapshot was taken.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import damage
import pytest
import torch
from crash_world import NUM_SESSIONS, CrashWorld, Outcome, build_engine
from mortal import Death
from nursery import Nursery, as_lists

from streamproc.config import Config
from streamproc.engine.build import Engine

DTYPES = ("float32", "bfloat16")
EARLY_LATE = {"float32": (2, 16), "bfloat16": (9, 21)}  # how often a moment comes before it is deadly; of some 30
RESTORE = {"float32": (1, 3), "bfloat16": (1, 4)}
HANDED_OVER = {"float32": (1, 3), "bfloat16": (2, 4)}
REBALANCES = {6: [0], 12: [1], 18: [0], 25: [0, 1]}  # by turn
NEVER_S = 1e6
NUM_KILLED = 4  # by signal


@dataclass(frozen=True)
class Reference:
    """An engine, and what a run on it has to leave."""

    engine: Engine
    config: Config
    outcome: Outcome
    cells: dict[tuple[str, int], torch.Tensor]

    @property
    def dtype(self) -> str:
        return self.config.engine.dtype


@pytest.fixture(scope="module", params=DTYPES)
def reference(request: pytest.FixtureRequest, config: Config) -> Iterator[Reference]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    engine, settings = build_engine(request.param)
    world = CrashWorld(engine, settings)
    assert not world.live()
    assert world.num_hopped == NUM_SESSIONS
    yield Reference(engine, settings, world.outcome(), world.cells)
    engine.close()
    torch.set_num_threads(threads)


def die(world: CrashWorld, moment: str, nth: int) -> None:
    assert world.live(Death(moment, nth)), f"only {world.death.seen[moment]} times {moment}"


def check_outcome(world: CrashWorld, reference: Reference) -> None:
    """One more worker, to the end: the same bits, the same records."""
    assert not world.live()
    found = world.outcome()
    assert found.digests == reference.outcome.digests
    assert found.answers == reference.outcome.answers


def check_restored(world: CrashWorld, reference: Reference, fewest: int, has_gaps: bool = False) -> None:
    """And whatever is stored was not computed, but for what comes after a gap."""
    stored = world.stored()
    assert len(stored) >= fewest
    check_outcome(world, reference)
    assert has_gaps or stored & world.computed <= world.shared()
    assert world.runner.num_loaded > 0 or not fewest


@pytest.fixture
def world(reference: Reference, tmp_path: Path) -> CrashWorld:
    return CrashWorld(reference.engine, reference.config, tmp_path / "kept", expected=reference.cells)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "moment",
    ["launch", "launched", "landed", "commit", "rewind", "committed", "settled", "saves", "saved", "segment",
     "torn segment", "stored segment", "manifest", "torn manifest", "stored manifest"],
)  # fmt: skip
def test_killed_in_a_step_a_commit_or_a_round(moment: str, late: bool, reference: Reference, world: CrashWorld) -> None:
    die(world, moment, EARLY_LATE[reference.dtype][late])
    check_restored(world, reference, 8 if late else 0)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "happens",
    [damage.flip_last_bytes_of_segments, damage.flip_headers_of_segments, damage.cut_segments, damage.lose_segments,
     damage.flip_manifests, damage.cut_manifests, damage.lose_manifests],
)  # fmt: skip
def test_killed_and_the_store_is_damaged(
    happens: Callable[[Path], None], late: bool, reference: Reference, world: CrashWorld, tmp_path: Path
) -> None:
    die(world, "stored manifest", EARLY_LATE[reference.dtype][late])
    whole = world.stored()
    happens(tmp_path / "kept")
    assert world.stored() < whole or not whole
    check_restored(world, reference, 4 if late else 0, has_gaps=True)
    is_silent = happens is damage.lose_manifests
    assert is_silent or any("passed over" in note or "computed again" in note for note in world.notes) or not late


@pytest.mark.parametrize("late", [False, True])
def test_killed_and_the_store_is_lost(late: bool, reference: Reference, world: CrashWorld, tmp_path: Path) -> None:
    die(world, "launched", EARLY_LATE[reference.dtype][late])
    damage.lose_all(tmp_path / "kept")
    check_outcome(world, reference)
    assert not world.runner.num_loaded
    assert world.stored()


@pytest.mark.parametrize("late", [False, True])
def test_the_disk_is_full_and_the_worker_killed(late: bool, reference: Reference, world: CrashWorld) -> None:
    world.num_files = 2 * EARLY_LATE[reference.dtype][late]  # a segment and a manifest a commit
    die(world, "settled", 1 + EARLY_LATE[reference.dtype][late])
    world.num_files = 0
    check_restored(world, reference, 1 if late else 0)
    assert any("No space left on device" in note for note in world.notes)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("moment", ["loads", "loaded", "fetch", "landed", "commit"])
def test_killed_again_while_it_restores(moment: str, again: bool, reference: Reference, world: CrashWorld) -> None:
    die(world, "stored manifest", EARLY_LATE[reference.dtype][True])
    for nth in RESTORE[reference.dtype] if again else RESTORE[reference.dtype][:1]:
        die(world, moment, nth)
    check_restored(world, reference, 8)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "moment",
    ["saves", "saved", "segment", "torn segment", "stored segment", "manifest", "torn manifest", "stored manifest",
     "done"],
)  # fmt: skip
def test_killed_while_it_hands_over(moment: str, late: bool, reference: Reference, world: CrashWorld) -> None:
    world.interval_s, world.rebalances = NEVER_S, REBALANCES
    die(world, f"hand-over {moment}", HANDED_OVER[reference.dtype][late])
    check_restored(world, reference, 4 if late or moment == "done" else 0)


def test_partitions_come_and_go_and_nobody_is_killed(reference: Reference, world: CrashWorld) -> None:
    world.rebalances = REBALANCES
    check_outcome(world, reference)
    assert world.death.seen["hand-over done"] == len(REBALANCES)


def test_killed_by_signal_whatever_its_threads_are_at(reference: Reference, tmp_path: Path) -> None:
    """Each life ends some milliseconds after some commit; the last one comes to its end."""
    rng = random.Random(reference.dtype)
    with Nursery(tmp_path, reference.dtype) as nursery:
        for _ in range(NUM_KILLED):
            nursery.live(rng.randrange(1, 3), rng.uniform(0.0, 0.02))
        found = nursery.live()
    assert nursery.num_killed == NUM_KILLED
    assert found["digests"] == reference.outcome.digests
    assert found["answers"] == as_lists(reference.outcome)
    assert found["num_loaded"] > 0
    assert found["num_committed"] > 5
