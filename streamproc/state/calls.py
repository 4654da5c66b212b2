"""Calls: prompts without a session, continued for whoever holds the future. Any thread may call."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Protocol

from streamproc.answertypes import AnswerType
from streamproc.errors import BadAsk, StreamprocError
from streamproc.state.fork import NOWHERE, Call, Fork, Question
from streamproc.state.generation import Generation
from streamproc.state.workload import Workload

WHO = ""  # calls take turns with the sessions as one of them


class Reader(Protocol):
    """Text to token ids."""

    @property
    def stop(self) -> tuple[str, ...]: ...

    def prompt_ids(self, text: str) -> tuple[int, ...]: ...


class CallDesk:
    """Takes calls from other threads, and hands out their answers."""

    def __init__(
        self,
        workload: Workload,
        renderer: Reader,
        why_not: Callable[[Call, int], str | None],
        now: Callable[[], float],
    ) -> None:
        self._workload = workload
        self._renderer = renderer
        self._why_not = why_not
        self._now = now
        self._arrived: SimpleQueue[Call] = SimpleQueue()
        self._open: dict[int, Call] = {}
        self._is_closed = False

    def call(
        self, prompt: str, max_tokens: int, stop: tuple[str, ...] | None = None, answer: AnswerType | None = None
    ) -> "Future[str]":
        """The greedy continuation of a prompt, ended as answers are: at `stop` (None: the prompts') or `max_tokens`.

        The future raises BadAsk where the worker cannot continue it, and StreamprocError where the worker stops.
        """
        future: Future[str] = Future()
        if self._is_closed:
            future.set_exception(StreamprocError("this worker has stopped"))
        else:
            self._arrived.put(Call(prompt, max_tokens, stop, answer or AnswerType(), future))
            if self._is_closed:     # meanwhile
                self._refuse()
        return future

    def take(self) -> None:
        """Queue what has arrived. In the loop's thread, as all that follows."""
        for call in self._arrivals():
            self._queue(call)

    def _queue(self, call: Call) -> None:
        reason = why_bad(call)
        ids = () if reason else self._renderer.prompt_ids(call.question)
        reason = reason or self._why_not(call, len(ids))
        if reason:
            call.future.set_exception(BadAsk(reason))
            return
        stop = self._renderer.stop if call.stop is None else call.stop
        grammar = call.answer.grammar(stop)
        question = Question(call, WHO, call.question, ids, call.max_tokens, stop, NOWHERE, grammar)
        nothing = Generation(self._workload.new_seq_id(), (), 0, 0)
        fork = Fork(self._workload.new_seq_id(), question, None, nothing, 0, self._now())
        self._open[fork.seq_id] = call
        self._workload.wait(fork)

    @property
    def seq_ids(self) -> set[int]:
        """Forks that are being answered, or wait."""
        return set(self._open)

    def deliver(self, fork: Fork) -> None:
        """A call is answered, or failed."""
        future = self._open.pop(fork.seq_id).future
        if fork.error is None:
            future.set_result(fork.text or "")
        else:
            future.set_exception(BadAsk(fork.error))

    def close(self) -> None:
        """Nobody will answer what is still open."""
        self._is_closed = True
        self._refuse()
        for call in self._open.values():
            call.future.set_exception(StreamprocError("this worker has stopped"))
        self._open.clear()

    def _refuse(self) -> None:
        for call in self._arrivals():
            call.future.set_exception(StreamprocError("this worker has stopped"))

    def _arrivals(self) -> Iterator[Call]:
        """What has arrived and was not given up since."""
        while True:
            try:
                call = self._arrived.get_nowait()
            except Empty:
                return
            if call.future.set_running_or_notify_cancel():
                yield call


def why_bad(call: Call) -> str | None:
    """What is wrong with a call whatever the model, or None."""
    try:
        call.question.encode()
    except UnicodeEncodeError:
        return "prompt: holds half a character (a surrogate)"
    if not call.question:
        return "prompt: empty, there is nothing to continue"
    if call.max_tokens < 1:
        return f"max_tokens: {call.max_tokens} is less than 1"
    return None if all(call.stop or ()) else "stop: a stop text is empty"
