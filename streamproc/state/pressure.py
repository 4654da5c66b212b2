"""Whether records have to wait: too many tokens to compute, or too many cells that nobody can give up.

With hysteresis, so that what is taken in is worth a step.
"""

from dataclasses import dataclass

STOP, GO = 0.8, 0.4  # shares of the cells


@dataclass(slots=True)
class Pressure:
    """`most_tokens` to compute; `num_cells` of the pool."""

    most_tokens: int
    num_cells: int
    is_high: bool = False

    def update(self, num_tokens: int, num_needed: int) -> None:
        """Take in the tokens that wait, and the cells that sequences at work need."""
        if self.is_high:
            self.is_high = num_tokens >= max(self.most_tokens // 2, 1) or num_needed >= self.num_cells * GO
        else:
            self.is_high = num_tokens > self.most_tokens or num_needed > self.num_cells * STOP
