"""`topics create` and `topics check` on a real Kafka."""

import json
import uuid
from dataclasses import asdict

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient, NewTopic
from workers import create_topics

from streamproc.cli.topics import topics as topics_command
from streamproc.config import Topics
from streamproc.kafka.topics import check, create, load_specs

pytestmark = pytest.mark.broker


@pytest.fixture
def names() -> Topics:
    """Six names that nobody has used."""
    prefix = f"test-{uuid.uuid4().hex[:8]}"
    return Topics(**{role: f"{prefix}.{role}" for role in asdict(Topics())})


@pytest.fixture
def admin(bootstrap_servers: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap_servers})


def states(findings) -> dict[str, tuple[str, int | None]]:
    return {finding.role: (finding.state, finding.partitions) for finding in findings}


def test_missing_topics_are_created_and_then_everything_is_right(admin: AdminClient, names: Topics):
    specs = load_specs(names)
    assert {finding.state for finding in check(admin, specs)} == {"missing"}
    assert states(create(admin, specs, dry_run=True))["records"] == ("planned", 4)
    assert {finding.state for finding in check(admin, specs)} == {"missing"}
    expected = {"records": 4, "control": 1, "asks": 4, "answers": 4, "sessions": 4, "dead": 1}
    assert states(create(admin, specs)) == {role: ("created", count) for role, count in expected.items()}
    assert states(check(admin, specs)) == {role: ("ok", count) for role, count in expected.items()}
    assert states(create(admin, specs)) == {role: ("ok", count) for role, count in expected.items()}


def test_created_topics_can_be_used_at_once(admin: AdminClient, bootstrap_servers: str, names: Topics):
    create(admin, load_specs(names), partitions=2)
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": names.records})
    known = consumer.list_topics(timeout=10).topics
    consumer.close()
    assert len(known[names.records].partitions) == 2
    assert len(known[names.control].partitions) == 1


def test_what_follows_records_takes_its_number_and_a_mismatch_is_reported_not_changed(
    admin: AdminClient, names: Topics
):
    there = {names.records: 3, names.asks: 5, names.control: 1}
    create_topics(admin, *(NewTopic(name, count) for name, count in there.items()))
    specs = load_specs(names)
    made = {finding.role: finding for finding in create(admin, specs, partitions=6)}
    assert (made["records"].state, made["records"].partitions) == ("ok", 3)
    assert (made["sessions"].state, made["sessions"].partitions) == ("created", 3)
    assert made["asks"].problems == (f"has 5 partitions, needs 3: as many as {names.records}",)
    assert made["control"].problems == ("cleanup.policy is delete, needs compact",)
    assert states(check(admin, specs))["asks"] == ("differs", 5)


def test_a_topic_that_cannot_be_made_is_a_failed_item(admin: AdminClient, names: Topics):
    failed = create(admin, load_specs(names), replication=99)
    assert {(finding.state, finding.error) for finding in failed} == {("failed", "INVALID_REPLICATION_FACTOR")}


def run(bootstrap_servers: str, names: Topics, *args: str) -> tuple[int, dict]:
    overrides = [word for role, name in asdict(names).items() for word in ("-X", f"topics.{role}={name}")]
    done = CliRunner().invoke(topics_command, [*args, "-b", bootstrap_servers, "--json", *overrides])
    return done.exit_code, json.loads(done.stdout)


def test_exit_codes_and_json_of_the_command(bootstrap_servers: str, names: Topics):
    code, doc = run(bootstrap_servers, names, "check")
    assert (code, {item["state"] for item in doc["topics"]}) == (3, {"missing"})
    code, doc = run(bootstrap_servers, names, "create", "--replication", "99")
    assert (code, {item["error"] for item in doc["topics"]}) == (1, {"INVALID_REPLICATION_FACTOR"})
    assert all(item["message"] for item in doc["topics"])
    code, doc = run(bootstrap_servers, names, "create", "--partitions", "2")
    assert (code, doc["topics"][0]) == (
        0,
        {"role": "records", "name": names.records, "state": "created", "partitions": 2},
    )
    code, doc = run(bootstrap_servers, names, "check")
    assert (code, {item["state"] for item in doc["topics"]}) == (0, {"ok"})
