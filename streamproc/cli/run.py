"""`streamproc run`: one worker in the foreground."""

import logging
import signal
from types import FrameType
from typing import TYPE_CHECKING

import click

from streamproc.cli.common import Call, model_option, shared_options
from streamproc.config import Snapshots
from streamproc.errors import Usage
from streamproc.values import without_account

if TYPE_CHECKING:
    from streamproc.engine.gpu.parallel import Ranks


@click.command()
@click.option("--print-config", is_flag=True, help="Print all settings as TOML with their sources, and exit.")
@model_option
@shared_options
def run(call: Call, print_config: bool) -> None:
    """Run a worker: records in, answers out.

    \b
    streamproc run --config streamproc.toml
    streamproc run -b localhost:9092 --model ./my-model -X engine.context_tokens=2048

    SIGINT or SIGTERM finishes the epoch, leaves the group and exits with 0. Start as many workers as the records
    topic has partitions; they share them. A model for several GPUs: torchrun --nproc-per-node 4 -m streamproc run ...
    """
    if print_config:
        from streamproc.settings_text import print_config as as_toml

        call.emit({"config": as_toml(call.config)}, as_toml(call.config).rstrip())
        return
    stopped = _stop_on_signals()
    ranks = _meet(call)
    if ranks and ranks.rank:
        _follow(call, ranks)
        return
    _tell_of(call)
    _check_topics(call)
    from streamproc.engine.gpu.parallel import ALONE
    from streamproc.worker import start_worker

    worker = start_worker(call.config, lambda text: call.note(f"warning: {text}"), ranks or ALONE)
    processor, engine = worker.processor, worker.engine
    call.note(
        f"worker {processor.publisher.worker} in group {call.config.worker.group}: {call.config.engine.model} on "
        f"{engine.runner.device} ({engine.runner.forward.name}), {engine.runner.num_blocks} blocks of "
        f"{engine.runner.block_size} tokens, "
        f"exact: {str(engine.runner.exact).lower()}"
    )
    call.note(f"snapshots: {where_snapshots_go(call.config.snapshots)}")
    worker.run(lambda: bool(stopped))
    _part(ranks)
    done = processor.counters
    doc = {name: getattr(done, name) for name in done.__slots__}
    call.emit(
        doc,
        f"stopped: {done.records} records, {done.flash_answers} flash answers, {done.asks} asks, "
        f"{done.epochs} epochs ({done.aborted_epochs} aborted)",
    )


def where_snapshots_go(settings: Snapshots) -> str:
    """In words."""
    if not settings.url:
        return "none, a restart computes all contexts again (snapshots.url)"
    return f"every {settings.interval_s:g} s to {without_account(settings.url)}"


def _stop_on_signals() -> list[int]:
    """A list that is no longer empty once a signal to stop has come."""
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return received


def _meet(call: Call) -> "Ranks | None":
    """The processes that torchrun has started, this one among them; None where it has not."""
    if call.environ.get("WORLD_SIZE", "1") == "1":
        return None
    from streamproc.engine.gpu.meeting import meet

    ranks = meet()
    if ranks.rank == 0:
        call.note(f"tensor parallel: {ranks.size} processes")
    return ranks


def _follow(call: Call, ranks: "Ranks") -> None:
    """Compute for the first process until it stops; signals are its affair."""
    from streamproc.engine.follower import follow

    follow(call.config, ranks)
    _part(ranks)


def _part(ranks: "Ranks | None") -> None:
    if ranks:
        from streamproc.engine.gpu.meeting import part

        part()


def _tell_of(call: Call) -> None:
    """What the worker logs is told as the rest is."""

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warning = "warning: " if record.levelno >= logging.WARNING else ""
            call.note(f"{warning}{record.getMessage()}")

    log = logging.getLogger("streamproc")
    log.setLevel(logging.INFO)
    log.addHandler(Teller())
    log.propagate = False


def _check_topics(call: Call) -> None:
    """Refuse to start where a topic is missing or cannot work."""
    from streamproc.kafka.properties import check_reachable, client_properties, connect_admin
    from streamproc.kafka.topics import check, load_specs

    properties = client_properties(call.config)
    check_reachable(properties)
    for finding in check(connect_admin(properties), load_specs(call.config.topics)):
        if finding.state == "missing":
            raise Usage(f"topic {finding.name} does not exist: create it with `streamproc topics create`")
        for problem in finding.problems:
            call.note(f"warning: topic {finding.name}: {problem}")
