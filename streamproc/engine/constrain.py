"""Holds answers to their type: for every token that is sampled, a mask of those that the type allows.

A mask is a function of the grammar and the answer's tokens so far. Where the answer
    can go on         allowed is what continues it
    may end here      also ends of sequence, and what begins a stop text
    cannot go on      one end of sequence and nothing else, so that it ends without another step
    went too far      nothing: what may come exceeds the limits of the constrainer, and plan.STUCK is sampled. Nor does
                      anything follow a guess that is not allowed: nobody gets there
Masks are computed beside the forward, on a thread of the runner's; matchers are kept from step to step and moved along.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import takewhile
from typing import Any

import numpy as np
import orjson
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark

from streamproc.engine.grammars import BOOLEAN, NUMBER, CannotConstrain, lark, literal, make_tokenizer, one_line
from streamproc.engine.masks import Row, Rows
from streamproc.errors import StreamprocError
from streamproc.prompts import Renderer
from streamproc.schedule.plan import STUCK, Chunk, Constraint

MAX_GRAMMARS = 256                      # compiled at once
MAX_WALKS = 1024                        # answers under way whose matchers are kept
MAX_FORCED = 256                        # tokens at once without a choice
FUEL, MAX_ITEMS = 200_000, 10_000       # of a grammar's lexer at first, of its parser in a step
LIMITS = LLParserLimits(initial_lexer_fuel=FUEL, step_max_items=MAX_ITEMS, max_items_in_row=MAX_ITEMS,
                        verbose_errors=False)  # fmt: skip


@dataclass(slots=True)
class Grammar:
    """A compiled one."""

    first: LLMatcher
    endings: LLMatcher | None       # of a stop text, and what its last token has after it
    ends: Row                       # tokens that may come where an answer may end
    anew: Callable[[], LLMatcher]   # one that shares nothing with any other
    spare: list[LLMatcher] = field(default_factory=list)      # of answers that are over: they know the grammar's states

    def matcher(self) -> LLMatcher:
        if not self.spare:
            return self.first.deep_copy()
        matcher = self.spare.pop()
        matcher.reset()
        return matcher


@dataclass(slots=True)
class Walk:
    """A matcher, and an answer's tokens: those that it has consumed, and those after the text."""

    constraint: str
    grammar: Grammar
    matcher: LLMatcher
    ids: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)

    def go(self, ids: Sequence[int]) -> "Walk":
        """To the place after these tokens, from wherever it is."""
        if self.matcher.is_error():
            self.start_anew()
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.ids, ids, strict=False)))
        if known < len(self.ids) and not self.matcher.rollback(len(self.ids) - known):
            self.matcher.reset()
            known = 0
        num_more = self.matcher.try_consume_tokens(list(ids[known:]))
        if self.matcher.is_error():
            self.start_anew()
            known, num_more = 0, self.matcher.try_consume_tokens(list(ids))
        if self.matcher.is_error():
            num_more = len(ids) - known     # it says nothing of how far it came
        self.ids = list(ids[:known + num_more])
        self.after = list(ids[known + num_more:])
        return self

    def start_anew(self) -> None:
        """Copies of a matcher share what it has built of its grammar, and a budget for that: where one fails, it may be
        the others' doing. What succeeds would succeed in one that shares nothing, so that one decides.
        """
        self.matcher, self.ids = self.grammar.anew(), []


class Constrainer:
    """Masks for one model. From any thread: one of the runner's may be at a step while another is at the one before."""

    def __init__(self, renderer: Renderer, vocab_size: int) -> None:
        self._renderer = renderer
        self._vocab_size = vocab_size
        self._end_ids: list[int] = sorted(token for token in renderer.eos_ids if token < vocab_size)
        self._num_words = -(-vocab_size // 32)
        self._ends = self._row_of(self._end_ids)
        self._end = self._row_of(self._end_ids[:1])
        self._nothing = self._row_of(())
        self._writable = ~self._row_of(token for token in renderer.control.values() if token < vocab_size)
        self._tokenizer: LLTokenizer | None = None
        self._grammars: OrderedDict[str, Grammar | str] = OrderedDict()    # or why there is none
        self._lock = threading.Lock()       # of what is compiled
        self._walking = threading.Lock()    # of the walks
        self._walks: OrderedDict[int, Walk] = OrderedDict()

    @property
    def facts(self) -> str:
        """What an answer depends on."""
        return f"llguidance {version('llguidance')} {NUMBER} {BOOLEAN} {FUEL} {MAX_ITEMS}"

    def why_not(self, grammar: str) -> str | None:
        """The reason why answers cannot be held to this grammar, or None. Compiles it at the first call."""
        found = self._compiled(grammar)
        return found if isinstance(found, str) else None

    def masks(self, chunks: Iterable[Chunk]) -> Rows:
        """A row for every sample; those after a token of the draft that is not allowed matter to nobody."""
        rows: Rows = []
        with self._walking:
            for chunk in chunks:
                rows += self._chunk_rows(chunk) if chunk.constraint else [None] * chunk.num_samples
        return rows

    def _chunk_rows(self, chunk: Chunk) -> Rows:
        assert chunk.constraint
        draft, before = chunk.draft, chunk.constraint.answer_ids
        if before and self._is_over(before):    # nobody waits for what comes after it
            return [self._end] * chunk.num_samples
        walk = self._walk(chunk.seq_id, chunk.constraint.grammar)
        return [self._row(walk.go((*before, *draft[:i]))) for i in range(chunk.num_samples)]

    def forced(self, seq_id: int, constraint: Constraint, sampled: Sequence[int]) -> tuple[int, ...]:
        """The tokens after these of which each is the only one allowed, up to the answer's end."""
        if constraint.answer_ids and self._is_over(constraint.answer_ids):
            return ()
        with self._walking:
            return self._forced(seq_id, constraint, sampled)

    def _forced(self, seq_id: int, constraint: Constraint, sampled: Sequence[int]) -> tuple[int, ...]:
        walk = self._walk(seq_id, constraint.grammar)
        found: list[int] = []
        while len(found) < MAX_FORCED and not self._is_over((*sampled, *found)):
            token = self._only(walk.go((*constraint.answer_ids, *sampled, *found)))
            if token is None:
                break
            found.append(token)
        if walk.after or self._is_over((*sampled, *found)):
            self._drop(seq_id)
        return tuple(found)

    def fresh(self) -> "Constrainer":
        """One whose matchers have not seen a token: for checks of this one."""
        other = copy(self)
        other._walking = threading.Lock()
        other._walks = OrderedDict()
        other._grammars = OrderedDict((text, found if isinstance(found, str) else replace(found, spare=[]))
                                      for text, found in self._grammars.items())
        return other

    def _is_over(self, ids: Sequence[int]) -> bool:
        return ids[-1] == STUCK or ids[-1] in self._renderer.eos_ids

    def _only(self, walk: Walk) -> int | None:
        """The one token that is allowed, where that is easily seen."""
        if walk.after or walk.matcher.is_error():
            return None
        if walk.matcher.is_stopped():
            return self._end_ids[0]
        row = self._row(walk) if walk.matcher.compute_ff_bytes() else None
        if row is None or int(np.bitwise_count(row).sum()) != 1:
            return None
        word = int(row.argmax())
        return word * 32 + int(row[word]).bit_length() - 1

    def _row(self, walk: Walk) -> Row:
        if walk.after:
            return self._row_after(walk)
        row = self._row_from(walk.matcher)
        if walk.matcher.is_error():
            row = self._row_anew(walk)
        if walk.matcher.is_error():
            return self._nothing
        row, matcher = row & self._writable, walk.matcher     # for text that it lacks, a tokenizer has a control token
        if matcher.is_stopped():
            return self._end
        if matcher.is_accepting():
            row |= walk.grammar.ends
        return row if row.any() else self._end       # the vocabulary lacks what comes next: nothing can be done

    def _row_anew(self, walk: Walk) -> Row:
        """Of a matcher whose limits are used up by this answer alone, or not."""
        ids = walk.ids
        walk.start_anew()
        walk.matcher.try_consume_tokens(ids)
        walk.ids = ids
        return self._row_from(walk.matcher)

    def _row_after(self, walk: Walk) -> Row:
        """After the text: inside a stop text, or at the end of it. What came there that is no stop text was allowed all
        the same, so it is the text that goes on, further than can be followed.
        """
        if self._is_over(walk.after):
            return self._end
        endings = walk.grammar.endings.deep_copy() if walk.grammar.endings else None
        if endings is None or not walk.matcher.is_accepting():
            return self._nothing
        if endings.try_consume_tokens(walk.after) < len(walk.after):
            return self._nothing
        return self._end if endings.is_accepting() else self._row_from(endings)

    def _row_from(self, matcher: LLMatcher) -> Row:
        row = np.zeros(self._num_words, np.uint32)
        matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        return row

    def _row_of(self, ids: Iterable[int]) -> Row:
        row = np.zeros(self._num_words, np.uint32)
        for token in ids:
            row[token // 32] |= np.uint32(1 << token % 32)
        return row

    def _walk(self, seq_id: int, grammar: str) -> Walk:
        """The sequence's own, whatever it has consumed, else a new one."""
        walk = self._walks.get(seq_id)
        if walk is None or walk.constraint != grammar:
            compiled = self._compiled(grammar)
            if isinstance(compiled, str):
                raise StreamprocError(f"an answer's type cannot be used: {compiled}")
            walk = self._walks[seq_id] = Walk(grammar, compiled, compiled.matcher())
        self._walks.move_to_end(seq_id)
        if len(self._walks) > MAX_WALKS:
            self._drop(next(iter(self._walks)))
        return walk

    def _drop(self, seq_id: int) -> None:
        walk = self._walks.pop(seq_id, None)
        if walk and not walk.matcher.is_error():
            walk.grammar.spare.append(walk.matcher)

    def _compiled(self, grammar: str) -> Grammar | str:
        with self._lock:
            if grammar not in self._grammars:
                try:
                    self._grammars[grammar] = self._compile(orjson.loads(grammar))
                except CannotConstrain as problem:
                    self._grammars[grammar] = str(problem)
            self._grammars.move_to_end(grammar)
            while len(self._grammars) > MAX_GRAMMARS:
                self._grammars.popitem(last=False)
            return self._grammars[grammar]

    def _compile(self, grammar: dict[str, Any]) -> Grammar:
        if not self._end_ids:
            raise CannotConstrain("answer: only text, this model has no end-of-sequence token to end others with")
        name = {"regex": "answer.pattern", "json": "answer.schema"}.get(grammar["type"], "answer")
        if grammar["type"] == "regex":      # alone, so that it cannot reach beyond itself
            if (len(grammar["pattern"]) - len(grammar["pattern"].rstrip("\\"))) % 2:
                raise CannotConstrain(f"{name}: ends in a lone backslash")
            self._matcher(f"start: TEXT\nTEXT: /{regex_to_lark(grammar['pattern'], 'd')}/", name)
        anew = partial(self._matcher, lark(grammar), name)
        first = anew()
        if not (self._row_from(first) & self._writable).any() and not first.is_accepting():
            raise CannotConstrain(f"{name}: no text that this model can write satisfies it")
        if not grammar["stop"]:
            return Grammar(first, None, self._ends, anew)
        stop = "|".join(map(literal, grammar["stop"]))
        endings = self._matcher(f"start: TEXT\nTEXT: /({stop})(?s:.*)/", "stop")
        return Grammar(first, endings, self._ends | self._row_from(endings), anew)

    def prepare(self) -> None:
        """Read the vocabulary: seconds for a large one, of which the first constrained question need not wait."""
        with self._lock, suppress(CannotConstrain):
            if self._end_ids:
                self._vocabulary()

    def _vocabulary(self) -> LLTokenizer:
        self._tokenizer = self._tokenizer or make_tokenizer(self._renderer, self._vocab_size, self._end_ids)
        return self._tokenizer

    def _matcher(self, text: str, name: str) -> LLMatcher:
        matcher = LLMatcher(self._vocabulary(), LLMatcher.grammar_from_lark(text), log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise CannotConstrain(f"{name}: {one_line(matcher.get_error())}")
        return matcher
