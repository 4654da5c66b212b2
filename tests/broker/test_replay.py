"""A replay of a real log: the live run's answers again, byte for byte, and the live side stays as it was."""

import itertools
import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Consumer, Producer, TopicPartition

from streamproc.cli.main import cli
from streamproc.config import Config, Topics
from streamproc.kafka.tailing import Tail
from streamproc.market.sample import sample_records
from streamproc.messages import Query, decode_answer
from streamproc.records import encode_record
from streamproc.replay.sink import place
from streamproc.settings import load_config

pytestmark = pytest.mark.broker

WAIT_S = 60
NUM_RECORDS = 300
QUERIES = [
    Query("trend", "Is {session} up from {low}? {count}", every=10, max_tokens=6),
    Query("last", "Last of {session}?", "BTC*", every=4, max_tokens=3),
]


@dataclass
class Site:
    """Topics, settings and questions of one test."""

    config: Config
    flags: list[str]
    queries: str

    def replay(self, *args: object) -> Result:
        command = ["replay", *map(str, args), "--queries", self.queries, *self.flags]
        return CliRunner().invoke(cli, command)

    def read(self, topic: str) -> dict[tuple[int, int], bytes | None]:
        """Committed messages of a topic by partition and offset."""
        from streamproc.kafka.cluster import Cluster

        tail = Tail(dict(self.config.kafka), topic, Cluster(dict(self.config.kafka)).partition_counts()[topic])
        try:
            tail.start(tail.starts())
            return {(message.partition, message.offset): message.value for message in tail.read_to_end()}
        finally:
            tail.close()

    def everything(self) -> dict[str, object]:
        """All that a replay must not touch."""
        topics = [getattr(self.config.topics, name) for name in Topics.__dataclass_fields__]
        consumer = Consumer({**self.config.kafka, "group.id": self.config.worker.group})
        asked = [TopicPartition(self.config.topics.records, number) for number in (0, 1)]
        committed = [item.offset for item in consumer.committed(asked, 10)]
        consumer.close()
        return {"committed": committed, **{topic: self.read(topic) for topic in topics}}

    def live_answers(self) -> list[bytes]:
        """By partition, offset and query."""
        values = [value for value in self.read(self.config.topics.answers).values() if value]
        return sorted(values, key=lambda value: place(decode_answer(value)))


@pytest.fixture
def site(bootstrap_servers: str, make_topics: Callable[..., Topics], tmp_path: Path) -> Site:
    topics = make_topics(2)
    names = "\n".join(f'{name} = "{getattr(topics, name)}"' for name in Topics.__dataclass_fields__)
    path = tmp_path / "streamproc.toml"
    path.write_text(
        f'[topics]\n{names}\n[engine]\nmodel = "random-tiny"\ncontext_tokens = 256\nkv_bytes = 8388608\n'
        f'[worker]\ngroup = "{topics.records}"\n[kafka]\n"bootstrap.servers" = "{bootstrap_servers}"\n'
    )
    queries = tmp_path / "queries.toml"
    queries.write_text("\n".join(f"[query.{query.id}]\n{table(query)}" for query in QUERIES))
    return Site(load_config(path, environ={}), ["--config", str(path)], str(queries))


def table(query: Query) -> str:
    doc = {name: value for name, value in json.loads(query.encode()).items() if name not in ("v", "answer")}
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in doc.items())


def fill(site: Site, num_records: int = NUM_RECORDS) -> int:
    """Records in transactions, one of them aborted at the end, and questions -> answers that these call for."""
    topics = site.config.topics
    properties = {**site.config.kafka, "partitioner": "murmur2_random", "transactional.id": topics.records}
    producer = Producer(properties)
    producer.init_transactions()
    producer.begin_transaction()
    for query in QUERIES:
        producer.produce(topics.control, query.encode(), query.id)
    producer.commit_transaction()
    records = list(itertools.islice(sample_records(), num_records))
    for first, is_kept in ((0, True), (num_records // 2, True), (0, False)):
        producer.begin_transaction()
        for record in records[first : first + num_records // 2]:
            producer.produce(topics.records, encode_record(record), record.sym)
        producer.flush()
        (producer.commit_transaction if is_kept else producer.abort_transaction)()
    counts = Counter(record.sym for record in records)
    return sum(count // query.every for sym, count in counts.items() for query in QUERIES if query.matches(sym))


@pytest.fixture
def live(site: Site) -> Site:
    """A site where a worker has answered everything there was, and is gone."""
    from streamproc.worker import start_worker

    wanted = fill(site)
    done, warnings = threading.Event(), list[str]()
    worker = start_worker(site.config, warnings.append)
    thread = threading.Thread(target=worker.run, args=(done.is_set,), name="worker")
    thread.start()
    tail = Tail(dict(site.config.kafka), site.config.topics.answers, 2)
    tail.start(tail.starts())
    num_answers, deadline_s = 0, tail.clock() + WAIT_S
    while num_answers < wanted and tail.clock() < deadline_s:
        num_answers += len(tail.poll(0.2))
    done.set()
    thread.join(WAIT_S)
    tail.close()
    assert num_answers == wanted, warnings
    return site


def test_a_replay_into_a_file_gives_the_live_answers_again_and_leaves_the_live_side_alone(live: Site, tmp_path: Path):
    before, answers = live.everything(), live.live_answers()
    for name in ("once.jsonl", "twice.jsonl"):
        result = live.replay("--out", tmp_path / name, "--json")
        assert result.exit_code == 0, result.stderr
        doc = json.loads(result.stdout)
        assert (doc["_command"], doc["records"], doc["answers"]) == ("replay", NUM_RECORDS, len(answers))
        assert (doc["sessions"], doc["dead"], doc["out"]) == (3, 0, str(tmp_path / name))
        assert (tmp_path / name).read_bytes() == b"".join(value + b"\n" for value in answers)
    middle = tmp_path / "middle.jsonl"
    result = live.replay("--from", "40", "--to", "70", "--out", middle)
    assert result.exit_code == 0, result.stderr
    wanted = [value for value in answers if 40 <= place(decode_answer(value))[1] < 70]
    assert wanted
    assert middle.read_bytes() == b"".join(value + b"\n" for value in wanted)
    assert live.everything() == before


def test_a_replay_into_a_topic_makes_it_and_writes_each_answer_once(live: Site):
    before, out = live.everything(), f"{live.config.topics.answers}.bt.1"
    result = live.replay("--out", out)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert sorted(live.read(out).values()) == sorted(live.live_answers())
    assert live.everything() == before
    again = live.replay("--out", out)
    assert "exists: the answers are added" in again.stderr


def test_an_interrupted_replay_leaves_no_file_and_exits_with_130(site: Site, tmp_path: Path):
    fill(site, 4_000)
    out = tmp_path / "out" / "a.jsonl"
    out.parent.mkdir()
    command = [sys.executable, "-m", "streamproc", "replay", "--out", str(out), "--queries", site.queries, *site.flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert process.stderr.readline().startswith("replaying 2 partitions")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, stderr
    assert stderr == f"interrupted: {out} is not written\n"
    assert not list(out.parent.iterdir())


def test_what_cannot_be_replayed_is_refused_with_one_line(site: Site, tmp_path: Path):
    topics, out = site.config.topics, tmp_path / "a.jsonl"
    refusals = {
        ("--out", out): f"topic {topics.records}: there is no record between --from and --to",
        ("--out", topics.answers): f"--out: {topics.answers} is a live topic",
        ("--out", tmp_path / "none" / "a.jsonl"): f"--out: there is no folder {tmp_path / 'none'}",
        ("--out", "answers.json"): "--out: 'answers.json' is no topic, and the name of a file ends in .jsonl",
        ("--out", out, "--from", "yesterday"): "'yesterday' is no position",
        ("--out", out, "-X", f"topics.records={topics.records}.none"): "does not exist: create it with",
    }
    for args, reason in refusals.items():
        result = site.replay(*args)
        assert result.exit_code in (1, 2), result.stderr
        assert reason in result.stderr
        assert result.stderr.count("\n") == 1
    assert not out.exists()
