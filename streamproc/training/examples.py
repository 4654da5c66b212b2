"""Training examples in the product's own shape: one stream, and many questions forked off it at record boundaries.

    row        [<s> record record ... padding | question answer | question answer | padding | question answer ...]
    position    0 1 2 ...               0       base base+1 ...   base' base'+1 ...   0       base'' ...
    branch      0 0 0 ...              -1       1 1 1             2 2 2              -1       3 3 3
                stream_tokens                   bin of BIN tokens                             bin of BIN tokens

A question sees the stream up to its base and itself, as a fork of a session does, so one row trains dozens of answers
and the stream is computed once. No question crosses the border of a bin. Only answer tokens are learned.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from tokenizers import Tokenizer

from streamproc.market.questions import KINDS, UNKNOWN, Kind
from streamproc.market.rendering import market_model, read_rendering
from streamproc.market.synthetic import feed, instruments
from streamproc.market.tape import Tape, Tapes
from streamproc.prompts import record_template
from streamproc.records import FIELDS, Record

BIN = 64
FORKS_PER_BIN = 6     # drawn; what does not fit is left out
PADDING = -1
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Stage:
    """What the rows of a part of the training look like."""

    stream_tokens: int
    num_bins: int           # of questions
    rows: int               # in one batch
    most_symbols: int

    @property
    def length(self) -> int:
        return self.stream_tokens + self.num_bins * BIN


@dataclass(frozen=True, slots=True)
class Fork:
    """One question in a row: it sees the first `base` tokens of the stream."""

    kind: str
    base: int
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Batch:
    """[rows, length] each: token ids, positions, what each token must be followed by, and where it belongs."""

    ids: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    branches: np.ndarray
    bases: np.ndarray       # tokens of the stream that are seen
    kinds: np.ndarray       # index of the answer's kind, -1 elsewhere


NAMES = tuple(KINDS)


class Examples:
    """Rows drawn from a seed. `weights` says how often each kind of question is asked."""

    def __init__(self, tokenizer: Tokenizer, bos_id: int, weights: dict[str, float]) -> None:
        self.tokenizer = tokenizer
        self.bos_id = bos_id
        self.weights = weights
        prompts = read_rendering(market_model()).prompts
        self.lines = {kind: record_template(kind, prompts[kind]) for kind in FIELDS}
        self.question = prompts["question"]

    def batch(self, rng: random.Random, stage: Stage) -> Batch:
        rows = [self.row(rng, stage) for _ in range(stage.rows)]
        return Batch(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))

    def row(self, rng: random.Random, stage: Stage) -> list[np.ndarray]:
        """The arrays of one stream with its forks."""
        stream, ends, tapes_at = self._stream(rng, stage)
        page = Page(stage.length, stream)
        drawn = []
        for _ in range(stage.num_bins * FORKS_PER_BIN):
            place = rng.randrange(len(ends))
            drawn.append(self.fork(rng, ends[place], tapes_at[place]))
        tails = self._encode([self.question.format(question=fork.question) for fork in drawn])
        answers = self._encode([fork.answer + "\n" for fork in drawn])
        at = stage.stream_tokens
        for fork, tail, answer in zip(drawn, tails, answers, strict=True):
            size = len(tail) + len(answer) - 1
            if at % BIN + size > BIN:
                at += BIN - at % BIN
            if size <= BIN and at + size <= stage.length:
                page.put(at, fork, tail, answer)
                at += size
        return page.arrays()

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [found.ids for found in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _stream(self, rng: random.Random, stage: Stage) -> tuple[list[int], list[int], list[list[tuple[str, Tape]]]]:
        """Ids, the end of every record, and what the tapes say there."""
        found = instruments(rng, stage.most_symbols)
        source = feed(rng, found)
        records: list[Record] = [next(source) for _ in range(stage.stream_tokens // 9)]
        encoded = self._encode([self.lines[record.kind](record) for record in records])
        ids, ends, snapshots, tapes = [self.bos_id], [], [], Tapes()
        for record, line in zip(records, encoded, strict=True):
            if len(ids) + len(line) > stage.stream_tokens:
                break
            ids += line
            ends.append(len(ids))
            tapes.add(record)
            snapshots.append([(sym, snapshot(tape)) for sym, tape in tapes.items()])
        return ids, ends, snapshots

    def fork(self, rng: random.Random, base: int, tapes: Sequence[tuple[str, Tape]]) -> Fork:
        """A question about one symbol of the stream so far, and its true answer."""
        sym, tape = rng.choice(tapes)
        kind = KINDS[rng.choices(list(self.weights), list(self.weights.values()))[0]]
        if kind.is_about_quotes != (tape.last is None) and rng.random() < 0.97:
            about_quotes = tape.last is None or (tape.quote is not None and rng.random() < 0.3)
            kind = self._kind(rng, about_quotes and tape.quote is not None)
        level = draw_level(rng, tape) if kind.needs_level else ""
        named = sym if len(tapes) > 1 or rng.random() < 0.5 else ""
        return Fork(kind.name, base, kind.question(named, level), kind.oracle(tape, level) or UNKNOWN)

    def _kind(self, rng: random.Random, about_quotes: bool) -> Kind:
        weights = {name: w for name, w in self.weights.items() if KINDS[name].is_about_quotes == about_quotes}
        return KINDS[rng.choices(list(weights), list(weights.values()))[0]]


def snapshot(tape: Tape) -> Tape:
    copy = Tape()
    copy.prints, copy.quote = tape.prints.copy(), tape.quote
    return copy


def draw_level(rng: random.Random, tape: Tape) -> str:
    """A price to compare the last one with: mostly near it, sometimes equal, round, or far away."""
    if tape.last is None:
        return str(rng.randint(1, 100_000))
    px = tape.last.price
    exponent = px.as_tuple().exponent
    assert isinstance(exponent, int)
    tick = Decimal(1).scaleb(exponent)
    kind = rng.random()
    if kind < 0.1:
        return tape.last.px
    if kind < 0.3:
        return rng.choice(tape.prints).px
    if kind < 0.7:
        level = px + tick * int((1 + rng.expovariate(1)) * 10 ** rng.uniform(0, 3)) * rng.choice((-1, 1))
    elif kind < 0.9:
        level = round_to(px * Decimal(str(round(rng.uniform(0.9, 1.1), 4))), rng.randint(1, 4))
    else:
        level = round_to(px * Decimal(str(round(10 ** rng.uniform(-1, 1), 4))), rng.randint(1, 6))
    return format(level, "f") if level > 0 else tape.last.px


def round_to(value: Decimal, digits: int) -> Decimal:
    """So many significant digits, written without an exponent."""
    return Decimal(format(value, f".{digits}g")) if value else value


class Page:
    """The arrays of one row, being filled."""

    def __init__(self, length: int, stream: list[int]) -> None:
        self.ids, self.positions, self.bases = (np.zeros(length, np.int64) for _ in range(3))
        self.targets = np.full(length, IGNORED, np.int64)
        self.branches, self.kinds = (np.full(length, PADDING, np.int64) for _ in range(2))
        end = len(stream)
        self.ids[:end], self.positions[:end], self.branches[:end] = stream, np.arange(end), 0
        self._num_forks = 0

    def put(self, at: int, fork: Fork, tail: list[int], answer: list[int]) -> None:
        """Lay a question and its answer at this place; the answer's last token is only a target."""
        self._num_forks += 1
        tokens = tail + answer[:-1]
        place, learned = slice(at, at + len(tokens)), slice(at + len(tail) - 1, at + len(tokens))
        self.ids[place], self.positions[place] = tokens, fork.base + np.arange(len(tokens))
        self.branches[place], self.bases[place] = self._num_forks, fork.base
        self.targets[learned], self.kinds[learned] = answer, NAMES.index(fork.kind)

    def arrays(self) -> list[np.ndarray]:
        return [self.ids, self.positions, self.targets, self.branches, self.bases, self.kinds]
