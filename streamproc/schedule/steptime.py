"""How long a step takes, learned from the steps before it.

    seconds = a + b * rows + c * pairs + d * reads + e * samples

    rows      tokens that are computed
    pairs     (row, cell it attends to), in thousands
    reads     cells that are read once for each chunk, in thousands
    samples   rows of which the next token is wanted

Least squares over the newest steps (older ones count less and less), no coefficient below zero. The model decides how
much goes into a step, never what is computed: a bad estimate costs time and changes no answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

FORGET = 0.97  # weight of the past at each step
RIDGE = 1e-3
REACH = 4.0  # times the rows of the largest step of late: what larger ones take is a guess
REFIT = 8  # steps between fits
FEWEST_STEPS = 4  # before a first fit
SURPRISE = 4.0  # times what was expected: the rest of such a step is the machine's
K = 1024.0


Part = tuple[float, float, float, float]


@dataclass(slots=True)
class Load:
    """What a step has to do."""

    rows: float = 0.0
    pairs: float = 0.0
    reads: float = 0.0
    samples: float = 0.0

    def add(self, start: int, num_tokens: int, num_samples: int = 0) -> Part:
        """So many tokens of one sequence from a position on -> what that adds."""
        pairs, reads = num_tokens * (start + num_tokens / 2) / K, (start + num_tokens) / K
        self.rows += num_tokens
        self.pairs += pairs
        self.reads += reads
        self.samples += num_samples
        return num_tokens, pairs, reads, num_samples


class StepTimes:
    """The estimate. Until it has seen a few steps it knows nothing, and says so."""

    def __init__(self) -> None:
        self._products = [[0.0] * 5 for _ in range(5)]
        self._targets = [0.0] * 5
        self._costs = [0.0] * 5
        self._num_steps = 0
        self._most_rows = 0.0  # in a step of late

    @property
    def is_known(self) -> bool:
        return self._num_steps >= FEWEST_STEPS

    def observe(self, load: Load, seconds: float) -> None:
        """A step of this load took so long."""
        if self.is_known:
            expected = self.step_s(load)
            seconds = min(seconds, SURPRISE * max(expected, 1e-6))
        self._most_rows = max(load.rows, FORGET * self._most_rows)
        x = (1.0, load.rows, load.pairs, load.reads, load.samples)
        for row, left in zip(self._products, x, strict=True):
            for j, right in enumerate(x):
                row[j] = FORGET * row[j] + left * right
        self._targets = [FORGET * target + value * seconds for target, value in zip(self._targets, x, strict=True)]
        self._num_steps += 1
        if self._num_steps % REFIT == 0 or self._num_steps <= 2 * FEWEST_STEPS:
            self._costs = _fit(self._products, self._targets)

    @property
    def fixed(self) -> float:
        """Seconds of a step, whatever is in it."""
        return self._costs[0]

    def seconds(self, part: Part) -> float:
        """Of what is in a step."""
        _, per_row, per_pair, per_read, per_sample = self._costs
        rows, pairs, reads, samples = part
        return per_row * rows + per_pair * pairs + per_read * reads + per_sample * samples

    def step_s(self, load: Load) -> float:
        """Of a step with this load."""
        return self.fixed + self.seconds((load.rows, load.pairs, load.reads, load.samples))

    def prefill_s(self, start: int, end: int, tokens_per_step: int) -> float:
        """Of a sequence's tokens in this range, in steps of their own, no larger ones than those that are known of."""
        tokens_per_step = max(min(tokens_per_step, int(REACH * self._most_rows)), 1)
        num_steps, middle = math.ceil((end - start) / tokens_per_step), (start + end) / 2
        part = (end - start, (end - start) * middle / K, num_steps * middle / K, 0.0)
        return num_steps * self.fixed + self.seconds(part)

    def most_tokens(self, seconds: float, start: int) -> int:
        """Tokens of a sequence from a position on that take no longer than this, on top of what is in the step."""
        _, per_row, per_pair, per_read, _ = self._costs
        left = seconds - per_read * start / K
        linear = per_row + per_read / K + per_pair * start / K
        square = per_pair / (2 * K)
        if left <= 0:
            return 0
        if square * left < 1e-12 * max(linear, 1e-12) ** 2 or left == math.inf:
            return int(min(left / linear, 1e9)) if linear > 0 else 10**9
        return int((math.sqrt(linear * linear + 4 * square * left) - linear) / (2 * square))

    def per_draft_token(self, position: int) -> float:
        """Seconds that one more token to verify adds."""
        _, per_row, per_pair, _, per_sample = self._costs
        return per_row + per_pair * position / K + per_sample

    def per_decoding(self, position: int, num_sharing: int) -> float:
        """Seconds of a step that is made for one token of each of so many sequences, by sequence."""
        return self._costs[0] / max(num_sharing, 1) + self._costs[3] * position / K + self.per_draft_token(position)


def _fit(products: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float]:
    """Least squares without negative costs: the most negative one is taken out until none is."""
    used = [i for i in range(len(targets)) if products[i][i] > 1e-12]   # less was not seen for long
    while used:
        found = _solve([[products[i][j] * (1 + RIDGE * (i == j)) for j in used] for i in used],
                       [targets[i] for i in used])  # fmt: skip
        worst = min(range(len(used)), key=lambda k: found[k] * math.sqrt(products[used[k]][used[k]]))
        if found[worst] >= 0:
            return [found[used.index(i)] if i in used else 0.0 for i in range(len(targets))]
        del used[worst]
    return [0.0] * len(targets)


def _solve(matrix: list[list[float]], targets: list[float]) -> list[float]:
    """Gauss; the matrix is symmetric and positive."""
    size = len(targets)
    rows = [[*row, target] for row, target in zip(matrix, targets, strict=True)]
    for i in range(size):
        for j in range(i + 1, size):
            factor = rows[j][i] / rows[i][i]
            for k in range(i, size + 1):
                rows[j][k] -= factor * rows[i][k]
    found = [0.0] * size
    for i in reversed(range(size)):
        found[i] = (rows[i][size] - sum(rows[i][k] * found[k] for k in range(i + 1, size))) / rows[i][i]
    return found
