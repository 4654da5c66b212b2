"""What the market model is trained on, step by step, and how fast it learns there.

    cycle       one rise and fall of the learning rates, with optimizers that begin afresh; the weights go on
    phase       a stretch of a cycle with one mix of questions; its steps go round its stages
    stage       the shape of a batch's rows
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamproc.training.examples import Stage
from streamproc.training.model import FIRST_LAYERS, LAYERS, SECOND_LAYERS, THIRD_LAYERS

MATRIX_LR, OTHER_LR = 4e-3, 3e-3
WARMUP = 100        # steps


@dataclass(frozen=True, slots=True)
class Phase:
    steps: int
    stages: tuple[Stage, ...]
    weights: Mapping[str, float]    # how often each kind of question is asked


@dataclass(frozen=True, slots=True)
class Cycle:
    phases: tuple[Phase, ...]
    peak: float                 # highest factor of the learning rates
    decay: float                # share of the steps in which they fall to nothing
    layers: tuple[str, ...]     # "sliding" or "full"
    hints: tuple[str, ...]      # names of those that are given

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step of the training is."""

    cycle: Cycle
    phase: Phase
    step: int       # number in the cycle

    @property
    def stage(self) -> Stage:
        return self.phase.stages[self.step % len(self.phase.stages)]

    @property
    def rate(self) -> float:
        """Factor of the learning rates: warm-up, constant, decay to nothing."""
        left, falling = self.cycle.steps - self.step, self.cycle.decay * self.cycle.steps
        return min(1.0, (self.step + 1) / WARMUP, left / falling if falling else 1.0) * self.cycle.peak


def place_of(cycles: Sequence[Cycle], step: int) -> Place:
    """Where the training is at its step of this number, counted from 0."""
    in_cycle = step
    for cycle in cycles:
        if in_cycle < cycle.steps:
            ends = itertools.accumulate(phase.steps for phase in cycle.phases)
            phase = next(phase for phase, end in zip(cycle.phases, ends, strict=True) if in_cycle < end)
            return Place(cycle, phase, in_cycle)
        in_cycle -= cycle.steps
    raise IndexError(step)


WEIGHTS = {"last_price": 1.0, "last_size": 0.7, "last_side": 0.7, "move": 1.5, "above": 2.0, "high5": 2.0, "low5": 2.0,
           "buys5": 1.5, "spread": 0.6, "bid": 0.4, "ask": 0.4}
LATER_WEIGHTS = {"last_price": 1.0, "last_size": 1.2, "last_side": 0.5, "move": 0.5, "above": 2.0, "high5": 3.0,
                 "low5": 3.0, "buys5": 1.2, "spread": 0.4, "bid": 0.5, "ask": 0.5}     # more of what comes late
LEARN = Cycle(      # every kind of question, contexts from short to long
    phases=(
        Phase(1_200, (Stage(128, 32, 3),), WEIGHTS),
        Phase(1_300, (Stage(256, 12, 4),), WEIGHTS),
        Phase(1_000, (Stage(256, 12, 4),), LATER_WEIGHTS),
        Phase(2_200, (Stage(512, 6, 6),), LATER_WEIGHTS),
        Phase(800, (Stage(1024, 3, 6),), LATER_WEIGHTS),
        Phase(350, (Stage(2048, 1, 6),), LATER_WEIGHTS),
    ),
    peak=1.0, decay=0.3, layers=FIRST_LAYERS, hints=("signs", "steps"))
LONG = (Stage(512, 6, 6), Stage(2048, 1, 6), Stage(1024, 3, 6), Stage(2048, 1, 6))
LENGTHEN = Cycle(   # all long contexts at once, with one more layer that sees everything
    phases=(Phase(4_400, LONG, LATER_WEIGHTS),),
    peak=0.75, decay=0.0, layers=SECOND_LAYERS, hints=("signs", "steps", "pointers"))
COMPARE = Cycle(    # what a highest of five needs: every price beside the four before it, one layer earlier
    phases=(Phase(750, LONG, LATER_WEIGHTS),),
    peak=0.75, decay=0.0, layers=THIRD_LAYERS, hints=("signs", "steps", "pointers", "lags", "orders"))
DEEPEN = Cycle(     # that was a layer too early: a second layer for what lies near
    phases=(Phase(2_600, LONG, LATER_WEIGHTS),),
    peak=0.75, decay=0.5, layers=LAYERS, hints=("signs", "steps", "pointers", "lags", "orders"))
NEW_LAYER = 1       # where a cycle with one layer more than the one before has it
CYCLES = (LEARN, LENGTHEN, COMPARE, DEEPEN)
