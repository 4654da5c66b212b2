"""What scenarios do to workers: kill, stop and freeze them, add and remove them, make them fail."""

import time

from harness.lab import GRACE_S, Lab
from harness.worker import Orders
from streamproc.messages import Query

SESSION_S = 6.0  # after which the broker gives a silent worker's partitions away
STEPS = "+b +c -b! +b -c +c -b! +b -a! -c +a -b"  # +: start, -: SIGTERM, -!: SIGKILL


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


def spoil_worker(lab: Lab, spared: str = "") -> None:
    """One worker is killed, stopped or frozen, and is back a little later. spared: a slot that is frozen at most."""
    slot = lab.rng.choice(sorted(lab.workers.running))
    how = lab.rng.choice(("kill", "stop", "freeze"))
    if how == "freeze" or slot == spared:
        lab.workers.freeze(slot)
        lab.run(lab.rng.uniform(0.5, SESSION_S + 3.0))
        lab.workers.thaw(slot)
        return
    come_or_go(lab, f"-{slot}!" if how == "kill" else f"-{slot}")
    lab.run(lab.rng.choice((0.0, 0.5, 3.0)))
    come_or_go(lab, f"+{slot}")


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
