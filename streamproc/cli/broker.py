"""`streamproc broker start|stop|status`: the built-in Apache Kafka of this machine.

`status` of a stopped broker exits 3; `start` of a running one and `stop` of a stopped one say so and exit 0.
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.exceptions import Exit

from streamproc.cli.common import Call, shared_options
from streamproc.config import state_dir

if TYPE_CHECKING:
    from streamproc.kafka.broker import Broker, BrokerInfo

NO = 3
DEFAULT_PORT = 9092
LINE_EVERY_S = 10.0
MB = 10**6

data_dir_option = click.option(
    "--data-dir",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Its data, log and pid.  [default: your state folder]",
)


@click.group()
def broker() -> None:
    """Start, stop or look at the built-in Apache Kafka."""


@broker.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, help=f"Where it listens.  [default: {DEFAULT_PORT}]"
)
@data_dir_option
@shared_options
def start(call: Call, port: int, data_dir: Path | None) -> None:
    """Start it and wait until it can be used; it goes on running afterwards.

    \b
    streamproc broker start
    streamproc broker start --port 19092 --data-dir /tmp/kafka
    """
    target = chosen(data_dir, port)
    before = target.status()
    with download_progress() as report:
        info = target.start(report)
    fresh = before is None or before.pid != info.pid
    what = "is ready" if fresh else "is already running"
    call.emit(
        {"started": fresh, **shown(info)},
        f"Apache Kafka {info.version} {what} at {info.address} (pid {info.pid})\n"
        f"  data  {info.data_dir}\n"
        f"  log   {info.log_file}\n"
        f"  use   export STREAMPROC_BOOTSTRAP_SERVERS={info.address}\n"
        f"  stop  streamproc broker stop{flag(data_dir)}",
    )


@broker.command()
@data_dir_option
@shared_options
def stop(call: Call, data_dir: Path | None) -> None:
    """Stop it; its data stays."""
    target = chosen(data_dir)
    outcome = target.stop()
    texts = {
        None: f"no broker runs in {target.data_dir}",
        "stopped": f"the broker has stopped; its data stays in {target.data_dir}",
        "killed": f"the broker did not stop by itself and was killed; the next start repairs {target.data_dir}",
    }
    call.emit({"stopped": outcome is not None, "clean": outcome != "killed"}, texts[outcome])


@broker.command()
@data_dir_option
@shared_options
def status(call: Call, data_dir: Path | None) -> None:
    """Say whether it runs, and where."""
    target = chosen(data_dir)
    info = target.status()
    if info is None:
        call.emit(
            {"running": False, "data_dir": str(target.data_dir)},
            f"no broker runs in {target.data_dir}; start it with `streamproc broker start{flag(data_dir)}`",
        )
        raise Exit(NO)
    doc = {**shown(info), "uptime_s": round(time.time() - info.started_s, 1)}
    call.emit(doc, "\n".join(f"{name:<9}  {value}" for name, value in doc.items()))


def chosen(data_dir: Path | None, port: int = DEFAULT_PORT) -> "Broker":
    from streamproc.kafka.broker import Broker

    return Broker(data_dir or state_dir() / "broker", port)


def flag(data_dir: Path | None) -> str:
    return f" --data-dir {shlex.quote(str(data_dir))}" if data_dir else ""


def shown(info: "BrokerInfo") -> dict[str, Any]:
    return {
        "running": True,
        "address": info.address,
        "version": info.version,
        "pid": info.pid,
        "data_dir": str(info.data_dir),
        "log_file": str(info.log_file),
    }


@contextmanager
def download_progress() -> Iterator[Callable[[int, int], None]]:
    """A reporter of the first download: on stderr, a bar on a terminal, else a line every 10 s."""
    if not sys.stderr.isatty():
        yield lines_reporter()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = ("Downloading Apache Kafka", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)
        yield lambda there, total: bar.update(task, completed=there, total=total, visible=True)


def lines_reporter(clock: Callable[[], float] = time.monotonic) -> Callable[[int, int], None]:
    """A line at the start of a download, one every 10 s, and one at its end."""
    next_s: float | None = None

    def report(there: int, total: int) -> None:
        nonlocal next_s
        if next_s is None:
            click.echo(f"downloading Apache Kafka, once: {total / MB:.0f} MB", err=True)
        if next_s is None or clock() >= next_s or there == total:
            if next_s is not None:
                click.echo(f"downloading Apache Kafka: {there / MB:.0f} of {total / MB:.0f} MB", err=True)
            next_s = clock() + LINE_EVERY_S

    return report
