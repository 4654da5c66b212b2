"""The demo from its first line to its last: a Kafka, topics, questions, a worker, the play, the check, the account.

Whatever ends it, nothing that it started is left behind.
"""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamproc.client import Client
from streamproc.config import Config, state_dir
from streamproc.demo.cluster import Progress, Say, open_kafka, prepare_topics
from streamproc.demo.plan import NOISE, Plan, demo_config, kinds_of, standing_questions, write_config
from streamproc.demo.play import Draw, Player
from streamproc.demo.summary import Numbers, Summary
from streamproc.demo.verify import verify
from streamproc.demo.watch import Watch
from streamproc.demo.worker import WorkerProcess
from streamproc.engine.source import model_folder
from streamproc.errors import Refused
from streamproc.market.rendering import read_rendering


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the demo shows itself; `screen` is open while there is a picture to draw."""

    say: Say
    progress: Progress  # of the first download
    screen: Callable[[], AbstractContextManager[Draw]]


def run_demo(config: Config, plan: Plan, stage: Stage) -> Summary:
    """Ctrl-C during the play ends the play, at any other time the demo. Raises Unavailable, Refused or Usage."""
    start_s = time.monotonic()
    folder = state_dir() / "demo"
    with ExitStack() as stack:
        stack.enter_context(alone(folder))
        kafka = open_kafka(stack, config, plan.port, stage.say, stage.progress)
        stage.say(f"{kafka.name} at {kafka.address}")
        config = demo_config(config, kafka.address)
        num_partitions = prepare_topics(config, kafka, plan.clean, stage.say)
        player = set_up(stack, config, num_partitions, folder)
        interrupted = perform(player, plan, stage)
        done = player.worker.finish()
        player.watch.read_rest(asked.answer for asked in player.asked)
        stage.say("checking answers against a recomputation from the log")
        verdict = verify(config, player.watch, player.asked, standing_questions(player.kinds))
    numbers = account(player, done, time.monotonic() - start_s, interrupted)
    return Summary(kafka, numbers, verdict, player.watch.judge.accuracy(), folder)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the demo's folder, and keep other demos out of it. Raises Refused."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "demo.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused("another demo is running here: wait for its end, or set STREAMPROC_STATE_DIR") from None
        yield


def set_up(stack: ExitStack, config: Config, num_partitions: int, folder: Path) -> Player:
    """Questions registered and a worker started, with somebody watching; all of it ends with the stack."""
    file = folder / "streamproc.toml"
    write_config(config, file)
    kinds = kinds_of(read_rendering(model_folder(config.engine.model)))
    client = stack.enter_context(Client(config=config))
    for query in standing_questions(kinds):
        client.register(query)
    watch = stack.enter_context(closing(Watch(config, num_partitions, kinds.values())))
    worker = stack.enter_context(closing(WorkerProcess(file, folder / "worker.log")))
    return Player(client, watch, worker, kinds)


def perform(player: Player, plan: Plan, stage: Stage) -> bool:
    """Play, and wait for every answer -> whether somebody has cut it short."""
    stage.say(player.worker.await_ready())
    if player.client.config.engine.model == NOISE:
        stage.say(f"{NOISE} has random weights: its words are noise, all else is real")
    interrupted = False
    with stage.screen() as draw:
        try:
            player.play(plan, draw)
        except KeyboardInterrupt:
            interrupted = True
            stage.say("interrupted: waiting for the answers that are due")
        player.await_answers(standing_questions(player.kinds), draw)
    return interrupted


def account(player: Player, done: dict[str, Any], seconds: float, interrupted: bool) -> Numbers:
    """The run in numbers; `done` is the worker's own count."""
    watch = player.watch
    return Numbers(
        records=watch.num_records,
        answers=len(watch.flash),
        sessions=tuple(watch.sessions()),
        asks=len(player.asked),
        seconds=round(seconds, 1),
        records_per_s=round(watch.num_records / max(player.playing_s, 0.001), 1),
        freshness_ms_p50=watch.freshness_ms(),
        tokens=done["tokens"],
        interrupted=interrupted,
    )
