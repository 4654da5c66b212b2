"""What the demo leaves the user with: its numbers, and what to type next."""

import fnmatch
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamproc.demo.cluster import DemoKafka
from streamproc.demo.judge import Accuracy
from streamproc.demo.plan import TRADES
from streamproc.demo.verify import Verdict
from streamproc.kafka.broker import DEFAULT_PORT

ANY = "BTCUSDT"


@dataclass(frozen=True, slots=True)
class Numbers:
    """What one run has done."""

    records: int
    answers: int  # to standing questions
    sessions: tuple[str, ...]
    asks: int
    seconds: float  # of the whole demo
    records_per_s: float
    freshness_ms_p50: float | None  # record's timestamp to answer's
    tokens: int  # computed by the worker, catch-up included
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """The account of one run, where everything lies, and what to do with it."""

    kafka: DemoKafka
    numbers: Numbers
    verdict: Verdict
    accuracy: Accuracy
    folder: Path  # of config file and log

    def doc(self) -> dict[str, Any]:
        numbers, verdict = self.numbers, self.verdict
        return {
            "broker": self.kafka.name,
            "records": numbers.records,
            "answers": numbers.answers,
            "sessions": len(numbers.sessions),
            "asks": numbers.asks,
            "seconds": numbers.seconds,
            "exact": verdict.exact,
            "checked": verdict.num_checked,
            "accuracy": self.accuracy.share,
            "judged": self.accuracy.num_judged,
            "bootstrap_servers": self.kafka.address,
            "records_per_s": numbers.records_per_s,
            "freshness_ms_p50": numbers.freshness_ms_p50,
            "tokens": numbers.tokens,
            "interrupted": numbers.interrupted,
        }

    def text(self) -> str:
        return "\n".join((*self._account(), "", *self._next_steps()))

    def _account(self) -> tuple[str, ...]:
        numbers, verdict = self.numbers, self.verdict
        fresh = "-" if numbers.freshness_ms_p50 is None else f"{numbers.freshness_ms_p50:.0f} ms"
        equal = f"{verdict.num_checked - len(verdict.differences)} of {verdict.num_checked}"
        return (
            f"{numbers.records:,} records, {numbers.answers:,} answers and {numbers.asks} asks about "
            f"{len(numbers.sessions)} sessions in {numbers.seconds:.1f} s",
            f"  freshness  p50 {fresh} from a record's timestamp to its answer's",
            f"  tokens     {numbers.tokens:,} computed",
            f"  exact      {equal} answers recomputed from the log alone are equal byte for byte",
            f"  accuracy   {self._accuracy()}",
            f"  broker     {self.kafka.name} at {self.kafka.address}",
            f"  data       {self._data()}",
        )

    def _accuracy(self) -> str:
        found = self.accuracy
        if found.share is None:
            return "- no answer could be judged"
        return f"{found.share}: {found.num_right:,} of {found.num_judged:,} answers say what the records say"

    def _data(self) -> str:
        if self.kafka.mock:
            return "nothing is kept: the mock lives in memory"
        where = f"in {self.kafka.built_in.data_dir}" if self.kafka.built_in else f"on {self.kafka.address}"
        return f"topics demo.* {where}; log and settings in {self.folder}; `streamproc demo --clean` starts anew"

    def _next_steps(self) -> tuple[str, ...]:
        if self.kafka.mock:
            return ("next: a real Kafka: pip install 'streamproc[broker]', or pass -b HOST:PORT",)
        file = f"--config {shlex.quote(str(self.folder / 'streamproc.toml'))}"
        first = f"streamproc query list {file}"
        if self.kafka.started:
            port = int(self.kafka.address.rpartition(":")[2])
            first = "streamproc broker start" + ("" if port == DEFAULT_PORT else f" --port {port}")
        return (
            f"export STREAMPROC_BOOTSTRAP_SERVERS={self.kafka.address}",
            "next:",
            f"  {first}",
            f"  streamproc run {file} &",
            f'  streamproc ask "What was the last price?" --session {self._session()} {file}',
            f"stop:   {self._how_to_stop()}",
        )

    def _session(self) -> str:
        """One that has traded."""
        return next(iter(fnmatch.filter(self.numbers.sessions, TRADES)), ANY)

    def _how_to_stop(self) -> str:
        """The demo has stopped what it started itself."""
        if self.kafka.started:
            return "broker and worker have stopped; what you start now: `kill %1`, `streamproc broker stop`"
        broker = "; `streamproc broker stop`" if self.kafka.built_in else ""
        return f"the worker has stopped, the broker runs on; what you start now: `kill %1`{broker}"
