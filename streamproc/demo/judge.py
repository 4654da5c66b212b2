"""Holds every answer of a run against the truth: what the oracle of its question says of the records it has seen.

Which question it was is read back out of the answer's own text, so whoever asks in the words of the kinds is judged,
and nobody else. An answer waits until the log has been read up to it; one that the records cannot tell is not judged.
"""

import re
import string
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from streamproc.market.questions import Kind
from streamproc.market.tape import Tape, Tapes
from streamproc.messages import Answer
from streamproc.records import Record

PLACES = {"of": r"(?: of (?P<of>.+))?", "level": r"(?P<level>-?[0-9]+(?:\.[0-9]+)?)"}
AGAIN = {"of": r"(?: of .+)?", "level": r"-?[0-9]+(?:\.[0-9]+)?"}


class Seen(NamedTuple):
    """A record as it lies in the log."""

    partition: int
    offset: int
    record: Record


class Inquiry(NamedTuple):
    """A question in the words of a kind; no symbol where it names none."""

    kind: Kind
    sym: str
    level: str


class Judged(NamedTuple):
    """An answer, the true one beside it, and whether they say the same."""

    inquiry: Inquiry
    answer: Answer
    truth: str
    is_right: bool

    def __str__(self) -> str:
        as_of = self.answer.as_of
        assert as_of is not None
        name = f"{self.inquiry.kind.name} of {self.answer.session} as of {as_of.partition}:{as_of.offset}"
        return f"{name} is {self.answer.text!r}, true is {self.truth!r}"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How many answers were judged, how many of them were right, and the first that was not."""

    num_judged: int
    num_right: int
    first_wrong: str | None = None

    @property
    def share(self) -> float | None:
        """Of right answers, to 4 places; None where there was nothing to judge."""
        return round(self.num_right / self.num_judged, 4) if self.num_judged else None


class Stretch:
    """The tapes of one session, moved along its log as answers come; starts anew at a hop or a step back."""

    def __init__(self) -> None:
        self._from_offset = -1
        self._next = 0
        self._tapes = Tapes()

    def tapes(self, seen: Sequence[Seen], from_offset: int, offset: int) -> Tapes:
        """Those of the records from `from_offset` to `offset`, both included."""
        end = bisect_right(seen, offset, key=_offset)
        if from_offset != self._from_offset or end < self._next:
            self._from_offset, self._next = from_offset, bisect_left(seen, from_offset, key=_offset)
            self._tapes = Tapes()
        self._tapes.update_all(item.record for item in islice(seen, self._next, end))
        self._next = max(self._next, end)
        return self._tapes


class Judge:
    """Takes answers in any order, each once, and judges those whose records have been read."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self.judged: dict[str, Judged] = {}  # by the answer's id
        self._forms = tuple((kind, form_of(kind.words)) for kind in kinds)
        self._taken: set[str] = set()
        self._waiting: list[tuple[Inquiry, Answer]] = []
        self._stretches: dict[str, Stretch] = {}
        self._num_right = 0

    def accuracy(self) -> Accuracy:
        first = next((str(judged) for judged in self.judged.values() if not judged.is_right), None)
        return Accuracy(len(self.judged), self._num_right, first)

    def take(self, answer: Answer) -> None:
        """An answer that has come; `settle` judges it."""
        inquiry = self.inquiry(answer.question)
        if inquiry and answer.as_of and answer.text is not None and answer.id not in self._taken:
            self._taken.add(answer.id)
            self._waiting.append((inquiry, answer))

    def settle(self, log: Mapping[str, Sequence[Seen]]) -> None:
        """Judge what can be judged with the log as far as it has been read."""
        waiting, self._waiting = self._waiting, []
        for inquiry, answer in waiting:
            seen = log.get(answer.session, ())
            if not seen or answer.as_of is None or seen[-1].offset < answer.as_of.offset:
                self._waiting.append((inquiry, answer))
                continue
            tapes = self._stretches.setdefault(answer.session, Stretch()).tapes(
                seen, answer.as_of.from_offset, answer.as_of.offset
            )
            self._judge(inquiry, answer, tapes)

    def inquiry(self, question: str) -> Inquiry | None:
        """The question of a kind that these words are; None where they are no kind's."""
        for kind, form in self._forms:
            if found := form.fullmatch(question):
                places = found.groupdict()
                return Inquiry(kind, places.get("of") or "", places.get("level") or "")
        return None

    def _judge(self, inquiry: Inquiry, answer: Answer, tapes: Tapes) -> None:
        tape = tape_of(tapes, inquiry.sym)
        truth = inquiry.kind.oracle(tape, inquiry.level) if tape else None
        if truth is not None:
            is_right = inquiry.kind.is_right(answer.text or "", truth)
            self._num_right += is_right
            self.judged[answer.id] = Judged(inquiry, answer, truth, is_right)


def tape_of(tapes: Tapes, sym: str) -> Tape | None:
    """The symbol's tape, or that of the only one where none is named."""
    if sym:
        return tapes.get(sym)
    return next(iter(tapes.values())) if len(tapes) == 1 else None


def form_of(words: str) -> re.Pattern[str]:
    """What a question in these words looks like once its places are filled."""
    form, places = "", dict(PLACES)
    for text, name, _, _ in string.Formatter().parse(words):
        form += re.escape(text)
        if name is not None:
            form += places.pop(name, AGAIN[name])
    return re.compile(form)


def _offset(seen: Seen) -> int:
    return seen.offset
