"""Whether records have to wait in Kafka: too many tokens to compute, or too many cells that nobody can give up.

With hysteresis: pausing throws away what was fetched ahead and costs a fetch when records flow again, so it must not
happen at every turn.
"""

from dataclasses import dataclass

STOP, GO = 0.8, 0.4  # shares of the cells


@dataclass(slots=True)
class Pressure:
    """`most_tokens` to compute; `num_cells` of the pool."""

    most_tokens: int
    num_cells: int
    is_high: bool = False
    is_crowded: bool = False  # by what is taken in already

    def changes(self, num_tokens: int, num_needed: int, is_full: bool = False) -> bool:
        """Take in the tokens that wait, and the cells that sequences at work need -> whether `is_high` has changed.

        is_full: records wait elsewhere already.
        """
        before = self.is_high
        if self.is_crowded:
            self.is_crowded = num_tokens >= self.most_tokens // 2 or num_needed >= self.num_cells * GO
        else:
            self.is_crowded = num_tokens > self.most_tokens or num_needed > self.num_cells * STOP
        self.is_high = is_full or self.is_crowded
        return self.is_high != before
