"""T12: everything that the other scenarios do, for long; and whether workers need more memory as time goes by."""

import json
import time

from harness.broker_faults import spoil_broker
from harness.lab import Lab, Shape
from harness.store_faults import STORE_BYTES, fill_disk, spoil_store
from harness.worker import STATUS_S, Orders
from harness.worker_faults import begin, spoil_worker

STEADY = "a"  # never killed or stopped, so that it lives long enough for its memory to be looked at
LONG_S = 360.0  # of load: a worker on a busy machine says less often how it is
LEAST_S = 60.0  # a third of the life of a worker that has lived long enough
GROWTH, SLACK_BYTES = 1.2, 8 * 2**20  # what its last third may need beyond the second
CALM = Shape(num_partitions=3, num_sessions=12, records_per_s=250, poison_share=0.001, store_bytes=STORE_BYTES)


def everything(lab: Lab, length_s: float) -> None:
    """Whatever the other scenarios do, at random, at a load well below what the workers can take."""
    for slot in "abc":
        lab.workers.orders[slot] = Orders(oom_share=0.01)
    begin(lab, "a", "b", "c")
    deadline = time.monotonic() + length_s
    while time.monotonic() < deadline:
        lab.run(lab.rng.uniform(1.0, 5.0))
        lab.rng.choice((spoil_broker, spoil_broker, spoil_any_worker, spoil_snapshots))(lab)
        lab.until_moving()
    watch_memory(lab)


def spoil_any_worker(lab: Lab) -> None:
    spoil_worker(lab, spared=STEADY)


def spoil_snapshots(lab: Lab) -> None:
    """Their disk is full one time in four."""
    lab.rng.choice((spoil_store, spoil_store, spoil_store, fill_disk))(lab)


def watch_memory(lab: Lab) -> None:
    """A worker that has lived long enough does not grow any more. The history says whose memory was looked at."""
    for status in sorted(lab.folder.glob("worker-*.jsonl")):
        sizes = [json.loads(line)["rss_bytes"] for line in status.read_text().splitlines() if line.endswith("}")]
        third = len(sizes) // 3
        if third * STATUS_S < LEAST_S:
            continue
        before, after = max(sizes[third : 2 * third]), max(sizes[-third:])
        lab.history.add("memory", worker=status.stem, seconds=len(sizes) * STATUS_S, before=before, after=after)
        if after > GROWTH * before + SLACK_BYTES:
            why = f"{status.stem} grows: {before} bytes at most in the second third of its life, {after} in the last"
            lab.history.add("settled", ok=False, why=why)
