"""What the next step computes: frozen values, decided by the scheduler and carried out by a runner."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from streamproc.errors import StreamprocError

STUCK = -1  # in place of a token: what its constraint allows here is more than can be found out
UNTOLD = -2  # in place of a chunk's only token: the one that the plan before this one samples for its sequence


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer's tokens may be, and how far it has come."""

    grammar: str  # as answertypes writes it
    answer_ids: tuple[int, ...] = ()  # the answer's tokens before the chunk's draft and its samples; not an untold one


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence that this step computes."""

    seq_id: int
    start: int  # position of the first token; the cells before it are already written
    token_ids: tuple[int, ...]
    block_table: tuple[int, ...]  # block i holds positions [i * block_size, (i + 1) * block_size)
    num_samples: int = 0  # greedy tokens to return: those that follow each of the last so many tokens of the chunk
    after: int | None = None  # an earlier chunk's sequence, of this plan, whose cells this one reads
    constraint: Constraint | None = None  # greedy among the tokens that it allows

    @property
    def is_untold(self) -> bool:
        """Whether its token is known by the time that it is computed, and not earlier."""
        return self.token_ids == (UNTOLD,)

    @property
    def draft(self) -> tuple[int, ...]:
        """The tokens at the end that are only guessed: each has to be the greedy one after those before it."""
        return self.token_ids[len(self.token_ids) - self.num_samples + 1 :] if self.num_samples else ()


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: saves, loads and copies of whole blocks, in this order; then the chunks: no two write one block."""

    copies: tuple[tuple[int, int], ...]  # (source block, destination block)
    chunks: tuple[Chunk, ...]
    saves: tuple[tuple[int, bytes], ...] = ()  # (block, name): bytes to copy out of the pool
    loads: tuple[tuple[int, Any], ...] = ()  # (block, bytes as a flight has saved them): to copy into the pool

    @property
    def num_tokens(self) -> int:
        return sum(len(chunk.token_ids) for chunk in self.chunks)


def told(plan: Plan, sampled: Mapping[int, Sequence[int]]) -> Plan:
    """The plan with its tokens; sampled: what the plan before it gave. Raises StreamprocError where that is missing."""
    if not any(chunk.is_untold for chunk in plan.chunks):
        return plan
    if not all(sampled.get(chunk.seq_id) for chunk in plan.chunks if chunk.is_untold):
        raise StreamprocError("the step that this one goes on from was not carried out")
    chunks = (_told(chunk, sampled[chunk.seq_id][0]) if chunk.is_untold else chunk for chunk in plan.chunks)
    return replace(plan, chunks=tuple(chunks))


def _told(chunk: Chunk, token_id: int) -> Chunk:
    if token_id == STUCK:  # its answer is over, so any token does
        return replace(chunk, token_ids=(0,), constraint=None)
    constraint = chunk.constraint
    if constraint:
        constraint = replace(constraint, answer_ids=(*constraint.answer_ids, token_id))
    return replace(chunk, token_ids=(token_id,), constraint=constraint)


def num_equal(draft: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens of a draft are those that follow."""
    return next((i for i, (guess, token) in enumerate(zip(draft, tokens, strict=False)) if guess != token), len(draft))


def verified(draft: Sequence[int], samples: Sequence[int]) -> tuple[int, ...]:
    """The samples that are greedy tokens, given the tokens that followed each draft token: up to the first surprise."""
    return tuple(samples[: num_equal(draft, samples) + 1])


def verify(chunks: Iterable[Chunk], samples: Iterator[int]) -> dict[int, tuple[int, ...]]:
    """All samples of a step, in the order of its chunks -> what a flight returns."""
    return {
        chunk.seq_id: verified(chunk.draft, [next(samples) for _ in range(chunk.num_samples)])
        if chunk.num_samples > 1
        else (next(samples),)
        for chunk in chunks
        if chunk.num_samples
    }


class Flight(Protocol):
    """A plan on the device."""

    def wait(self) -> dict[int, tuple[int, ...]]:
        """Block until the step is done -> for every chunk with samples, by sequence, the tokens that follow what is
        certain in it: those of its draft that held, one more, and then any that its constraint leaves no choice about.
        The last may be STUCK.
        """
        ...

    def is_done(self, timeout_s: float) -> bool:
        """Wait for the step, but not longer than this -> whether it has ended."""
        ...

    @property
    def seconds(self) -> float:
        """How long the step has taken, once it is done."""
        ...

    @property
    def queued_at(self) -> float:
        """When the device could begin with it, by time.perf_counter, once it is done."""
        ...

    @property
    def ended_at(self) -> float:
        """When it had computed, likewise."""
        ...

    @property
    def saved(self) -> dict[bytes, Any]:
        """By name, the bytes of the plan's saves, once it is done."""
        ...


class Runner(Protocol):
    """Computes plans; the engine's on a model, a fake one in tests."""

    def launch(self, plan: Plan) -> Flight:
        """Start a step and return at once; plans are carried out in their order, at most two are out."""
        ...
