"""Whether what was sent gets processed once all is healed. However slow the machine: every partition that is behind has
to move on.
"""

from collections.abc import Mapping

Place = tuple[str, int]  # topic and partition


class Settling:
    """Looks at what is committed, again and again."""

    def __init__(self, patience_s: float) -> None:
        """patience_s: how long a partition that is behind may stand still."""
        self._patience_s = patience_s
        self._moved: dict[Place, tuple[int, float]] = {}  # where it was seen first, and when
        self.is_settled = False
        self.stuck: list[str] = []  # partitions that stand still, in words

    @property
    def is_over(self) -> bool:
        return self.is_settled or bool(self.stuck)

    def look(self, now_s: float, committed: Mapping[Place, int], ends: Mapping[Place, int]) -> None:
        """now_s: of a clock that never goes back."""
        self.is_settled, self.stuck = True, []
        for place, end in ends.items():
            at = committed.get(place, 0)
            seen_at, seen_s = self._moved.get(place, (-1, now_s))
            if at != seen_at:
                self._moved[place] = at, now_s
            elif at != end and now_s - seen_s > self._patience_s:
                where = f"{place[0]} partition {place[1]}"
                self.stuck.append(f"{where} has stood at {at} of {end} for {now_s - seen_s:.0f} s")
            self.is_settled &= at == end
