"""The catalogue of faults: each scenario is a few lines that say what is done to whom while records flow.

`length_s` is how long the load lasts; what follows, healing and settling, comes on top.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from harness import gaps, replays
from harness.broker_faults import bad_weather, broker_bounced, broker_frozen
from harness.checker import Verdict, together
from harness.cluster import Cluster
from harness.lab import Lab, Shape
from harness.mix import mixed_clients
from harness.nursed import NursedSink
from harness.soak import CALM, LONG_S, everything
from harness.store_faults import STORE_BYTES, store_spoilt
from harness.transactions import transactions
from harness.worker_faults import queries_change, workers_come_and_go, workers_fail, workers_frozen, workers_killed

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
        in_lab("T3", "broker frozen", broker_frozen, LONG, short_s=8),
        in_lab("T4", "workers frozen: zombies", workers_frozen, short_s=8),
        in_lab("T5", "1-2-3-2-1 workers", workers_come_and_go, Shape(num_partitions=5, num_sessions=15), short_s=12),
        in_lab("T6", "snapshots damaged, disk full", store_spoilt, Shape(store_bytes=STORE_BYTES), short_s=8),
        in_lab("T8", "failures, no memory, poison", workers_fail, replace(LONG, poison_share=0.004), short_s=8),
        in_lab("T9", "questions change", queries_change, short_s=8),
        Scenario("T10", "gaps, new topic, more partitions", log_with_gaps),
        in_lab("NET", "network of one worker", bad_weather, short_s=8),
        Scenario("T11", "replays of a run with faults", replays_agree),
        Scenario("T7", "clients of Jepsen's kind", jepsen),
        in_lab("T12", "everything", everything, CALM, long_s=LONG_S),
    )
}
HUNTS = {"T7-nursed": Scenario("T7-nursed", "T7 without the product's policy", jepsen_nursed)}  # may find violations
