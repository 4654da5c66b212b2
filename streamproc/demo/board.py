"""What the demo shows while it runs: one line of numbers, and the newest answer of every question and session."""

from dataclasses import dataclass

from streamproc.demo.watch import ASK, Watch


@dataclass(frozen=True, slots=True)
class Row:
    """The newest answer of one question about one session."""

    session: str
    query: str
    text: str
    truth: str  # empty where the answer is not judged
    is_right: bool | None  # None: not judged
    as_of: str  # partition:offset
    age_s: float


@dataclass(frozen=True, slots=True)
class Board:
    """One picture of a running demo."""

    header: str
    rows: tuple[Row, ...]


def board(watch: Watch, playing_s: float, now_ms: int) -> Board:
    """The picture at this moment; `playing_s` seconds into the play."""
    return Board(header(watch, playing_s), rows(watch, now_ms))


def header(watch: Watch, playing_s: float) -> str:
    rate = watch.num_records / max(playing_s, 0.001)
    fresh = watch.freshness_ms()
    parts = (
        f"{watch.num_records:,} records",
        f"{rate:,.1f} records/s",
        f"{len(watch.sessions())} sessions",
        f"{watch.num_answers:,} answers",
        f"{watch.num_answer_tokens:,} answer tokens",
        f"freshness p50 {'-' if fresh is None else f'{fresh:.0f} ms'}",
    )
    accuracy = watch.judge.accuracy()
    right = (f"{accuracy.num_right:,} of {accuracy.num_judged:,} right",) if accuracy.num_judged else ()
    return " | ".join((*parts, *right))


def rows(watch: Watch, now_ms: int) -> tuple[Row, ...]:
    """By session and question; ad-hoc questions last."""
    found = []
    for (session, query), received in sorted(watch.newest.items(), key=lambda item: (item[0][1] == ASK, item[0])):
        as_of = received.answer.as_of
        assert as_of is not None
        text = printable(received.answer.text or received.answer.error or "")
        age_s = max(0.0, (now_ms - received.timestamp_ms) / 1000)
        judged = watch.judge.judged.get(received.answer.id)
        name = f"{ASK} {judged.inquiry.kind.name}" if judged and query == ASK else query
        truth, is_right = (judged.truth, judged.is_right) if judged else ("", None)
        found.append(Row(session, name, text, truth, is_right, f"{as_of.partition}:{as_of.offset}", age_s))
    return tuple(found)


def printable(text: str) -> str:
    """The text on one line, with what a terminal might act on written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
