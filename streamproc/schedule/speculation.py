"""Guesses at answers, to be verified in one step: they save steps and change no token (Leviathan et al. 2023, greedy).

Two sources: the answer that the same question had before, and, for text, what followed the newest words when they came
up before in the session (prompt lookup; Saxena 2023). How many tokens are guessed follows from what a guess costs, what
a step costs, how many share it, and how often this question's guesses have held.
"""

import math
from array import array
from collections import OrderedDict

from streamproc.schedule.steptime import StepTimes
from streamproc.state.fork import Fork

HOLDS = 0.8  # of a question that has not been asked before
HOLDS_LEAST = 0.05
MEMORY = 0.9  # weight of what was known at each verified token
MAX_QUESTIONS = 4_096
MAX_DRAFT = 64
GRAM = 3  # tokens that must have come up before
MOST_LOOKED_BACK = 8_192  # tokens


class Speculation:
    """What to guess, and how guesses have fared."""

    def __init__(self, times: StepTimes) -> None:
        self.times = times
        self.is_on = True
        self._holds: OrderedDict[str, float] = OrderedDict()  # by question template

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
        holds = self._holds.get(fork.question.source.question, HOLDS)
        if row <= 0 or saved <= 0 or holds >= 1:
            return MAX_DRAFT
        return min(MAX_DRAFT, max(0, int(math.log(row / saved) / math.log(holds))))

    def settle(self, fork: Fork, num_guessed: int, num_held: int) -> None:
        """So many of the tokens that were guessed did hold."""
        if not num_guessed:
            return
        key = fork.question.source.question
        holds = self._holds.get(key, HOLDS)
        for i in range(min(num_held + 1, num_guessed)):
            holds = MEMORY * holds + (1 - MEMORY) * (i < num_held)
        self._holds[key] = max(holds, HOLDS_LEAST)
        self._holds.move_to_end(key)
        if len(self._holds) > MAX_QUESTIONS:
            self._holds.popitem(last=False)

    @staticmethod
    def _before(fork: Fork, said: int) -> tuple[int, ...]:
        """What came next in the answer that this question had before; its last token is what the step samples."""
        expected = fork.expected
        return expected[said:-1] if expected[:said] == tuple(fork.answer_ids) else ()

    @staticmethod
    def _looked_up(fork: Fork, said: int) -> tuple[int, ...]:
        if fork.question.source.answer.type != "text" or said < GRAM:
            return ()
        return look_up(fork, MAX_DRAFT)


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
