"""A model with an oracle inside: its cells hold the tokens, and it answers from what it reads in them alone."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from fakes import FakeEngine, FakeRenderer, FakeRunner

from streamproc.market.questions import KINDS
from streamproc.market.rendering import Rendering
from streamproc.market.tape import Tape, Tapes
from streamproc.records import Quote, Record, Trade
from streamproc.schedule.plan import Plan, verified

TRADE = re.compile(r"[-+=]?n*T (.+) (\S+) (\S+) (buy|sell|-)")
QUOTE = re.compile(r"[-+=]?n*Q (.+) (\S+) (\S+)")
PLACES = {r"\{of\}": r"(?: of (?P<sym>\S+))?", r"\{level\}": r"(?P<level>\S+)"}


def pattern_of(words: str) -> re.Pattern[str]:
    """Reads a question of these words."""
    text = re.escape(words)
    for place, pattern in PLACES.items():
        text = text.replace(place, pattern)
    return re.compile(text)


WORDS = {name: pattern_of(kind.words) for name, kind in KINDS.items()}


class PlainRenderer(FakeRenderer):
    """All that an oracle needs of a record, a token a character."""

    stop: tuple[str, ...] = ("\n",)

    @staticmethod
    def text(record: Record) -> str:
        if isinstance(record, Quote):
            return f"Q {record.sym} {record.bid_px} {record.ask_px}\n"
        assert isinstance(record, Trade)
        return f"T {record.sym} {record.px} {record.sz} {record.side or '-'}\n"

    def tail_ids(self, question: str) -> tuple[int, ...]:
        return tuple(map(ord, f"? {question}\n= "))


def records_in(text: str) -> list[Record]:
    """What a context says, read back from its characters."""
    found: list[Record] = []
    for line in text.splitlines():
        if match := TRADE.fullmatch(line):
            sym, px, sz, side = match.groups()
            found.append(Trade(sym, 0, px, sz, None if side == "-" else side))
        elif match := QUOTE.fullmatch(line):
            found.append(Quote(match[1], 0, match[2], match[3]))
    return found


def reading_oracle(context: str, question: str) -> tuple[str, str]:
    """Kind of the question, and its answer by the characters before it."""
    tapes = Tapes().update_all(records_in(context))
    for name, pattern in WORDS.items():
        if match := pattern.fullmatch(question):
            facts = match.groupdict()
            tape = tapes.get(facts["sym"] or next(iter(tapes), ""), Tape())
            return name, KINDS[name].oracle(tape, facts.get("level") or "") or "nothing"
    raise AssertionError(question)


@dataclass
class ReadingRunner(FakeRunner):
    """A model that knows the oracle: its cells hold the tokens themselves, and its answers come from them alone."""

    def __init__(self, alter: Callable[[str, str], str] = lambda kind, truth: truth, forgets: int = 0) -> None:
        super().__init__(num_blocks=4_000, block_size=16)
        self.alter, self.forgets = alter, forgets

    def run(self, plan: Plan) -> dict[int, tuple[int, ...]]:
        size, sampled = self.block_size, {}
        for source, target in plan.copies:
            self.cells[target * size : (target + 1) * size] = self.cells[source * size : (source + 1) * size]
        for chunk in plan.chunks:
            end = chunk.start + len(chunk.token_ids)
            slots = [chunk.block_table[position // size] * size + position % size for position in range(end)]
            for slot, token_id in zip(slots[chunk.start :], chunk.token_ids, strict=True):
                self.cells[slot] = token_id
            if chunk.num_samples:
                text = "".join(chr(self.cells[slot] or 0) for slot in slots)
                ends = range(len(text) - len(chunk.draft), len(text) + 1)
                sampled[chunk.seq_id] = verified(chunk.draft, [self.next_token(text[:end]) for end in ends])
        return sampled

    def next_token(self, text: str) -> int:
        context, _, tail = text.rpartition("\n? ")
        question, _, said = tail.partition("\n= ")
        lines = context.splitlines()
        kind, truth = reading_oracle("\n".join(lines[: len(lines) - self.forgets]), question)
        answer = self.alter(kind, truth) + "\n"
        return ord(answer[len(said) : len(said) + 1] or "\n")


@dataclass
class ReadingEngine(FakeEngine):
    rendering: Rendering = field(default_factory=Rendering)
    is_closed: bool = False

    def close(self) -> None:
        self.is_closed = True
