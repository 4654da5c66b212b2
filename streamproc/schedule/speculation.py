"""Guesses at answers, to be verified in one step: they save steps and change no token (Leviathan et al. 2023, greedy).

Two sources: the answer that the same question had before, and, for text, what followed the newest words when they came
up before in the session (prompt lookup; Saxena 2023). How many tokens are guessed follows from what a guess costs, what
a step costs, how many share it, and how often this question's guesses have held.
"""

import math
from array import array

from streamproc.schedule.habits import Habits
from streamproc.schedule.steptime import StepTimes
from streamproc.state.fork import Fork

FORCED_OFTEN = 0.2  # tokens without a choice after each that is sampled
MAX_DRAFT = 64
GRAM = 3  # tokens that must have come up before
MOST_LOOKED_BACK = 8_192  # tokens


class Speculation:
    """What to guess, and how guesses have fared."""

    def __init__(self, times: StepTimes) -> None:
        self.times = times
        self.is_on = True
        self._habits = Habits()

    def is_one_token_likely(self, fork: Fork, num_sharing: int) -> bool:
        """Whether after the token that is on its way this fork goes on by just that: with no draft, and nothing that
        its type leaves no choice about. What the token itself would bring to be looked up is found a token later, but
        soon after a draft, where it is likely.
        """
        if fork.question.grammar and self._habits.of(fork).forced > FORCED_OFTEN:
            return False
        is_after_draft = fork.guessed_at is not None and len(fork.answer_ids) < fork.guessed_at + GRAM
        return not (is_after_draft and self._is_looked_up(fork)) and not self.guess(fork, num_sharing)

    def guess(self, fork: Fork, num_sharing: int) -> tuple[int, ...]:
        """Tokens that may follow all that is certain of this fork, as many as are worth it in a step that so many
        share.
        """
        said = len(fork.answer_ids)
        most = min(fork.question.max_tokens - said - 1, MAX_DRAFT)
        if not self.is_on or most < 1:
            return ()
        most = min(most, self.cap(fork, num_sharing))
        return (self._before(fork, said) or self._looked_up(fork, said))[:most] if most else ()

    def cap(self, fork: Fork, num_sharing: int) -> int:
        """Tokens worth guessing: the n-th saves a part of a step if all before it hold too, and costs a row."""
        if not self.times.is_known:
            return MAX_DRAFT
        row = self.times.per_draft_token(fork.base)
        saved = self.times.per_decoding(fork.base, num_sharing)
        holds = self._habits.of(fork).holds
        if row <= 0 or saved <= 0 or holds >= 1:
            return MAX_DRAFT
        return min(MAX_DRAFT, max(0, int(math.log(row / saved) / math.log(holds))))

    def settle(self, fork: Fork, num_guessed: int, num_held: int, num_forced: int) -> None:
        """Of the tokens that were guessed so many held, and so many came without a choice after the sample; they are
        not the fork's yet.
        """
        if num_guessed or fork.question.grammar:
            habit = self._habits.kept(fork)
            for i in range(min(num_held + 1, num_guessed)):
                habit.guessed(i < num_held)
            habit.sampled(num_forced)
        if num_guessed:
            fork.guessed_at = len(fork.answer_ids) + num_held + 1

    def ended(self, fork: Fork) -> None:
        """Its answer is complete."""
        self._habits.kept(fork).ended(len(fork.answer_ids))

    def ends_at(self, fork: Fork, num_tokens: int) -> float:
        """The chance that its answer, once it has so many tokens, is complete."""
        return self._habits.of(fork).ends_at(num_tokens)

    @staticmethod
    def _before(fork: Fork, said: int) -> tuple[int, ...]:
        """What came next in the answer that this question had before; its last token is what the step samples."""
        expected = fork.expected
        return expected[said:-1] if expected[:said] == tuple(fork.answer_ids) else ()

    def _looked_up(self, fork: Fork, said: int) -> tuple[int, ...]:
        return look_up(fork, MAX_DRAFT) if self._is_looked_up(fork) and said >= GRAM else ()

    @staticmethod
    def _is_looked_up(fork: Fork) -> bool:
        return bool(fork.question.source.answer.type == "text")


def look_up(fork: Fork, most: int) -> tuple[int, ...]:
    """What followed the newest tokens where they were last, in what the fork sees of its session."""
    start = max(0, fork.base - MOST_LOOKED_BACK)
    if fork.seen is None:
        fork.seen = array("i", fork.generation.token_ids[start : fork.base]).tobytes()
    gram = array("i", fork.token_ids[-GRAM:]).tobytes()
    place = fork.seen.rfind(gram)
    while place >= 0 and place % 4:
        place = fork.seen.rfind(gram, 0, place + len(gram) - 1)
    if place < 0:
        return ()
    first = place + len(gram)
    return tuple(array("i", fork.seen[first : first + 4 * most]))
