"""Forks: question tails that share a generation's blocks and never change them. A call has none to share.

    generation  [prefix | record | record | record ...]
                                    ^ base
    fork                            [question | answer ...]

A fork has its own copy of the partly filled block at its base; the full blocks before it are shared, and so are those
of the question that somebody else has computed.
"""

from concurrent.futures import Future
from dataclasses import dataclass, field

from streamproc.answertypes import AnswerType
from streamproc.messages import Ask, AsOf, Query
from streamproc.state.blocks import name_of
from streamproc.state.generation import Generation
from streamproc.state.session import Session

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A question without a session: a prompt to be continued for whoever holds the future."""

    question: str
    max_tokens: int
    stop: tuple[str, ...] | None
    answer: AnswerType
    future: "Future[str]"


NOWHERE = AsOf("", -1, 0, 0, 0)  # what a call has seen


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a session, and what the answer will say of itself."""

    source: Query | Ask | Call
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
    def is_awaited(self) -> bool:
        """Somebody waits for just this answer."""
        return not isinstance(self.source, Query)

    @property
    def is_triggered(self) -> bool:
        """The log alone decides that this question is asked: no commit may pass it unanswered."""
        return isinstance(self.source, Query) and self.source.every is not None

    @property
    def is_due(self) -> bool:
        """It has to be answered by whoever owns the partition; the others are asked when there is time."""
        return self.is_ask or self.is_triggered


@dataclass(slots=True, eq=False)
class Fork:
    """One question being answered."""

    seq_id: int
    question: Question
    session: Session | None  # None: of a call
    generation: Generation
    base: int  # tokens of the generation that it sees
    asked_at: float  # clock, seconds
    started_at: float | None = None
    token_ids: list[int] = field(default_factory=list)  # tail, then answer
    num_computed: int = 0
    block_table: tuple[int, ...] = ()  # shared blocks, then its own
    text: str | None = None  # set once the answer is complete
    finished_at: float | None = None
    expected: Ids = ()  # the answer that this question had before
    seen: bytes | None = None  # newest tokens of the session, to look up words in
    guessed_at: int | None = None  # tokens of the answer once its newest draft was verified
    _names: list[bytes] = field(default_factory=list)
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
    def num_left(self) -> int:
        """Tokens that the longest answer still has."""
        return len(self.question.tail_ids) + self.question.max_tokens - self.num_tokens

    @property
    def num_own_tokens(self) -> int:
        """The question's, and those of the longest answer."""
        return len(self.question.tail_ids) + self.question.max_tokens

    @property
    def max_cells(self) -> int:
        """Position after the last cell it can ever write: the newest answer token is never computed."""
        return self.base + len(self.question.tail_ids) + self.question.max_tokens - 1

    def name(self, index: int, block_size: int) -> bytes:
        """Of the full block of this index (blocks.py), at or after the base and not beyond the question."""
        first = self.base // block_size
        while len(self._names) <= index - first:
            number = first + len(self._names)
            before = self._names[-1] if self._names else self.generation.name(first - 1, block_size)
            self._names.append(name_of(before, self.ids_at(number * block_size, (number + 1) * block_size)))
        return self._names[index - first]

    def ids_at(self, start: int, end: int) -> list[int]:
        """The tokens at these positions, the generation's too."""
        own = self.token_ids[max(0, start - self.base) : max(0, end - self.base)]
        return self.generation.token_ids[start : min(end, self.base)] + own

    def advance(self, num_tokens: int) -> None:
        self.num_computed += num_tokens
        assert self.num_computed <= self.num_tokens

    def rewind(self, position: int) -> None:
        """Nothing is computed from this position on."""
        self.num_computed = min(self.num_computed, max(position - self.base, 0))

    def start_over(self) -> None:
        """Nothing is computed, nothing answered."""
        self.token_ids = list(self.question.tail_ids)
        self.num_computed, self.guessed_at = 0, None

    def extend(self, token_id: int) -> None:
        """One more answer token."""
        self.token_ids.append(token_id)
