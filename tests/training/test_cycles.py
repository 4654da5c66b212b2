"""The schedule: where every step is, and how fast it learns there."""

from dataclasses import replace

import pytest

from streamproc.market.questions import KINDS
from streamproc.training.cycles import CYCLES, WARMUP, Cycle, Phase, place_of
from streamproc.training.examples import UNIT, Stage
from streamproc.training.model import LAYERS

SHORT, LONG = Stage(64, 2, 2), Stage(128, 1, 2)
FIRST = Cycle((Phase(300, (SHORT,), {}), Phase(200, (LONG,), {})), 1.0, 0.3, LAYERS, ())
SECOND = replace(FIRST, phases=(Phase(401, (SHORT, LONG, LONG), {}),), peak=0.75, decay=0.45)
STEPS = FIRST.steps + SECOND.steps


def rates(cycles: tuple[Cycle, ...]) -> list[float]:
    return [place_of(cycles, step).rate for step in range(sum(cycle.steps for cycle in cycles))]


@pytest.mark.parametrize("cycles", [(FIRST, SECOND), CYCLES], ids=["small", "ours"])
def test_in_every_cycle_the_rate_rises_stays_at_its_peak_and_falls_to_nothing(cycles: tuple[Cycle, ...]):
    found, start = rates(cycles), 0
    for cycle in cycles:
        own, start = found[start : start + cycle.steps], start + cycle.steps
        first_of_fall = round(cycle.steps * (1 - cycle.decay)) + 1
        assert own[0] == pytest.approx(cycle.peak / WARMUP)
        assert own[:WARMUP] == sorted(own[:WARMUP])
        assert set(own[WARMUP - 1 : first_of_fall - 1]) == {cycle.peak}
        assert own[first_of_fall:] == sorted(own[first_of_fall:], reverse=True)
        assert 0 < own[-1] < 0.01 or not cycle.decay
        assert max(own) == cycle.peak


def test_steps_go_through_the_phases_and_round_the_stages_of_each():
    places = [place_of((FIRST, SECOND), step) for step in range(STEPS)]
    assert [place.stage for place in places[:500]] == [SHORT] * 300 + [LONG] * 200
    assert [place.stage for place in places[500:504]] == [SHORT, LONG, LONG, SHORT]
    assert [place.step for place in places] == [*range(500), *range(401)]
    assert [place.cycle for place in places] == [FIRST] * 500 + [SECOND] * 401


def test_there_is_no_step_after_the_last():
    with pytest.raises(IndexError):
        place_of((FIRST, SECOND), STEPS)


def test_our_phases_ask_every_kind_and_their_streams_are_whole_units():
    for phase in (phase for cycle in CYCLES for phase in cycle.phases):
        assert phase.weights.keys() == KINDS.keys()
        assert all(stage.stream_tokens % UNIT == 0 for stage in phase.stages)
