"""Any process but the first of those that share a model: it carries out the first one's plans on its own part."""

import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, NoReturn

from streamproc.config import Config
from streamproc.engine.build import make_cache, share_threads
from streamproc.engine.flight import Landed
from streamproc.engine.gpu.links import Anew, Leader, Outcome, SavedPart
from streamproc.engine.gpu.parallel import Ranks
from streamproc.engine.model import load_model
from streamproc.engine.runner import ModelRunner
from streamproc.engine.transfers import Saved
from streamproc.errors import StreamprocError, one_line


def follow(config: Config, ranks: Ranks) -> None:
    """Load the model and carry out plans until there are no more. A failure is told to the first process, and ends
    this one with 1.
    """
    assert ranks.leader, "nobody leads this process"
    try:
        loaded = load_model(config.engine, ranks)
        runner = ModelRunner(loaded, make_cache(config, loaded), *share_threads(config.engine.threads, loaded))
        runner.forward.release()
        carry_out(runner, ranks.leader)
        runner.close()
    except Exception as problem:
        end(ranks.leader, problem)


def carry_out(runner: ModelRunner, leader: Leader) -> None:
    """All of the leader's plans, in their order; one may be begun while the one before it is computed."""
    for order in leader.orders():
        if isinstance(order, Anew):
            runner.forget_graphs()
            continue
        flight = runner.launch(order)
        flight.computing.add_done_callback(partial(report_outcome, leader))
        if flight.saving:
            flight.saving.add_done_callback(partial(report_saved, leader))


def report_outcome(leader: Leader, computing: "Future[Landed]") -> None:
    report(leader, lambda: Outcome(met(leader, computing)))


def report_saved(leader: Leader, saving: "Future[Saved]") -> None:
    report(leader, lambda: SavedPart({} if met(leader, saving) else saving.result()))


def report(leader: Leader, message: Callable[[], Outcome | SavedPart]) -> None:
    """The first process waits for every one of them."""
    try:
        leader.report(message())
    except Exception as problem:
        end(leader, problem)


def met(leader: Leader, work: "Future[Any]") -> StreamprocError | None:
    """An error after which this process has kept in step with the others; any other one ends it."""
    problem = work.exception()
    if not (problem is None or isinstance(problem, StreamprocError)):
        end(leader, problem)
    return problem


def end(leader: Leader, problem: BaseException) -> NoReturn:
    """The first process tells it. At once: a thread may hang in what it computes with the others."""
    leader.fail(one_line(problem))
    os._exit(1)
