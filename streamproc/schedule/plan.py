"""What the next step computes: frozen values, decided by the scheduler and carried out by a runner."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence that this step computes."""

    seq_id: int
    start: int  # position of the first token; the cells before it are already written
    token_ids: tuple[int, ...]
    block_table: tuple[int, ...]  # block i holds positions [i * block_size, (i + 1) * block_size)
    sample: bool  # also return the greedy token that follows the last one


@dataclass(frozen=True, slots=True)
class Plan:
    """One step. Copies are made before the chunks; no two chunks write the same block."""

    copies: tuple[tuple[int, int], ...]  # (source block, destination block), whole blocks
    chunks: tuple[Chunk, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(chunk.token_ids) for chunk in self.chunks)


class Flight(Protocol):
    """A plan on the device."""

    def wait(self) -> dict[int, int]:
        """Block until the step is done -> the next token id of every sequence that asked to sample."""
        ...


class Runner(Protocol):
    """Computes plans; the engine's on a model, a fake one in tests."""

    def launch(self, plan: Plan) -> Flight:
        """Start a step and return at once; at most one flight is out at a time."""
        ...
