"""Forks: question tails that share a generation's blocks and never change them.

    generation  [prefix | record | record | record ...]
                                    ^ base
    fork                            [question | answer ...]

A fork has its own copy of the partly filled block at its base; the full blocks before it are shared.
"""

from dataclasses import dataclass, field

from streamproc.messages import Ask, AsOf, Query
from streamproc.state.session import Generation, Session


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a session, and what the answer will say of itself."""

    source: Query | Ask
    session: str
    text: str  # rendered
    tail_ids: tuple[int, ...]
    max_tokens: int
    stop: tuple[str, ...]
    as_of: AsOf
    grammar: str | None = None  # of its answer; None where any text may be written

    @property
    def is_ask(self) -> bool:
        return isinstance(self.source, Ask)

    @property
    def is_triggered(self) -> bool:
        """The log alone decides that this question is asked: no commit may pass it unanswered."""
        return isinstance(self.source, Query) and self.source.every is not None


@dataclass(slots=True, eq=False)
class Fork:
    """One question being answered."""

    seq_id: int
    question: Question
    session: Session
    generation: Generation
    base: int  # tokens of the generation that it sees
    asked_at: float  # clock, seconds
    started_at: float | None = None
    token_ids: list[int] = field(default_factory=list)  # tail, then answer
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)  # shared blocks, then its own
    text: str | None = None  # set once the answer is complete
    finished_at: float | None = None
    error: str | None = None  # why it cannot be answered

    def __post_init__(self) -> None:
        self.token_ids.extend(self.question.tail_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def answer_ids(self) -> list[int]:
        return self.token_ids[len(self.question.tail_ids) :]

    @property
    def is_decoding(self) -> bool:
        return self.num_tokens > len(self.question.tail_ids)

    @property
    def max_cells(self) -> int:
        """Position after the last cell it can ever write: the newest answer token is never computed."""
        return self.base + len(self.question.tail_ids) + self.question.max_tokens - 1

    def advance(self, num_tokens: int) -> None:
        self.num_computed += num_tokens
        assert self.num_computed <= self.num_tokens

    def extend(self, token_id: int) -> None:
        """One more answer token."""
        self.token_ids.append(token_id)
