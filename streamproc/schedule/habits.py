"""What is known of a question's answers from those before it: they decide what is tried, never what is answered."""

from collections import OrderedDict
from dataclasses import dataclass, field

from streamproc.state.fork import Fork

HOLDS = 0.8  # of a question that has not been asked before
HOLDS_LEAST = 0.05
ENDS, ENDS_WEIGHT = 1 / 8, 0.5  # chance that a token is the last, where nothing is known; in answers that it counts for
MEMORY = 0.9  # weight of what was known, at each verified token, each step's sample, each answer
FORGOTTEN = 0.01
MAX_QUESTIONS = 4_096


@dataclass(slots=True)
class Habit:
    """Of one question: the share of its guesses that hold, how many tokens come without a choice with each that is
    sampled (1 until something is known), and how many tokens its answers have.
    """

    holds: float = HOLDS
    forced: float = 1.0
    _lengths: dict[int, float] = field(default_factory=dict)  # -> answers, older ones count less and less

    def guessed(self, does_hold: bool) -> None:
        self.holds = max(MEMORY * self.holds + (1 - MEMORY) * does_hold, HOLDS_LEAST)

    def sampled(self, num_forced: int) -> None:
        """A token, and after it so many that its type left no choice about."""
        self.forced = MEMORY * self.forced + (1 - MEMORY) * num_forced

    def ended(self, num_tokens: int) -> None:
        """An answer of so many tokens."""
        older = {length: MEMORY * weight for length, weight in self._lengths.items() if MEMORY * weight > FORGOTTEN}
        self._lengths = {**older, num_tokens: older.get(num_tokens, 0.0) + 1.0}

    def ends_at(self, num_tokens: int) -> float:
        """The chance that an answer which comes to so many tokens ends there."""
        reached = sum(weight for length, weight in self._lengths.items() if length >= num_tokens)
        return (self._lengths.get(num_tokens, 0.0) + ENDS * ENDS_WEIGHT) / (reached + ENDS_WEIGHT)


class Habits:
    """Of the questions of late, by their templates; all prompts without a session count as one."""

    def __init__(self) -> None:
        self._habits: OrderedDict[str, Habit] = OrderedDict()

    def of(self, fork: Fork) -> Habit:
        """To be read."""
        return self._habits.get(_key(fork)) or Habit()

    def kept(self, fork: Fork) -> Habit:
        """To be changed."""
        key = _key(fork)
        habit = self._habits.setdefault(key, Habit())
        self._habits.move_to_end(key)
        if len(self._habits) > MAX_QUESTIONS:
            self._habits.popitem(last=False)
        return habit


def _key(fork: Fork) -> str:
    return fork.question.source.question if fork.session else ""
