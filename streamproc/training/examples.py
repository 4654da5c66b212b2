"""Training examples in the product's own shape: one stream, and many questions forked off it at record boundaries.

    row        [<s> record record ... padding | question answer | question answer | padding | question answer ...]
    position    0 1 2 ...               0       base base+1 ...   base' base'+1 ...   0       base'' ...
    branch      0 0 0 ...              -1       1 1 1             2 2 2              -1       3 3 3
                units of UNIT tokens            bin of the first unit                         bin of the second unit

A question sees the stream up to its base and itself, as a fork of a session does, so one row trains dozens of answers
and the stream is computed once. Every unit of the stream has a bin of as many tokens, for questions asked within that
unit; none crosses the border of its bin. Learned are the answers, and in the stream the number of each trade: who
foretells `BTCUSDT#8` has found BTCUSDT#7, which is what a question about BTCUSDT needs.
"""

import bisect
import random
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from streamproc.answertypes import UNKNOWN
from streamproc.market.levels import draw_level
from streamproc.market.questions import KINDS, Kind
from streamproc.market.rendering import market_model, read_rendering
from streamproc.market.synthetic import feed, instruments
from streamproc.market.tape import Tape, Tapes
from streamproc.past import Past
from streamproc.prompts import Line
from streamproc.records import FIELDS, Quote, Record
from streamproc.training.hints import IGNORED, LAGS, STEPS, orders, pointer, signs, steps

UNIT = 64
FORKS_PER_UNIT = 6    # drawn; what does not fit the unit's bin is left out
PADDING = -1


@dataclass(frozen=True, slots=True)
class Stage:
    """What the rows of a batch look like: a stream, and as many tokens of questions."""

    stream_tokens: int      # whole units
    rows: int               # in one batch
    most_symbols: int

    @property
    def length(self) -> int:
        return 2 * self.stream_tokens


@dataclass(frozen=True, slots=True)
class Fork:
    """One question in a row: it sees the first `base` tokens of the stream."""

    kind: str
    base: int
    question: str
    answer: str
    last_px: str | None
    pointer: int            # as hints.pointer has it


@dataclass(frozen=True, slots=True)
class Batch:
    """[rows, length] each: token ids, positions, what each token must be followed by, and where it belongs."""

    ids: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    branches: np.ndarray
    bases: np.ndarray       # tokens of the stream that are seen
    kinds: np.ndarray       # index of the answer's kind, -1 elsewhere
    signs: np.ndarray       # of tokens of prices and levels: how they compare, -100 elsewhere
    steps: np.ndarray       # [rows, stream_tokens, STEPS] what the last token of a trade could know, -100 elsewhere
    lags: np.ndarray        # [rows, stream_tokens, LAGS] as signs, beside the price so many trades before
    orders: np.ndarray      # [rows, stream_tokens, LAGS] of the last token of a trade: how its whole price compares
    pointers: np.ndarray    # where a token of an answer is learned: the trade it is about, -100 elsewhere


class Told(NamedTuple):
    """What the stream has told of a symbol so far."""

    sym: str
    tape: Tape
    num_trades: int


NAMES = tuple(KINDS)
EVEN = dict.fromkeys(KINDS, 1.0)


class Examples:
    """Rows drawn from a seed. `weights`: how often each kind of question is asked."""

    def __init__(self, tokenizer: Tokenizer, bos_id: int) -> None:
        self.tokenizer = tokenizer
        self.bos_id = bos_id
        prompts = read_rendering(market_model()).prompts
        self.lines = {kind: Line(kind, prompts[kind]) for kind in FIELDS}
        self.question = prompts["question"]
        vocabulary = tokenizer.get_vocab()
        self.texts = {i: token for token, i in vocabulary.items()}
        self.number_ids = {vocabulary[f"#{digit}"] for digit in range(10)}
        self.above_id = vocabulary[" above "]
        self.side_ids = {vocabulary[token] for token in (" buy ", " sell ", " - ")}
        self.tick_ids = {vocabulary[token] for token in ("+ ", "- ", "= ")}

    def batch(self, rng: random.Random, stage: Stage, weights: Mapping[str, float] = EVEN) -> Batch:
        rows = [self.row(rng, stage, weights) for _ in range(stage.rows)]
        return Batch(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))

    def row(self, rng: random.Random, stage: Stage, weights: Mapping[str, float]) -> list[np.ndarray]:
        """The arrays of one stream with its forks."""
        page, ends, told = self._stream(rng, stage)
        drawn: list[tuple[int, Fork]] = []      # with the first place of its unit
        for unit in range(0, stage.stream_tokens, UNIT):
            within = range(bisect.bisect_right(ends, unit), bisect.bisect_right(ends, unit + UNIT))
            records = rng.choices(within, k=FORKS_PER_UNIT) if within else ()
            drawn += [(unit, draw_fork(rng, ends[record], told[record], weights)) for record in records]
        tails = self._encode([self.question.format(question=fork.question) for _, fork in drawn])
        answers = self._encode([fork.answer + "\n" for _, fork in drawn])
        used: Counter[int] = Counter()          # tokens of a unit's bin
        for (unit, fork), tail, answer in zip(drawn, tails, answers, strict=True):
            size, at = len(tail) + len(answer) - 1, stage.stream_tokens + unit + used[unit]
            if used[unit] + size <= UNIT:
                page.put(at, fork, tail, answer)
                if fork.last_px and fork.kind == "above":
                    self._compare(page, at, tail, fork.last_px)
                used[unit] += size
        return page.arrays()

    def _compare(self, page: "Page", at: int, tail: list[int], last_px: str) -> None:
        """Hints of a question's level."""
        place = tail.index(self.above_id) + 1
        level = [self.texts[i] for i in tail[place:-1]]
        page.signs[at + place:at + place + len(level)] = signs(level, self._number(last_px))

    def _number(self, text: str) -> list[str]:
        """A price in tokens."""
        return [self.texts[i] for i in self.tokenizer.encode(text, add_special_tokens=False).ids]

    def _stream(self, rng: random.Random, stage: Stage) -> "tuple[Page, list[int], list[list[Told]]]":
        """A page with the stream on it, the end of every record, and what was told of each symbol up to there."""
        source = feed(rng, instruments(rng, stage.most_symbols))
        records: list[Record] = [next(source) for _ in range(stage.stream_tokens // 9)]
        page = Page(stage, self.bos_id)
        ends, told, tapes, num_trades = [], [], Tapes(), Counter[str]()
        prices: dict[str, deque[list[str]]] = defaultdict(lambda: deque(maxlen=LAGS))
        for record, line in zip(records, self._encode(self._texts(records)), strict=True):
            if page.end + len(line) > stage.stream_tokens:
                break
            start = page.end
            page.add(line)
            page.learn_number(start, line, self.number_ids)
            ends.append(page.end)
            page.steps[page.end - 1] = steps(tapes.add(record))
            if not isinstance(record, Quote):
                num_trades[record.sym] += 1
                page.orders[page.end - 1] = orders(tapes[record.sym])
                self._compare_prices(page, start, line, prices[record.sym])
            told.append([Told(sym, snapshot(tape), num_trades[sym]) for sym, tape in tapes.items()])
        return page, ends, told

    def _compare_prices(self, page: "Page", start: int, line: list[int], before: "deque[list[str]]") -> None:
        """Hints of a trade's price, which stands between the side and the tick; `before`: those of the symbol."""
        first = next(i for i, token in enumerate(line) if token in self.side_ids) + 1
        last = next(i for i, token in enumerate(line) if token in self.tick_ids)
        price = [self.texts[i] for i in line[first:last]]
        place = slice(start + first, start + last)
        for lag, other in enumerate(before):
            page.lags[place, lag] = signs(price, other)
        page.signs[place] = page.lags[place, 0]
        before.appendleft(price)

    def _texts(self, records: Sequence[Record]) -> list[str]:
        past, texts = Past(), []
        for record in records:
            texts.append(self.lines[record.kind].text_after(past, record))
            past.add(record)
        return texts

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [found.ids for found in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def draw_fork(rng: random.Random, base: int, told: Sequence[Told], weights: Mapping[str, float]) -> Fork:
    """A question about one symbol of the stream so far, and its true answer."""
    sym, tape, num_trades = rng.choice(told)
    kind = draw_kind(rng, weights)
    if kind.is_about_quotes != (tape.last is None) and rng.random() < 0.97:
        about_quotes = tape.last is None or (tape.quote is not None and rng.random() < 0.3)
        about_quotes = about_quotes and tape.quote is not None
        own = {name: weight for name, weight in weights.items() if KINDS[name].is_about_quotes == about_quotes}
        kind = draw_kind(rng, own)
    level = draw_level(rng, tape) if kind.needs_level else ""
    named = sym if len(told) > 1 or rng.random() < 0.5 else ""
    answer = kind.oracle(tape, level) or UNKNOWN
    return Fork(kind.name, base, kind.question(named, level), answer, tape.last.px if tape.last else None,
                pointer(kind, tape, num_trades))


def draw_kind(rng: random.Random, weights: Mapping[str, float]) -> Kind:
    return KINDS[rng.choices(list(weights), list(weights.values()))[0]]


def snapshot(tape: Tape) -> Tape:
    copy = Tape()
    copy.prints, copy.quote = tape.prints.copy(), tape.quote
    return copy


class Page:
    """The arrays of one row, being filled: first the stream, then the questions."""

    def __init__(self, stage: Stage, bos_id: int) -> None:
        self.ids, self.positions, self.bases = (np.zeros(stage.length, np.int64) for _ in range(3))
        self.targets, self.signs, self.pointers = (np.full(stage.length, IGNORED, np.int64) for _ in range(3))
        self.branches, self.kinds = (np.full(stage.length, PADDING, np.int64) for _ in range(2))
        self.steps = np.full((stage.stream_tokens, len(STEPS)), IGNORED, np.int64)
        self.lags, self.orders = (np.full((stage.stream_tokens, LAGS), IGNORED, np.int64) for _ in range(2))
        self.end = 0
        self._num_forks = 0
        self.add([bos_id])

    def add(self, ids: list[int]) -> None:
        """The next tokens of the stream."""
        place = slice(self.end, self.end + len(ids))
        self.ids[place], self.branches[place] = ids, 0
        self.positions[place] = np.arange(place.start, place.stop)
        self.end = place.stop

    def learn_number(self, start: int, line: list[int], number_ids: set[int]) -> None:
        """The token before a trade's number has it as its target; a quote has none."""
        place = next((i for i, token in enumerate(line) if token in number_ids), None)
        if place is not None:
            self.targets[start + place - 1] = line[place]

    def put(self, at: int, fork: Fork, tail: list[int], answer: list[int]) -> None:
        """Lay a question and its answer at this place; the answer's last token is only a target."""
        self._num_forks += 1
        tokens = tail + answer[:-1]
        place, learned = slice(at, at + len(tokens)), slice(at + len(tail) - 1, at + len(tokens))
        self.ids[place], self.positions[place] = tokens, fork.base + np.arange(len(tokens))
        self.branches[place], self.bases[place] = self._num_forks, fork.base
        self.targets[learned], self.kinds[learned] = answer, NAMES.index(fork.kind)
        self.pointers[learned] = fork.pointer

    def arrays(self) -> list[np.ndarray]:
        return [self.ids, self.positions, self.targets, self.branches, self.bases, self.kinds, self.signs, self.steps,
                self.lags, self.orders, self.pointers]
