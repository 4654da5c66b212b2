"""Calls that may never return: their results, their errors, and what is left behind."""

import threading
import time

import pytest

from streamproc.kafka import giveup
from streamproc.kafka.giveup import Caller, GivenUp


def test_results_and_errors_come_back_from_one_thread() -> None:
    caller = Caller()
    names = {caller.call("name", lambda: threading.current_thread().ident, 5) for _ in range(3)}
    assert len(names) == 1
    assert threading.get_ident() not in names
    with pytest.raises(KeyError, match="lost"):
        caller.call("fail", lambda: {}["lost"], 5)
    caller.close()


def test_a_call_that_does_not_return_is_given_up_and_the_next_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giveup, "GRACE_S", 0.1)
    caller, let_go = Caller(), threading.Event()
    started = time.monotonic()
    with pytest.raises(GivenUp, match=r"hang has not returned within 0\.2 s"):
        caller.call("hang", let_go.wait, 0.1)
    assert time.monotonic() - started < 2
    assert caller.call("next", lambda: 7, 5) == 7
    let_go.set()
    caller.close()


def test_a_thread_ends_with_its_caller_and_after_a_call_that_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giveup, "GRACE_S", 0.0)
    caller, let_go = Caller(), threading.Event()
    thread = caller.call("who", threading.current_thread, 5)
    with pytest.raises(GivenUp):
        caller.call("hang", let_go.wait, 0.1)
    let_go.set()
    thread.join(5)
    assert not thread.is_alive()
    last = caller.call("who", threading.current_thread, 5)
    caller.close()
    last.join(5)
    assert not last.is_alive()
