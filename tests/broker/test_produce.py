import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from confluent_kafka.admin import AdminClient, NewTopic
from workers import create_topics

from streamproc.cli.main import cli
from streamproc.client import Client
from streamproc.config import Config, Topics
from streamproc.kafka.tailing import Tail
from streamproc.messages import Query
from streamproc.records import Trade, decode_record, encode_record

pytestmark = pytest.mark.broker

CSV = "ts,symbol,price,size\n2021-01-08T00:00:00Z,BTC,1.50,2\n2021-01-08T00:00:01Z,BTC,1.60,3\n"
BAD = "yesterday,BTC,1,2\n"


@pytest.fixture
def config(bootstrap_servers: str, make_topics: Callable[..., Topics]) -> Config:
    return Config(make_topics(2), kafka={"bootstrap.servers": bootstrap_servers})


@pytest.fixture
def flags(config: Config, tmp_path: Path) -> list[str]:
    """The flags that lead a command to this test's topics."""
    lines = [f'{name} = "{getattr(config.topics, name)}"' for name in Topics.__dataclass_fields__]
    path = tmp_path / "streamproc.toml"
    path.write_text("[topics]\n" + "\n".join(lines))
    return ["--config", str(path), "-b", config.kafka["bootstrap.servers"]]


@pytest.fixture
def streamproc(flags: list[str]) -> Callable[..., Result]:
    def invoke(*args: str, **extra: object) -> Result:
        return CliRunner().invoke(cli, [*args, *flags], **extra)

    return invoke


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def records_in(config: Config) -> list:
    tail = Tail(dict(config.kafka), config.topics.records, 2)
    tail.start(tail.starts())
    try:
        return [decode_record(message.value, message.key) for message in tail.read_to_end()]
    finally:
        tail.close()


def test_every_record_of_the_sample_is_acknowledged_and_accounted_for(streamproc, config):
    result = streamproc("produce", "sample", "--json")
    assert result.exit_code == 0, result.stderr
    doc = json.loads(result.stdout)
    assert (doc["_command"], doc["sent"], doc["acknowledged"], doc["failed"]) == ("produce", 4001, 4001, 0)
    assert sum(offset + 1 for offset in doc["last_offsets"].values()) == 4001 == len(records_in(config))


def test_the_account_in_words(streamproc, tmp_path):
    result = streamproc("produce", written(tmp_path / "a.csv", CSV))
    assert result.exit_code == 0
    assert result.stdout.startswith("2 acknowledged, 0 failed, 0 skipped in ")
    assert "last offsets " in result.stdout


def test_records_come_from_standard_input(streamproc, config):
    lines = encode_record(Trade("A", 5, "1", "2")) + b"\n"
    assert streamproc("produce", "-", input=lines).exit_code == 0
    assert records_in(config) == [Trade("A", 5, "1", "2")]


def test_count_and_rate_hold(streamproc):
    doc = json.loads(streamproc("produce", "sample", "-n", "50", "--rate", "100/s", "--json").stdout)
    assert doc["acknowledged"] == 50
    assert doc["seconds"] >= 0.48


def test_speed_keeps_the_recorded_gaps(streamproc, tmp_path):
    doc = json.loads(streamproc("produce", written(tmp_path / "a.csv", CSV), "--speed", "2x", "--json").stdout)
    assert 0.49 <= doc["seconds"] < 5


def test_a_bad_first_row_is_usage_and_sends_nothing(streamproc, tmp_path, config):
    path = written(tmp_path / "a.csv", CSV.splitlines()[0] + "\n" + BAD)
    result = streamproc("produce", path, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"] == "BAD_RECORD"
    assert result.stderr == f"streamproc: {path}:2: {json.loads(result.stdout)['message'].split(': ', 1)[1]}\n"
    assert records_in(config) == []


def test_a_bad_row_half_way_fails_with_the_account_of_what_was_sent(streamproc, tmp_path, config):
    result = streamproc("produce", written(tmp_path / "a.csv", CSV + BAD + CSV.splitlines()[1]), "--json")
    assert result.exit_code == 1
    doc = json.loads(result.stdout)
    assert (doc["acknowledged"], doc["error"]) == (2, "BAD_RECORD")
    assert "a.csv:4: ts_event_ns: 'yesterday' is not a time" in doc["message"]
    assert len(records_in(config)) == 2


def test_skipped_rows_are_said_and_counted(streamproc, tmp_path):
    result = streamproc("produce", written(tmp_path / "a.csv", CSV + BAD + CSV.splitlines()[1]), "--skip-bad", "--json")
    assert result.exit_code == 0
    doc = json.loads(result.stdout)
    assert (doc["acknowledged"], doc["skipped"]) == (3, 1)
    assert result.stderr.startswith("skipped: ")
    assert "a.csv:4: " in result.stderr


def test_records_that_kafka_refuses_fail_the_command(streamproc, config, tmp_path):
    topic = f"{config.topics.records}.small"
    admin = AdminClient(dict(config.kafka))
    create_topics(admin, NewTopic(topic, 1, config={"max.message.bytes": "100"}))
    result = streamproc("produce", written(tmp_path / "a.csv", CSV), "-t", topic, "--json")
    assert result.exit_code == 1
    doc = json.loads(result.stdout)
    assert (doc["topic"], doc["acknowledged"], doc["failed"], doc["error"]) == (topic, 0, 2, "MSG_SIZE_TOO_LARGE")


def test_a_missing_topic_is_one_line(streamproc):
    result = streamproc("produce", "sample", "-t", "test-none")
    assert result.exit_code == 1
    assert result.stderr == "streamproc: topic test-none does not exist: create it with `streamproc topics create`\n"


def test_ctrl_c_flushes_says_so_and_exits_130(flags, config):
    command = [str(Path(sys.executable).with_name("streamproc")), "produce", "-", "--json", *flags]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}
    )
    process.stdin.write(encode_record(Trade("A", 5, "1", "2")) + b"\n")
    process.stdin.flush()
    with Client(config=config) as client:
        tail = client._tail(config.topics.records)
        tail.start(tail.starts())
        while not tail.poll(0.2):
            assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert json.loads(out)["acknowledged"] == 1
    assert b"interrupted; what had been sent was flushed" in err


def test_queries_are_added_listed_and_removed(streamproc, tmp_path):
    added = streamproc("query", "add", "trend", "Up?", "--every", "10", "--choice", "up", "--choice", "down")
    assert added.stdout.split()[::2] == ["trend", "added"]
    again = streamproc("query", "add", "trend", "Up?", "--trigger=every 10 records", "--choice=up", "--choice=down")
    assert again.stdout.split()[::2] == ["trend", "unchanged"]
    path = written(tmp_path / "q.toml", "[query.trend]\nquestion = 'Down?'\n[query.last]\nquestion = 'Last?'\n")
    filed = json.loads(streamproc("query", "add", "--file", path, "--json").stdout)
    assert [(query["id"], query["state"]) for query in filed["queries"]] == [("trend", "replaced"), ("last", "added")]
    listed = streamproc("query", "list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["ID", "last", "trend"]
    assert [query["version"] for query in json.loads(streamproc("query", "list", "--json").stdout)["queries"]] == [
        Query("last", "Last?").version,
        Query("trend", "Down?").version,
    ]
    assert streamproc("query", "remove", "last").exit_code == 0
    gone = streamproc("query", "remove", "last")
    assert gone.exit_code == 1
    assert "see `streamproc query list`" in gone.stderr


def test_ask_without_a_worker_fails_in_time_with_one_line(streamproc):
    result = streamproc("ask", "Up?", "--session", "BTC", "--timeout", "300ms", "-X", "worker.group=test-nobody")
    assert result.exit_code == 1
    assert "within 0.3 s: no worker of group 'test-nobody' is up" in result.stderr


def test_answers_of_an_empty_topic_are_a_header_and_an_end(streamproc):
    result = streamproc("answers")
    assert result.exit_code == 0
    assert result.stdout.split() == ["TIME", "SESSION", "QUERY", "AS-OF", "TEXT"]
    assert streamproc("answers", "--json").stdout == ""


def test_following_answers_stops_with_the_line_that_goes_on(flags):
    command = [str(Path(sys.executable).with_name("streamproc")), "answers", "--follow", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline().startswith(b"TIME")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == b"stopped at 0:0,1:0; continue with --from 0:0,1:0\n"
