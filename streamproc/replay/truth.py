"""What an answer must be: recomputed from nothing but the log, the question and the model, in one chunk."""

from collections.abc import Sequence
from dataclasses import dataclass

from streamproc.engine.build import Engine, stateless_answer
from streamproc.messages import Answer, Ask, Query
from streamproc.records import Record
from streamproc.state.ending import finished_text
from streamproc.state.facts import Facts


@dataclass(frozen=True, slots=True)
class Recomputed:
    """The question as rendered, and its answer."""

    question: str
    text: str


def recompute(
    engine: Engine, source: Query | Ask, session: str, records: Sequence[Record], num_records: int
) -> Recomputed:
    """Answer a question over `records`, those of the session from the answer's `from_offset` to its as-of offset.

    `num_records` counts all records of the session up to there, older generations included.
    """
    facts = Facts()
    for record in records:
        facts.update(record)
    renderer = engine.renderer
    question = facts.render(source.question, session, num_records)
    context = [token_id for ids in renderer.record_ids(records) for token_id in ids]
    ids = [*renderer.prefix_ids, *context, *renderer.tail_ids(question)]
    stop = renderer.stop if source.stop is None else source.stop
    answer_ids = stateless_answer(engine, ids, source.max_tokens, stop, source.answer)
    return Recomputed(question, finished_text(renderer, answer_ids, stop, source.max_tokens) or "")


def same(answer: Answer, truth: Recomputed) -> bool:
    """Whether an answer is what it must be, character for character."""
    return answer.question == truth.question and answer.text == truth.text
