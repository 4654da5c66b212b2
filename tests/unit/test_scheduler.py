"""How a step is shared between the sequences that wait for it."""

import pytest

from streamproc.schedule.scheduler import FEWEST, share


def taken(room: int, needs: list[int]) -> list[int]:
    """What each of these needs gets, one after another."""
    found = []
    for place, need in enumerate(needs):
        found.append(min(need, share(room, len(needs) - place)) if room else 0)
        room -= found[-1]
    return found


@pytest.mark.parametrize(
    ("room", "needs", "expected"),
    [
        (512, [1000], [512]),
        (512, [1000, 1000, 1000, 1000], [128] * 4),
        (512, [10, 10, 1000, 1000], [10, 10, 246, 246]),
        (512, [10] * 60, [10] * 51 + [2] + [0] * 8),
        (20, [1000, 1000], [20, 0]),
        (64, [1000] * 4, [FEWEST, FEWEST, 0, 0]),
    ],
)
def test_no_long_sequence_keeps_the_others_waiting_and_nothing_is_left_unused(
    room: int, needs: list[int], expected: list[int]
):
    assert taken(room, needs) == expected
