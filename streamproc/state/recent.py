"""The newest answer to each question of a session: what the same question is answered with at once while it holds, and
where it does not, the guess at the next answer.
"""

from typing import NamedTuple

from streamproc.answertypes import AnswerType
from streamproc.messages import Ask, AsOf, Query
from streamproc.state.fork import Fork, Question
from streamproc.state.session import Session

MAX_QUESTIONS = 256  # of a session


class Asked(NamedTuple):
    """What makes two questions the same, whoever asks."""

    question: str
    answer: AnswerType
    max_tokens: int
    stop: tuple[str, ...] | None


class Recent(NamedTuple):
    """An answer, without the session's context that it came from."""

    text: str
    answer_ids: tuple[int, ...]
    question: str  # rendered
    as_of: AsOf


def asked(source: Query | Ask) -> Asked:
    return Asked(source.question, source.answer, source.max_tokens, source.stop)


def remember(fork: Fork) -> None:
    """This fork has been answered."""
    question = fork.question
    if fork.session is None or fork.text is None or not isinstance(question.source, Query | Ask):
        return
    newest, key = fork.session.newest, asked(question.source)
    known = newest.pop(key, None)
    if known is None or known.as_of.offset <= question.as_of.offset:
        known = Recent(fork.text, tuple(fork.answer_ids), question.text, question.as_of)
    newest[key] = known
    if len(newest) > MAX_QUESTIONS:
        del newest[next(iter(newest))]


def expected_ids(session: Session | None, question: Question) -> tuple[int, ...]:
    """The tokens of the answer that this question had last; none where it was never asked."""
    if session is None or not isinstance(question.source, Query | Ask):
        return ()
    found: Recent | None = session.newest.get(asked(question.source))
    return found.answer_ids if found else ()


def fresh(session: Session, ask: Ask) -> Recent | None:
    """An answer that an ask can have at once: it has seen the offset that the ask insists on, or all that there is."""
    found: Recent | None = session.newest.get(asked(ask))
    if found is None:
        return None
    has_seen_all = found.as_of.offset == session.last_offset
    return found if has_seen_all or (ask.min_offset is not None and found.as_of.offset >= ask.min_offset) else None
