"""Holds answers of a run against the truth: the same question asked from nothing, of the records that the log holds."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from streamproc.config import Config
from streamproc.demo.judge import Seen
from streamproc.demo.play import Asked
from streamproc.demo.watch import Watch
from streamproc.engine.build import Engine, build_engine
from streamproc.messages import Answer, Ask, Query
from streamproc.replay.truth import recompute

SAMPLE = 16
SEED = 7


@dataclass(frozen=True, slots=True)
class Claim:
    """An answer and what it answers."""

    source: Query | Ask
    answer: Answer


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the comparison."""

    num_checked: int
    differences: tuple[str, ...]
    can_be_exact: bool  # whether this device promises equal bits at all

    @property
    def exact(self) -> bool:
        return self.num_checked > 0 and not self.differences


def verify(config: Config, watch: Watch, asked: Sequence[Asked], queries: Iterable[Query]) -> Verdict:
    """Recompute a sample of this run's answers statelessly and compare."""
    claims = sample(claims_of(watch, asked, queries))
    engine = build_engine(config)
    try:
        found = [difference(engine, claim, watch.log) for claim in claims]
        return Verdict(len(claims), tuple(text for text in found if text), engine.runner.exact)
    finally:
        engine.close()


def claims_of(watch: Watch, asked: Sequence[Asked], queries: Iterable[Query]) -> list[Claim]:
    """All answers of this run whose question is known word by word."""
    known = {(query.id, query.version): query for query in queries}
    flash = (received.answer for received in watch.flash if received.answer.error is None)
    named = ((known.get((answer.query_id or "", answer.query_version or "")), answer) for answer in flash)
    return [Claim(query, answer) for query, answer in named if query] + [Claim(a.ask, a.answer) for a in asked]


def sample(claims: Sequence[Claim]) -> list[Claim]:
    """A few, chosen by chance that is the same in every run; the newest ad-hoc answer is always among them."""
    asks = [claim for claim in claims if isinstance(claim.source, Ask)][-1:]
    others = [claim for claim in claims if claim not in asks]
    return asks + random.Random(SEED).sample(others, min(SAMPLE - len(asks), len(others)))


def difference(engine: Engine, claim: Claim, log: Mapping[str, Sequence[Seen]]) -> str | None:
    """What differs between an answer and its recomputation, in one line; None where nothing does."""
    answer, as_of = claim.answer, claim.answer.as_of
    assert as_of is not None
    seen = [item for item in log[answer.session] if item.offset <= as_of.offset]
    records = [item.record for item in seen if item.offset >= as_of.from_offset]
    truth = recompute(engine, claim.source, answer.session, records, len(seen))
    name = f"{answer.query_id or 'ask'} of {answer.session} as of {as_of.partition}:{as_of.offset}"
    pairs = (
        ("model", answer.model, engine.fingerprint),
        ("question", answer.question, truth.question),
        ("text", answer.text, truth.text),
    )
    wrong = next(((what, said, true) for what, said, true in pairs if said != true), None)
    return wrong and f"{name}: its {wrong[0]} is {wrong[1]!r}, recomputed {wrong[2]!r}"
