"""The catalogue of faults: each scenario is a few lines that say what is done to whom while records flow.

`length_s` is how long the load lasts; what follows, healing and settling, comes on top.
"""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from harness import gaps, replays
from harness.checker import Verdict, together
from harness.cluster import Cluster
from harness.lab import GRACE_S, Lab, Shape
from harness.mix import mixed_clients
from harness.nemeses import NEMESES, spoil
from harness.nursed import NursedSink
from harness.transactions import transactions
from harness.worker import Orders
from streamproc.messages import Query

SOCKET_S = 3.0  # socket.timeout.ms of the workers
SESSION_S = 6.0  # after which the broker gives a silent worker's partitions away

LEAST_SIZES, SLACK_BYTES = 120, 8 * 2**20  # a minute of a worker's life; what it may grow by all the same
CALM = Shape(num_partitions=3, num_sessions=12, records_per_s=250, poison_share=0.001)
LONG = Shape(context_tokens=4096, records_per_s=300)


@dataclass(frozen=True)
class Setting:
    """One run of a scenario. Its history stays in the folder."""

    cluster: Cluster
    folder: Path
    seed: int
    length_s: float


@dataclass(frozen=True)
class Scenario:
    """One line of the report."""

    name: str
    about: str
    play: Callable[[Setting], Verdict]
    short_s: float = 12.0  # of load, in the test suite
    long_s: float = 60.0  # in a run that is about faults


def in_lab(name: str, about: str, body: Callable[[Lab, float], None], shape: Shape = Shape(), **how: float) -> Scenario:  # noqa: B008
    """A scenario that does something to workers on a shape of load."""

    def play(setting: Setting) -> Verdict:
        with Lab(setting.cluster, setting.folder, name, setting.seed, shape) as lab:
            body(lab, setting.length_s)
            return lab.finish()

    return Scenario(name, about, play, **how)


def begin(lab: Lab, *slots: str) -> None:
    """Start workers, and records once all partitions are live."""
    for slot in slots:
        lab.workers.start(slot)
    assert lab.until_live(), f"the workers do not come up: {lab.workers.owned()}"
    lab.drive()
    assert lab.until_moving(), "no answers come"


def workers_killed(lab: Lab, length_s: float) -> None:
    """T1: SIGKILL of a worker at any moment, its restart soon after; sometimes while it restores."""
    begin(lab, "a", "b")
    deadline = time.monotonic() + length_s
    while time.monotonic() < deadline:
        lab.run(lab.rng.uniform(1.5, 5.0))
        slot = lab.rng.choice(sorted(lab.workers.running))
        lab.workers.kill(slot)
        lab.run(lab.rng.choice((0.0, 0.3, 2.0)))
        lab.workers.start(slot)
        if lab.rng.random() < 0.3:
            lab.run(lab.rng.uniform(0.2, 1.5))
            lab.workers.kill(slot)
            lab.workers.start(slot)


def broker_bounced(lab: Lab, length_s: float) -> None:
    """T2: the broker is stopped or killed, and started again on what it left."""
    begin(lab, "a", "b")
    deadline, number = time.monotonic() + length_s, 0
    while time.monotonic() < deadline:
        lab.run(lab.rng.uniform(2.0, 5.0))
        how = ("SIGKILL", "SIGTERM")[number % 2]
        lab.history.fault(f"{how} broker")
        (lab.cluster.kill if how == "SIGKILL" else lab.cluster.terminate)()
        lab.cluster.restart()
        lab.until_moving()
        number += 1


def broker_frozen(lab: Lab, length_s: float) -> None:
    """T3: SIGSTOP of the broker for longer than clients wait for a reply, then SIGCONT: the requests that they had
    given up are carried out beside the new ones.
    """
    begin(lab, "a", "b")
    deadline = time.monotonic() + length_s
    while time.monotonic() < deadline:
        lab.run(lab.rng.uniform(1.0, 3.0))
        lab.history.fault("SIGSTOP broker")
        lab.cluster.freeze()
        lab.run(SOCKET_S + lab.rng.uniform(0.5, 3.5))
        lab.cluster.thaw()
        lab.until_moving()


def workers_frozen(lab: Lab, length_s: float) -> None:
    """T4: SIGSTOP of a worker until others have its partitions; then it wakes as a zombie."""
    begin(lab, "a", "b")
    deadline = time.monotonic() + length_s
    while time.monotonic() < deadline:
        lab.run(lab.rng.uniform(1.0, 3.0))
        slot = lab.rng.choice(sorted(lab.workers.running))
        lab.workers.freeze(slot)
        lab.run(SESSION_S + lab.rng.uniform(1.0, 4.0))
        if slot in lab.workers.running:
            lab.workers.thaw(slot)
        lab.until_moving()
        lab.run(2.0)


STEPS = "+b +c -b! +b -c +c -b! +b -a! -c +a -b"  # +: start, -: SIGTERM, -!: SIGKILL


def workers_come_and_go(lab: Lab, length_s: float) -> None:
    """T5: 1 -> 2 -> 3 -> 2 -> 1 workers with kills between, some of them while they restore."""
    begin(lab, "a")
    steps = STEPS.split()
    deadline = time.monotonic() + length_s
    while time.monotonic() < deadline:
        for step in steps:
            come_or_go(lab, step)
            lab.run(lab.rng.choice((0.3, 1.0, length_s / len(steps))))
            if time.monotonic() > deadline:
                break
    assert lab.until_live(60), f"the survivors do not own all partitions: {lab.workers.owned()}"


def come_or_go(lab: Lab, step: str) -> None:
    """One step, if it can be taken."""
    slot = step[1]
    if step[0] == "+":
        if slot not in lab.workers.running:
            lab.workers.start(slot)
    elif slot in lab.workers.running and len(lab.workers.running) > 1:
        if step.endswith("!"):
            lab.workers.kill(slot)
        else:
            lab.history.fault(f"SIGTERM worker {slot}")
            lab.workers.stop(slot)


def workers_fail(lab: Lab, length_s: float) -> None:
    """T8: workers that throw after some hundred records, a device that runs out of memory, records that are poison."""
    for number, slot in enumerate("ab"):
        lab.workers.orders[slot] = Orders(throw_after=lab.rng.randrange(200, 900), oom_share=0.02, seed=number)
    begin(lab, "a", "b")
    lab.run(length_s)
    for slot in "ab":
        lab.workers.orders[slot] = Orders()


def queries_change(lab: Lab, length_s: float) -> None:
    """T9: standing questions are added, changed and removed while workers come, go and are killed."""
    begin(lab, "a", "b")
    deadline, number = time.monotonic() + length_s, 0
    while time.monotonic() < deadline:
        number += 1
        query_id = lab.rng.choice(("moving", "fading"))
        fresh = Query(query_id, f"version {number} of {{count}}?", every=lab.rng.choice((2, 3)), max_tokens=4)
        lab.change(query_id, fresh)
        lab.run(lab.rng.uniform(0.5, 2.0))
        slot = lab.rng.choice(sorted(lab.workers.running))
        lab.workers.kill(slot)
        lab.run(lab.rng.choice((0.0, 1.0)))
        lab.workers.start(slot)
        lab.until_moving()
        lab.run(GRACE_S)
        if query_id == "fading":
            lab.change(query_id, None)


def bad_weather(lab: Lab, length_s: float) -> None:
    """NET: one worker's way to the broker after the other is spoilt, for a moment or for longer than anybody waits."""
    begin(lab, "a", "b")
    deadline = time.monotonic() + length_s
    while time.monotonic() < deadline:
        slot = lab.rng.choice(sorted(lab.workers.running))
        spoil(lab.cluster, lab.history, lab.rng, lab.run, lab.cluster.lanes[lab.workers.lane(slot)])
        lab.run(lab.rng.uniform(0.5, 3.0))


def store_spoilt(lab: Lab, length_s: float) -> None:
    """T6: workers are killed, and what they stored of their sessions is torn, flipped or gone when they restore."""
    begin(lab, "a", "b")
    deadline = time.monotonic() + length_s
    while time.monotonic() < deadline:
        lab.run(lab.rng.uniform(1.5, 4.0))
        slot = lab.rng.choice(sorted(lab.workers.running))
        lab.workers.kill(slot)
        for _ in range(lab.rng.choice((1, 5, 50))):
            spoil_store(lab)
        lab.workers.start(slot)


def spoil_store(lab: Lab) -> None:
    """One of its files, or the folder. The other worker goes on reading and writing there."""
    files = sorted(path for path in lab.store.rglob("*") if path.is_file())
    if not files:
        return
    path, how = lab.rng.choice(files), lab.rng.choice(("torn", "flipped", "gone"))
    lab.history.fault(f"{how} {path.suffix} in the store")
    with contextlib.suppress(FileNotFoundError):    # the other worker has tidied it up
        content = path.read_bytes()
        place = lab.rng.randrange(len(content) + 1)
        if how == "torn":
            path.write_bytes(content[:place])
        elif how == "flipped":
            flipped = bytes(255 - byte for byte in content[place : place + 1])
            path.write_bytes(content[:place] + flipped + content[place + 1 :])
        else:
            path.unlink()


def everything(lab: Lab, length_s: float) -> None:
    """T12: whatever the other scenarios do, at random, at a load well below what the workers can take."""
    for slot in "abc":
        lab.workers.orders[slot] = Orders(oom_share=0.01)
    begin(lab, "a", "b", "c")
    deadline = time.monotonic() + length_s
    while time.monotonic() < deadline:
        lab.run(lab.rng.uniform(1.0, 5.0))
        lab.rng.choice((spoil_broker, spoil_broker, spoil_worker, spoil_store))(lab)
        lab.until_moving()
    watch_memory(lab)


def spoil_broker(lab: Lab) -> None:
    NEMESES[lab.rng.choice(sorted(NEMESES))](lab.cluster, lab.history, lab.rng, lab.run)


def spoil_worker(lab: Lab) -> None:
    """One worker is killed, stopped or frozen, and is back a little later."""
    slot = lab.rng.choice(sorted(lab.workers.running))
    how = lab.rng.choice(("kill", "stop", "freeze"))
    if how == "freeze":
        lab.workers.freeze(slot)
        lab.run(lab.rng.uniform(0.5, SESSION_S + 3.0))
        lab.workers.thaw(slot)
        return
    come_or_go(lab, f"-{slot}!" if how == "kill" else f"-{slot}")
    lab.run(lab.rng.choice((0.0, 0.5, 3.0)))
    come_or_go(lab, f"+{slot}")


def watch_memory(lab: Lab) -> None:
    """A worker that has lived long enough does not grow any more."""
    for status in lab.folder.glob("worker-*.jsonl"):
        sizes = [json.loads(line)["rss_bytes"] for line in status.read_text().splitlines() if line.endswith("}")]
        third = len(sizes) // 3
        if third >= LEAST_SIZES and max(sizes[-third:]) > 1.2 * max(sizes[third : 2 * third]) + SLACK_BYTES:
            lab.history.add("settled", ok=False, why=f"{status.stem} grows: {sizes[third]} to {sizes[-1]} bytes")


def replays_agree(setting: Setting) -> Verdict:
    """T11: a run whose workers are killed, and replays of it."""
    with Lab(setting.cluster, setting.folder, "T11", setting.seed, replays.SHAPE) as lab:
        workers_killed(lab, setting.length_s / 3)
        return replays.replayed(lab)


def jepsen(setting: Setting) -> Verdict:
    return mixed_clients(setting.cluster, setting.folder, setting.seed, setting.length_s)


def jepsen_nursed(setting: Setting) -> Verdict:
    return mixed_clients(setting.cluster, setting.folder, setting.seed, setting.length_s, NursedSink)


def log_with_gaps(setting: Setting) -> Verdict:
    """T10: one run for each way in which the log no longer fits."""
    verdicts = []
    for part in gaps.PARTS:
        with Lab(setting.cluster, setting.folder / part, f"T10-{part}", setting.seed, gaps.SHAPE) as lab:
            verdicts.append(getattr(gaps, part)(lab))
    return together(verdicts)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("T0", "errors of every API", lambda setting: transactions(setting.seed, setting.length_s)),
        in_lab("T1", "workers SIGKILLed", workers_killed, short_s=8),
        in_lab("T2", "broker SIGKILLed, SIGTERMed", broker_bounced, short_s=8),
        in_lab("T3", "broker frozen", broker_frozen, LONG),
        in_lab("T4", "workers frozen: zombies", workers_frozen, short_s=8),
        in_lab("T5", "1-2-3-2-1 workers", workers_come_and_go, Shape(num_partitions=5, num_sessions=15), short_s=12),
        in_lab("T6", "workers killed, snapshots damaged", store_spoilt, short_s=8),
        in_lab("T8", "failures, no memory, poison", workers_fail, replace(LONG, poison_share=0.004), short_s=8),
        in_lab("T9", "questions change", queries_change),
        Scenario("T10", "gaps, new topic, more partitions", log_with_gaps),
        in_lab("NET", "network of one worker", bad_weather, short_s=8),
        Scenario("T11", "replays of a run with faults", replays_agree),
        Scenario("T7", "clients of Jepsen's kind", jepsen),
        in_lab("T12", "everything", everything, CALM, long_s=120.0),
    )
}
HUNTS = {"T7-nursed": Scenario("T7-nursed", "T7 without the product's policy", jepsen_nursed)}  # may find violations
