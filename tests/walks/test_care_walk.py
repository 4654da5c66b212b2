"""Random walks of workers that die at records that kill, and by chance: what is to blame goes to the dead topic."""

import random

import pytest
from dying import Doomed
from world import random_record

from streamproc.messages import Query

QUERY = Query("q", "how is {last}?", every=2, max_tokens=5)


@pytest.mark.parametrize("most_leaves", [0, 3])
@pytest.mark.parametrize("seed", range(24))
def test_every_record_that_kills_is_set_aside_and_no_other_one(seed: int, most_leaves: int) -> None:
    """Workers that stop, or give their partitions away, come between: at any time, while they restore, too."""
    rng = random.Random(seed)
    poison_after, share = rng.choice((2, 3, 3, 5)), rng.choice((0.0, 0.005, 0.03, 0.06))
    world = Doomed(seed, rng.choice(("renderer", "runner")), poison_after, share)
    poison: set[tuple[int, int]] = set()
    world.register(QUERY)

    def leave() -> None:
        for _ in range(rng.choice((1, 2, 5, 30))):
            world.step()
        rng.choice((world.processor.close, lambda: world.processor.revoked([0, 1])))()
        world.crash()

    for _ in range(rng.choice((1, 3, 8))):
        for _ in range(rng.choice((1, 4, 20, 150))):
            if rng.random() < 0.01:
                poison.add(world.produce_poison(rng.randrange(2)))
            world.log.produce(rng.randrange(2), random_record(rng, rng.choice("ABC")))
        for _ in range(rng.randint(0, most_leaves)):
            world.live(leave, 10_000)
        if rng.random() < 0.7:
            world.live(world.step, 10_000)
        else:
            world.live(world.drain, 10_000)
    world.live(world.drain, 10_000)
    assert world.dead() == sorted(poison)
    assert all(int(letter["deaths"]) >= max(poison_after, 3) for letter in world.letters())
    assert world.found() == world.expected(QUERY, poison)
    num_more = world.num_chance // 10  # a death by chance may be taken for one at a record
    assert world.num_deaths - world.num_chance <= (max(poison_after, 3) + 2) * len(poison) + num_more
