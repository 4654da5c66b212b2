"""Worker processes: started, killed, frozen, and started again when they die, as a supervisor would."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from workers import as_toml

from harness.history import History
from harness.worker import SAID, THROWN, Orders
from streamproc.config import Config

ROOT = Path(__file__).parents[3]
PATHS = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "faults")]
KAFKA = {  # short, so that faults are noticed within a run
    "socket.timeout.ms": "3000",
    "transaction.timeout.ms": "10000",
    "message.timeout.ms": "8000",
    "reconnect.backoff.max.ms": "500",
}
STOP_S = 30.0
ENDS = {0: "end", SAID: "said", THROWN: "thrown", -signal.SIGTERM: "end"}  # the last: told to stop before it had begun


@dataclass
class Started:
    """One process of a slot."""

    process: "subprocess.Popen[bytes]"
    log: Path
    status: Path
    is_frozen: bool = False


class Workers:
    """The workers of one run, by slot. A slot keeps its lane through the proxy, and its transactional id."""

    def __init__(self, config: Config, addresses: Callable[[int], str], folder: Path, history: History) -> None:
        self.config, self._addresses, self._folder, self._history = config, addresses, folder, history
        self.running: dict[str, Started] = {}
        self.orders: dict[str, Orders] = {}
        self.num_started = 0
        self.deaths: list[str] = []  # last words of those that nobody had told to end
        self.is_supervised = True

    def lane(self, slot: str) -> int:
        return ord(slot) - ord("a")

    def start(self, slot: str, orders: Orders | None = None) -> Started:
        """Start a process in a slot, with the orders given or those that it had."""
        orders = orders or self.orders.get(slot, Orders())
        self.orders[slot] = orders
        self.num_started += 1
        stem = self._folder / f"worker-{slot}-{self.num_started}"
        kafka = {**self.config.kafka, **KAFKA, "bootstrap.servers": self._addresses(self.lane(slot))}
        config = replace(self.config, worker=replace(self.config.worker, slot=slot), kafka=kafka)
        settings, status, log = (stem.with_suffix(suffix) for suffix in (".toml", ".jsonl", ".log"))
        settings.write_text(as_toml(config))
        command = [sys.executable, "-P", "-m", "harness.worker", str(settings), str(status), json.dumps(asdict(orders))]
        with log.open("wb") as err:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=err,
                stderr=err,
                env=os.environ | {"PYTHONPATH": ":".join(PATHS)},
            )
        self._history.add("worker", slot=slot, what="start", pid=process.pid)
        self.running[slot] = Started(process, log, status)
        return self.running[slot]

    def kill(self, slot: str) -> None:
        """SIGKILL; nobody starts it again by itself."""
        started = self.running.pop(slot)
        started.process.kill()
        started.process.wait()
        self._history.fault(f"SIGKILL worker {slot}")

    def freeze(self, slot: str) -> None:
        self.running[slot].process.send_signal(signal.SIGSTOP)
        self.running[slot].is_frozen = True
        self._history.fault(f"SIGSTOP worker {slot}")

    def thaw(self, slot: str) -> None:
        self.running[slot].process.send_signal(signal.SIGCONT)
        self.running[slot].is_frozen = False
        self._history.add("note", text=f"SIGCONT worker {slot}")

    def stop(self, slot: str) -> None:
        """SIGTERM, and wait for its end; one that does not end is stuck."""
        started = self.running[slot]  # until it has ended: `close` may have to end it
        started.process.send_signal(signal.SIGTERM)
        try:
            code = started.process.wait(STOP_S)
            del self.running[slot]
        except subprocess.TimeoutExpired:
            del self.running[slot]
            where = self.where(started)
            started.process.kill()
            started.process.wait()
            why = f"worker {slot} did not end {STOP_S:.0f} s after SIGTERM: {where} ({started.log})"
            self._history.add("settled", ok=False, why=why)
            return
        self._tell_end(slot, started, code)

    def supervise(self) -> None:
        """Start again whoever has died."""
        for slot, started in list(self.running.items()):
            code = started.process.poll()
            if code is not None:
                del self.running[slot]
                self._tell_end(slot, started, code)
                if self.is_supervised:
                    self.start(slot, replace(self.orders[slot], seed=self.orders[slot].seed + 1))

    def where(self, started: Started) -> str:
        """The line of code that a worker is at; its whole stack goes into its log."""
        before = len(started.log.read_text(errors="replace"))
        started.process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        stack = started.log.read_text(errors="replace")[before:].splitlines()
        frames = [line.strip() for line in stack if line.startswith("  File")]
        return frames[0] if frames else "it does not say where"

    def _tell_end(self, slot: str, started: Started, code: int) -> None:
        line = last_line(started.log)
        what = ENDS.get(code, "crash")
        self._history.add("worker", slot=slot, what=what, code=code, line=line, log=str(started.log))
        if what == "thrown":
            self._history.fault(f"failure in worker {slot}")
        elif what != "end":
            self.deaths.append(line)

    def owned(self) -> dict[str, dict[int, str]]:
        """Partitions of every running worker and how they are, as it said last."""
        return {slot: status(started.status).get("owned", {}) for slot, started in self.running.items()}

    def close(self) -> None:
        for slot in list(self.running):
            started = self.running.pop(slot)
            started.process.kill()
            started.process.wait()


def status(path: Path) -> dict[str, Any]:
    """What a worker said last, or nothing yet."""
    if not path.exists():
        return {}
    lines = path.read_text().splitlines()
    try:
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:  # it is being written
        found = json.loads(lines[-2]) if len(lines) > 1 else {}
    return found


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it said nothing"
