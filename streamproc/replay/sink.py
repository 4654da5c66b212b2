"""Where a replay's answers go: a file or a topic of its own. Dead letters are told, session heads are left out.

Within an epoch answers are ordered by partition, offset and query, and no epoch goes back behind the one before; so
two runs give the same sequence for every partition.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from streamproc.config import Topics
from streamproc.errors import EpochAborted, Unavailable, Usage
from streamproc.messages import Answer, decode_answer
from streamproc.ports import Sink
from streamproc.state.epoch import Epoch, Outgoing

MAX_TOLD = 10  # dead letters that get a line of their own


class Output(Protocol):
    """Takes answers in order; `publish` after the last of them, `close` in any case."""

    def write(self, answers: Sequence[tuple[Answer, Outgoing]]) -> None: ...

    def publish(self) -> None: ...

    def close(self) -> None: ...


class ReplaySink:
    """What the processor commits to: counts answers on their way to the output, and says what is dead."""

    def __init__(self, topics: Topics, output: Output, warn: Callable[[str], None]) -> None:
        self._topics = topics
        self._output = output
        self._warn = warn
        self.num_answers = 0
        self.num_dead = 0

    def commit(self, epoch: Epoch, membership: Any, timeout_s: float | None = None) -> None:
        answers = in_log_order(message for message in epoch.messages if message.topic == self._topics.answers)
        if answers:
            self._output.write(answers)
        self.num_answers += len(answers)
        for message in epoch.messages:
            if message.topic == self._topics.dead:
                self._tell(message)

    def _tell(self, letter: Outgoing) -> None:
        self.num_dead += 1
        if self.num_dead <= MAX_TOLD:
            facts = {name: value.decode() for name, value in letter.headers}
            self._warn(f"{facts['topic']} partition {facts['partition']} offset {facts['offset']}: {facts['reason']}")

    def close(self) -> None:
        self._output.close()


def in_log_order(messages: Iterable[Outgoing]) -> list[tuple[Answer, Outgoing]]:
    """Answers with their messages, by partition, offset and query."""
    return sorted(((decode_answer(message.value or b""), message) for message in messages), key=lambda p: place(p[0]))


def place(answer: Answer) -> tuple[int, int, str]:
    """Where an answer belongs among all answers of a replay."""
    assert answer.as_of is not None, "every answer of a replay has seen a record"
    return answer.as_of.partition, answer.as_of.offset, answer.query_id or ""


class FileOutput:
    """One answer a line, exactly the bytes that a live run publishes; the file appears whole, or not at all.

    Partitions finish at different times, so each is gathered in a file of its own beside the output until then.
    """

    def __init__(self, path: Path) -> None:
        """Raises Usage where nothing can be written."""
        self._path = path
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        except OSError as problem:
            raise Usage(f"--out: cannot write in the folder {path.parent}: {problem.strerror}") from None
        self._parts: dict[int, BinaryIO] = {}

    def write(self, answers: Sequence[tuple[Answer, Outgoing]]) -> None:
        for answer, message in answers:
            self._part(place(answer)[0]).write((message.value or b"") + b"\n")

    def _part(self, number: int) -> BinaryIO:
        if number not in self._parts:
            self._parts[number] = (self._folder / str(number)).open("w+b")
        return self._parts[number]

    def publish(self) -> None:
        """Put the partitions together: temporary name, fsync, rename."""
        whole = self._folder / "whole"
        with whole.open("wb") as file:
            for _, part in sorted(self._parts.items()):
                part.seek(0)
                shutil.copyfileobj(part, file)
            file.flush()
            os.fsync(file.fileno())
        whole.replace(self._path)

    def close(self) -> None:
        """Leave nothing behind but what was published."""
        for part in self._parts.values():
            part.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class TopicOutput:
    """A topic of the replay's own. An epoch whose fate is in doubt ends the replay: no answer is written twice."""

    def __init__(self, sink: Sink, topic: str) -> None:
        """`sink` commits epochs without offsets of a group."""
        self._sink = sink
        self._topic = topic

    def write(self, answers: Sequence[tuple[Answer, Outgoing]]) -> None:
        """Raises Unavailable where the answers may not have arrived."""
        messages = tuple(replace(message, topic=self._topic) for _, message in answers)
        try:
            self._sink.commit(Epoch(messages, ()), None)
        except EpochAborted as problem:
            raise Unavailable(
                f"topic {self._topic} has a part of the answers: start again with another: {problem}"
            ) from None

    def publish(self) -> None:
        """Every epoch is visible at once."""

    def close(self) -> None:
        self._sink.close()
