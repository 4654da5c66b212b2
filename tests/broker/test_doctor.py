import json
import socket
import time
import uuid
from dataclasses import asdict

import pytest
from click.testing import CliRunner

from streamproc.cli.broker_checks import check_advertised
from streamproc.cli.checks import FAIL, OK
from streamproc.cli.main import cli
from streamproc.config import Config
from streamproc.errors import Refused, Unavailable
from streamproc.kafka.properties import Cluster, check_reachable, client_properties, parse_servers
from streamproc.kafka.release import AT_RISK, newest_level, transactions_at_risk

pytestmark = pytest.mark.broker


def doctor(*args):
    """The exit code and the findings as (name, state, detail)."""
    result = CliRunner().invoke(cli, ["doctor", "--json", *args])
    doc = json.loads(result.stdout)
    return result.exit_code, [(check["name"], check["state"], check["detail"]) for check in doc["checks"]]


def names_of(topics):
    return [f"-Xtopics.{role}={name}" for role, name in asdict(topics).items()]


def test_all_is_well_where_a_worker_could_start(bootstrap_servers, make_topics, tmp_path):
    topics = make_topics(partitions=2)
    status, checks = doctor("-b", bootstrap_servers, *names_of(topics))
    assert [check for check in checks if check[1] == FAIL] == []
    assert status == 0
    assert ("bootstrap", OK, f"{bootstrap_servers.split(',')[0]} listens") in checks
    assert {"settings", "librdkafka", "cluster", "advertised", "topic", "model", "memory", "state"} <= {
        c[0] for c in checks
    }


def test_the_kafka_of_the_tests_says_what_it_can_do_and_ends_its_transactions(bootstrap_servers):
    level = newest_level(parse_servers(bootstrap_servers)[0])
    assert level is not None
    assert level not in AT_RISK
    assert transactions_at_risk({"bootstrap.servers": bootstrap_servers}) is None


def test_a_missing_topic_fails_with_the_command_that_makes_it(bootstrap_servers):
    name = f"missing-{uuid.uuid4().hex}"
    result = CliRunner().invoke(cli, ["doctor", "-b", bootstrap_servers, "-X", f"topics.dead={name}"])
    assert result.exit_code == 3
    (line,) = [line for line in result.stdout.splitlines() if name in line and "missing" in line and "topic " in line]
    assert line.startswith("FAIL")
    assert line.endswith("-> streamproc topics create")


def test_an_advertised_address_that_does_not_answer_is_named():
    with socket.socket() as held, socket.create_server(("127.0.0.1", 0)) as listener:
        held.bind(("127.0.0.1", 0))
        closed = held.getsockname()
        checks = list(check_advertised(Cluster("id", 1, {1: listener.getsockname(), 2: closed})))
    assert [check.state for check in checks] == [OK, FAIL]
    assert f"broker 2 at 127.0.0.1:{closed[1]}: connection refused" in checks[1].detail
    assert "advertised.listeners of broker 2" in checks[1].mend


def test_a_dead_broker_stops_no_other_check_and_costs_seconds():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        started = time.monotonic()
        status, checks = doctor("-b", f"127.0.0.1:{held.getsockname()[1]}", "-X", "engine.keep=7")
        assert time.monotonic() - started < 15
    assert status == 3
    assert [name for name, state, _ in checks if state == FAIL] == ["settings", "bootstrap"]
    assert {"model", "memory", "state", "topics"} <= {name for name, _, _ in checks}


def test_a_listener_that_is_no_broker_is_told_in_time():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        status, checks = doctor("-b", f"127.0.0.1:{listener.getsockname()[1]}")
        assert time.monotonic() - started < 15
    assert status == 3
    assert "cluster" in [name for name, state, _ in checks if state == FAIL]


def test_a_report_has_no_secrets(bootstrap_servers):
    secret = "hunter2"
    args = ["-X", "security.protocol=SASL_PLAINTEXT", "-X", "sasl.mechanism=PLAIN", "-X", "sasl.username=me"]
    result = CliRunner().invoke(
        cli, ["doctor", "--report", "-b", bootstrap_servers, *args, "-X", f"sasl.password={secret}"]
    )
    assert result.exit_code == 3
    assert secret not in result.output
    assert '"sasl.password" = "***"' in result.stdout


def test_the_cluster_is_told_with_its_brokers(bootstrap_servers):
    cluster = check_reachable(client_properties(Config(kafka={"bootstrap.servers": bootstrap_servers})))
    assert cluster.id
    assert cluster.brokers


def test_a_login_that_the_broker_refuses_is_told_before_the_time_is_over(bootstrap_servers):
    login = {"sasl.mechanism": "PLAIN", "sasl.username": "me", "sasl.password": "x"}
    kafka = {"bootstrap.servers": bootstrap_servers, "security.protocol": "SASL_PLAINTEXT", **login}
    started = time.monotonic()
    with pytest.raises((Refused, Unavailable)):
        check_reachable(client_properties(Config(kafka=kafka)), timeout_s=30)
    assert time.monotonic() - started < 15
