"""Bytes that must be read or written, and operations that must be done, whoever does them: the one place where they are
counted. A multiply-add is two operations; what is kept in a cache of the chip from one use to the next is not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

FP32 = 4


@dataclass(frozen=True, slots=True)
class Cost:
    """`bytes` to and from the device's memory; `flops` of matrix products."""

    bytes: float
    flops: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.bytes + other.bytes, self.flops + other.flops)

    def seconds(self, ceilings: "Ceilings") -> float:
        """At the machine's measured ceilings, the longer of the two."""
        return max(self.bytes / ceilings.bytes_per_s, self.flops / ceilings.flops_per_s)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this machine reaches: measured, not from its data sheet."""

    bytes_per_s: float      # of the device's memory, the better of reading and copying
    flops_per_s: float      # of a large product in the model's dtype
    to_device: float        # bytes/s from pinned memory
    to_host: float


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder with gated MLPs."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    itemsize: int = 2       # bytes of a weight, and of a number between two layers
    kv_itemsize: int = 2    # bytes of a number in the KV pool
    scale_bytes: int = 0    # of a cell's head

    @property
    def products(self) -> tuple[tuple[str, int, int], ...]:
        """Of a layer: name, columns, depth."""
        return (("qkv", (self.heads + 2 * self.kv_heads) * self.head_dim, self.hidden),
                ("output", self.hidden, self.heads * self.head_dim),
                ("gate_up", 2 * self.intermediate, self.hidden),
                ("down", self.hidden, self.intermediate))

    @property
    def layer_weights(self) -> int:
        """Parameters of the products of all layers."""
        return self.layers * sum(columns * depth for _, columns, depth in self.products)

    @property
    def head_weights(self) -> int:
        return self.vocab * self.hidden

    @property
    def norm_bytes(self) -> int:
        """Two a layer and the last, as the kernels read them: in float32."""
        return (2 * self.layers + 1) * self.hidden * FP32

    @property
    def weight_bytes(self) -> int:
        """Read by every step that samples: all but the embedding."""
        return (self.layer_weights + self.head_weights) * self.itemsize + self.norm_bytes

    @property
    def kv_bytes(self) -> int:
        """Of one token."""
        return 2 * self.layers * self.kv_heads * (self.head_dim * self.kv_itemsize + self.scale_bytes)


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive tokens of a sequence in a step.

    shared: of the cells before them, how many another entry of the step has read already
    """

    start: int
    count: int
    samples: int = 0
    shared: int = 0

    @property
    def seen(self) -> int:
        """Keys that the rows see, all together."""
        return self.count * self.start + self.count * (self.count + 1) // 2


def step(shape: Shape, rows: Sequence[Rows]) -> Cost:
    """Of one step: weights once, every sequence's cells once, new cells written, the embedding's rows read."""
    num_rows, num_samples = sum(each.count for each in rows), sum(each.samples for each in rows)
    read = sum(each.start - each.shared for each in rows)
    head = shape.head_weights if num_samples else 0
    moved = (shape.layer_weights + head + num_rows * shape.hidden) * shape.itemsize + shape.norm_bytes
    flops = 2 * num_rows * shape.layer_weights + 2 * num_samples * head
    flops += 4 * shape.layers * shape.heads * shape.head_dim * sum(each.seen for each in rows)
    return Cost(moved + (read + num_rows) * shape.kv_bytes, flops)


def question_steps(context: int, question: int, answer: int) -> list[list[Rows]]:
    """The steps of a question and its answer after a kept context; the answer's last token is not computed."""
    return [[Rows(context, question, 1)], *([Rows(context + question + i, 1, 1)] for i in range(answer - 1))]


def total_seconds(shape: Shape, steps: Sequence[Sequence[Rows]], ceilings: Ceilings) -> float:
    """The sum of the steps' floors: one begins when the other has ended."""
    return sum(step(shape, rows).seconds(ceilings) for rows in steps)


def product(rows: int, columns: int, depth: int, itemsize: int) -> Cost:
    """x [rows, depth] times weights [columns, depth]."""
    return Cost((rows * depth + columns * depth + rows * columns) * itemsize, 2 * rows * columns * depth)


def attention(shape: Shape, rows: Sequence[Rows]) -> Cost:
    """Of one layer: queries read, cells read once, results written."""
    num_rows = sum(each.count for each in rows)
    cells = sum(each.start + each.count - each.shared for each in rows)
    width = shape.heads * shape.head_dim
    return Cost(2 * num_rows * width * shape.itemsize + cells * shape.kv_bytes / shape.layers,
                4 * width * sum(each.seen for each in rows))
