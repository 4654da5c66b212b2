"""What scenarios do to the snapshots that workers keep: damaged files, a full disk."""

import time

from harness.lab import Lab
from harness.worker_faults import begin

STORE_BYTES = 32 * 2**20
FULL_S = (3.0, 8.0)  # at least, at most
MOVING_S = 30.0  # within which an answer comes although the disk is full
KEPT_S = 60.0  # within which there are snapshots again: a store that has failed is tried ever more slowly


def store_spoilt(lab: Lab, length_s: float) -> None:
    """T6: workers are killed, and what they stored of their sessions is torn, flipped or gone when they restore, or
    there is no room where they store it.
    """
    begin(lab, "a", "b")
    deadline, number = time.monotonic() + length_s, 0
    while time.monotonic() < deadline:
        lab.run(lab.rng.uniform(1.5, 4.0))
        if number % 3 == 1:
            fill_disk(lab)
        else:
            kill_and_damage(lab)
        number += 1


def kill_and_damage(lab: Lab) -> None:
    slot = lab.rng.choice(sorted(lab.workers.running))
    lab.workers.kill(slot)
    for _ in range(lab.rng.choice((1, 5, 50))):
        spoil_store(lab)
    lab.workers.start(slot)


def spoil_store(lab: Lab) -> None:
    """One file is damaged; workers go on reading and writing there."""
    lab.store.damage(lab.rng)


def fill_disk(lab: Lab) -> None:
    """The store's disk is full for some seconds: answers keep coming meanwhile, and snapshots afterwards."""
    store = lab.store
    if not store.is_small:
        return
    lab.history.fault("disk of the snapshots full")
    before = lab.reader.num_seen
    lab.run(lab.rng.uniform(*FULL_S), each=store.fill)
    if not lab.until(lambda: lab.reader.num_seen > before, MOVING_S):
        lab.history.add("settled", ok=False, why="no answer came while the disk of the snapshots was full")
    store.free()
    known, wanted = store.manifests(), lab.shape.num_partitions

    def num_kept() -> int:
        """Partitions that have a new snapshot."""
        return len({path.parent for path in store.manifests() - known})

    if not lab.until(lambda: num_kept() == wanted, KEPT_S):
        why = f"{KEPT_S:.0f} s after the disk had room again {num_kept()} of {wanted} partitions have a new snapshot"
        lab.history.add("settled", ok=False, why=why)
