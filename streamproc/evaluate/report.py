"""What came out: every question with its answer and the truth, and the shares that are right."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from streamproc.evaluate.plan import Inquiry, bound_of
from streamproc.market.questions import KINDS, Kind, decimal_of
from streamproc.messages import Answer

WIDTH = 8
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One question and what became of it. `text` None: refused, and `error` says why."""

    kind: str
    symbol: str
    session: str
    partition: int
    from_offset: int
    offset: int
    context_tokens: int
    has_hopped: bool
    question: str
    text: str | None
    truth: str
    is_right: bool
    is_read: bool       # whether the text holds an answer of the wanted type at all
    error: str | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What was evaluated, and on what."""

    model: str
    fingerprint: str
    feed: str
    session_by: str
    seed: int
    context_tokens: int
    sessions: int
    points: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Seen:
    """The context that an answer was given from."""

    from_offset: int
    num_tokens: int
    truth: str


def judge(inquiry: Inquiry, answer: Answer, seen: Seen) -> Outcome:
    """Hold an answer to the truth of what it has seen."""
    text = None if answer.error else answer.text
    is_read = text is not None and reads(inquiry.kind, text)
    is_right = is_read and text is not None and inquiry.kind.is_right(text, seen.truth)
    place = inquiry.place
    return Outcome(inquiry.kind.name, inquiry.sym, place.session, place.partition, seen.from_offset, place.offset,
                   seen.num_tokens, place.has_hopped, inquiry.words, text, seen.truth, is_right, is_read, answer.error)


def reads(kind: Kind, text: str) -> bool:
    """Whether a text is an answer of the kind's type, right or wrong; a number stands alone."""
    if kind.answer.type != "number":
        return kind.answer.value_of(text) is not None
    return decimal_of(text) is not None


@dataclass(frozen=True, slots=True)
class Report:
    """The facts, and all outcomes in the order in which they came."""

    facts: Facts
    outcomes: tuple[Outcome, ...]

    @property
    def overall(self) -> float:
        """To 4 places."""
        return share(self.outcomes) or 0.0

    def reaches(self, least: float) -> bool:
        """Whether at least this share is right, unrounded."""
        return sum(outcome.is_right for outcome in self.outcomes) >= least * len(self.outcomes)

    @property
    def by_question(self) -> dict[str, tuple[Outcome, ...]]:
        found = grouped(self.outcomes, lambda outcome: outcome.kind)
        return {kind: found[kind] for kind in KINDS if kind in found}

    @property
    def by_context(self) -> dict[int, tuple[Outcome, ...]]:
        """By the upper bound of the context's size."""
        return dict(sorted(grouped(self.outcomes, lambda outcome: bound_of(outcome.context_tokens)).items()))

    @property
    def first_error(self) -> str | None:
        return next((outcome.error for outcome in self.outcomes if outcome.error), None)

    def doc(self) -> dict[str, Any]:
        """For machines: shares from 0 to 1."""
        hopped = [outcome for outcome in self.outcomes if outcome.has_hopped]
        return {
            "overall": self.overall,
            "by_question": {kind: share(found) for kind, found in self.by_question.items()},
            "by_context": {str(bound): share(found) for bound, found in self.by_context.items()},
            "after_hop": {"asked": len(hopped), "share": share(hopped)},
            "asked": len(self.outcomes),
            "right": sum(outcome.is_right for outcome in self.outcomes),
            "unparsed": sum(not outcome.is_read for outcome in self.outcomes if outcome.error is None),
            "errors": sum(outcome.error is not None for outcome in self.outcomes),
            "first_error": self.first_error,
            **asdict(self.facts),
        }

    def text(self) -> str:
        """For people: a row for each kind of question, a column for each size of context, percent."""
        doc, bounds = self.doc(), list(self.by_context)
        rows = [["% right", *(f"<={bound}" for bound in bounds), "all", "n"]]
        rows += [self._row(kind, found, bounds) for kind, found in self.by_question.items()]
        rows += [self._row("all", self.outcomes, bounds)]
        rows += [["n", *(str(len(self.by_context[bound])) for bound in bounds), str(len(self.outcomes)), ""]]
        wide = max(len(row[0]) for row in rows)
        table = [row[0].ljust(wide) + "".join(cell.rjust(WIDTH) for cell in row[1:]) for row in rows]
        return "\n".join([*(row.rstrip() for row in table), "", *self._lines(doc)])

    @staticmethod
    def _row(name: str, found: Sequence[Outcome], bounds: Iterable[int]) -> list[str]:
        by_bound = grouped(found, lambda outcome: bound_of(outcome.context_tokens))
        cells = [percent(share(by_bound.get(bound, ()))) for bound in bounds]
        return [name, *cells, percent(share(found)), str(len(found))]

    def _lines(self, doc: dict[str, Any]) -> list[str]:
        facts, hopped = self.facts, doc["after_hop"]
        refusals = [f"refused: {self.first_error}"] if self.first_error else []
        return [
            f"{facts.model}, feed {facts.feed}: {percent(self.overall)} % of {doc['asked']} answers right, "
            f"{doc['unparsed']} not of the wanted type, {doc['errors']} refused",
            f"{facts.points} points in {facts.sessions} sessions, {hopped['asked']} questions after hops "
            f"({percent(hopped['share'])} % right), {facts.seconds:.1f} s",
            *refusals,
        ]


def share(outcomes: Sequence[Outcome]) -> float | None:
    """Of these, how many are right; None of none."""
    return round(sum(outcome.is_right for outcome in outcomes) / len(outcomes), 4) if outcomes else None


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def grouped(outcomes: Iterable[Outcome], key: Callable[[Outcome], Key]) -> dict[Key, tuple[Outcome, ...]]:
    """Outcomes by their key, the keys in the order in which they come first."""
    found: dict[Key, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(key(outcome), []).append(outcome)
    return {name: tuple(group) for name, group in found.items()}
