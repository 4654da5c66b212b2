"""Plays the records at their time, asks the ad-hoc questions on the way, and keeps the picture moving."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from streamproc.client import Client
from streamproc.demo.board import Board, board
from streamproc.demo.plan import MAX_TOKENS, Plan
from streamproc.demo.watch import Due, Watch
from streamproc.demo.worker import WorkerProcess
from streamproc.errors import Unavailable
from streamproc.market.questions import Kind
from streamproc.messages import Answer, Ask, Query
from streamproc.records import Record, Trade

TICK_S = 0.1
ANSWERS_S = 60.0
BATCH = 1000
NAMED = 5

Draw = Callable[[Board], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """An ad-hoc question and what came back."""

    ask: Ask
    answer: Answer


@dataclass(slots=True)
class Player:
    """One play, in front of a worker that runs."""

    client: Client
    watch: Watch
    worker: WorkerProcess
    kinds: Mapping[str, Kind]
    asked: list[Asked] = field(default_factory=list)
    num_sent: int = 0
    start_s: float = field(default_factory=time.monotonic)
    playing_s: float = 0.0
    opened: dict[str, str] = field(default_factory=dict)  # the first price of each session with trades
    traded: str = ""  # the session of the newest trade

    def play(self, plan: Plan, draw: Draw) -> None:
        """Send every record at its time. Raises Unavailable where worker or Kafka do not answer."""
        records, points = plan.records(), plan.ask_points()
        self.start_s = time.monotonic()
        while self.num_sent < plan.num_records:
            upto = min(point for point in (*points, plan.num_records) if point > self.num_sent)
            num_due = min(int(self._elapsed_s() * plan.rate) + 1 - self.num_sent, upto - self.num_sent, BATCH)
            batch = list(itertools.islice(records, max(0, num_due)))
            self.num_sent += self.client.produce_many(batch)
            self._note(batch)
            if batch and (name := points.get(self.num_sent)):
                self._ask(self.traded or batch[-1].sym, self.kinds[name])
            self._look(draw, min(max(0.0, self.num_sent / plan.rate - self._elapsed_s()), TICK_S))

    def await_answers(self, queries: tuple[Query, ...], draw: Draw, timeout_s: float = ANSWERS_S) -> None:
        """Wait until every answer that is due has come. Raises Unavailable that says which have not."""
        deadline_s = time.monotonic() + timeout_s
        while self.watch.num_records < self.num_sent or self.watch.missing(queries):
            if time.monotonic() > deadline_s:
                raise Unavailable(self._silence(self.watch.missing(queries), timeout_s))
            while not self._look(draw, TICK_S) and time.monotonic() < deadline_s:
                pass

    def _look(self, draw: Draw, timeout_s: float) -> bool:
        news = self.watch.poll(timeout_s)
        self.worker.check()
        draw(board(self.watch, self.playing_s, int(time.time() * 1000)))
        return news

    def _elapsed_s(self) -> float:
        self.playing_s = time.monotonic() - self.start_s
        return self.playing_s

    def _note(self, batch: Iterable[Record]) -> None:
        for trade in (record for record in batch if isinstance(record, Trade)):
            self.opened.setdefault(trade.sym, trade.px)
            self.traded = trade.sym

    def _ask(self, session: str, kind: Kind) -> None:
        question = kind.question(level=self.opened.get(session, "0"))
        try:
            answer = self.client.ask(
                session, question, min_offset="mine", answer=kind.answer, max_tokens=MAX_TOKENS
            )
        except Unavailable:
            self.worker.check()
            raise
        self.asked.append(Asked(Ask(answer.id, session, question, None, None, kind.answer, MAX_TOKENS), answer))

    def _silence(self, missing: list[Due], timeout_s: float) -> str:
        if not missing:
            return f"only {self.watch.num_records} of {self.num_sent} records can be read back after {timeout_s:.0f} s"
        named = ", ".join(f"{due.query_id} of {due.session} at offset {due.offset}" for due in missing[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        return (
            f"{len(missing)} answers have not come within {timeout_s:.0f} s: {named}{more}; see {self.worker.log_file}"
        )
