"""A log of one partition that three sessions write to, and workers that find that it no longer fits."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from confluent_kafka import Consumer, TopicPartition
from fakes import FakeEngine
from workers import Site, ThreadWorker, make_config, until

from streamproc.config import Config, Topics
from streamproc.errors import Refused
from streamproc.messages import Query
from streamproc.records import Trade

TRIGGERED = [Query("always-2", "Is {last} {count}?", every=2, max_tokens=5)]


def one_partition(bootstrap_servers: str, make_topics: Callable[..., Topics]) -> Site:
    """Fresh topics with a question that records trigger."""
    site = Site(make_config(make_topics(1), bootstrap_servers), 1)
    site.register(TRIGGERED)
    return site


def with_policy(config: Config, policy: str) -> Config:
    return replace(config, worker=replace(config.worker, on_gap=policy))


def trades(start: int, count: int) -> list[Trade]:
    return [Trade("ABC"[i % 3], 1_000 + i, f"{90 + i * 7 % 23}.{i % 10}", "1") for i in range(start, start + count)]


def work(site: Site, start: int, count: int, config: Config | None = None) -> list[str]:
    """Records sent and answered by a worker of its own -> its warnings."""
    site.send_records(trades(start, count))
    with ThreadWorker(config or site.config) as worker:
        site.settle()
    return worker.warnings


def refusal(site: Site, engine: FakeEngine | None = None) -> str:
    """The line with which a worker stops."""
    worker = ThreadWorker(with_policy(site.config, "fail"), engine)
    until(lambda: worker.has_ended, "the end of the worker")
    with pytest.raises(Refused) as problem:
        worker.stop()
    line = str(problem.value)
    assert "\n" not in line
    assert "set worker.on_gap = rebuild" in line
    return line


def goes_on(site: Site, start: int) -> str:
    """What a worker says that goes on, and after it none has anything to say."""
    said = work(site, start, 20, with_policy(site.config, "rebuild"))
    assert work(site, start + 20, 20) == []
    (line,) = [line for line in said if "worker.on_gap = rebuild" in line]
    return line


def commit_by_hand(site: Site, topic: str, offset: int, metadata: str = "") -> None:
    """As kafka-consumer-groups --reset-offsets does, while nobody is in the group."""
    consumer = Consumer({**site.config.kafka, "group.id": site.config.worker.group})
    consumer.commit(offsets=[TopicPartition(topic, 0, offset, metadata=metadata)], asynchronous=False)
    consumer.close()
