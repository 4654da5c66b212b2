"""Any process but the first of those that share a model: it carries out the first one's plans on its own part."""

import os

from streamproc.config import Config
from streamproc.engine.build import make_cache, share_threads
from streamproc.engine.gpu.links import Leader, Outcome
from streamproc.engine.gpu.parallel import Ranks
from streamproc.engine.model import load_model
from streamproc.engine.runner import ModelRunner
from streamproc.errors import StreamprocError, one_line
from streamproc.schedule.plan import Plan


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
    except Exception as problem:       # whatever it is: the first process tells it
        ranks.leader.fail(one_line(problem))
        os._exit(1)     # a thread may hang in what it computes with the others


def carry_out(runner: ModelRunner, leader: Leader) -> None:
    """All of the leader's plans, one after the other."""
    for plan in leader.plans():
        leader.report(outcome(runner, plan))


def outcome(runner: ModelRunner, plan: Plan) -> Outcome:
    flight = runner.launch(plan)
    try:
        flight.wait()
    except StreamprocError as problem:      # the step counts for nothing; this process has kept in step
        return Outcome({}, problem)
    return Outcome(flight.saved)
