"""Random walks of the scheduler alone: sessions that grow and hop, questions, prompts, drafts, in too small a pool.

After every plan: it fits the step, and if there is something to do, something is done; every answer is what a rolling
hash of its context says.
"""

import random

import pytest
from fakes import greedy, next_kv
from wandering import SlowShelf, Walk

from streamproc.state.tier import Tier


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_is_answered_right_and_nobody_waits_for_ever(seed: int) -> None:
    """100,000 plans in all."""
    walk = Walk(seed)
    for _ in range(5_000):
        walk.turn()
    walk.drain()
    assert walk.num_asked == len(walk.waits) > 100
    walk.workload.check()


@pytest.mark.parametrize("seed", range(8))
def test_plans_that_do_not_fit_the_memory_change_no_answer(seed: int) -> None:
    """Nor do those that were decided while such a plan was out."""
    tier = Tier(random.Random(seed).choice((0, 20, 400)))
    walk = Walk(2 * seed + 1, tier, failures=0.05)
    for _ in range(2_000):
        walk.turn()
        walk.scheduler.step_tokens = walk.scheduler._most_tokens     # it would take 100 steps each time
    walk.drain()
    assert walk.num_asked == len(walk.waits) > 100
    walk.workload.check()


@pytest.mark.parametrize("seed", range(8))
def test_blocks_outside_the_pool_change_no_answer(seed: int) -> None:
    """Host memory of some size, and a shelf that has some of the blocks, takes its time, and loses some."""
    rng = random.Random(seed)
    shelf = SlowShelf(rng)
    tier = Tier(rng.choice((6, 20, 400)), shelf, most_coming=rng.choice((3, 50)), most_loads=rng.choice((2, 100)))
    walk = Walk(seed, tier)
    for _ in range(2_000):
        walk.turn()
        shelf.turn(walk.runner.saved)
    walk.drain(between=lambda: shelf.turn({}))
    assert walk.num_asked == len(walk.waits) > 100
    assert tier.num_loaded > 20
    walk.workload.check()


def test_no_block_is_left_behind() -> None:
    """10,000 cycles of sessions that come, fork, hop and go."""
    walk = Walk(7)
    for _ in range(10_000):
        walk.turn()
        if walk.rng.random() < 0.02 and len(walk.sessions) > 1:
            gone = walk.sessions.pop(walk.rng.randrange(len(walk.sessions)))
            for fork in walk.workload.drop_forks(lambda fork, gone=gone: fork.session is gone):
                del walk.asked_in[fork.seq_id]
            for generation in (*gone.generations, *([gone.next] if gone.next else [])):
                walk.workload.drop(generation)
            walk.session()
    walk.drain()
    for session in walk.sessions:
        for generation in (*session.generations, *([session.next] if session.next else [])):
            walk.workload.drop(generation)
    walk.workload.check()
    assert walk.pool.num_free == walk.pool.num_blocks


def test_the_hash_of_a_context_tells_one_token_from_another() -> None:
    assert len({greedy(next_kv(next_kv(0, i), 7)) for i in range(40)}) > 20
