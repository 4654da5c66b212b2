"""A worker on a real Kafka: the processor, wired, and run until it is told to stop."""

import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

from streamproc.config import Config
from streamproc.engine.build import Engine, build_engine
from streamproc.engine.gpu.parallel import ALONE, Ranks
from streamproc.kafka.control import ControlTopic
from streamproc.kafka.epoch import EpochSink, transactional_id
from streamproc.kafka.properties import check_reachable, client_properties
from streamproc.kafka.release import transactions_at_risk
from streamproc.kafka.source import Source
from streamproc.keeper import check_store, make_keeper
from streamproc.ports import Clock
from streamproc.processor import StreamProcessor, collect_rarely


@dataclass(frozen=True, slots=True)
class Worker:
    """A processor that owns its clients."""

    processor: StreamProcessor
    engine: Engine
    control: ControlTopic

    def run(self, is_stopped: Callable[[], bool]) -> None:
        """Until it is told to stop; then the open epoch is committed and the group is left."""
        try:
            while not is_stopped():
                self.processor.step()
            self.processor.close()
        finally:
            self.processor.calls.close()    # whoever waits is told, whatever has happened
            self.processor.source.abandon()     # after a failure others need not wait for the session timeout
            if self.processor.keeper:
                self.processor.keeper.close()
        self.control.close()
        self.engine.close()


def named(config: Config) -> Config:
    """The config with a slot: one of this process's own where none is given."""
    if config.worker.slot:
        return config
    slot = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    return replace(config, worker=replace(config.worker, slot=slot))


def start_worker(config: Config, warn: Callable[[str], None], ranks: Ranks = ALONE) -> Worker:
    """Model loaded, transactions ready, control topic read, group joined. Raises Usage or Unavailable, in one line.

    ranks: the processes that share the model; this is the first of them.
    """
    collect_rarely()
    instance_id = config.worker.slot or None  # a slot that is made up for a run is no name to come back to
    config = named(config)
    properties = client_properties(config)
    check_reachable(properties)
    if problem := transactions_at_risk(properties):
        warn(problem)
    check_store(config)
    engine = build_engine(config, ranks)
    keeper = make_keeper(config, engine, warn)
    control = ControlTopic(config)
    sink = EpochSink(properties, transactional_id(config), warn)
    processor = StreamProcessor(config, engine, sink, control, Clock())
    source = Source(config, processor, warn, instance_id, engine.model)
    processor.connect(source, keeper)
    return Worker(processor, engine, control)
