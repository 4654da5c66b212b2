import logging
import socket

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from streamproc.config import Config
from streamproc.errors import Unavailable, Usage
from streamproc.kafka.properties import (
    check_reachable,
    client_properties,
    connect,
    open_port,
    parse_servers,
)
from streamproc.kafka.translate import translate

PLAIN = {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"}
SCRAM = {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512"}
LOGIN = {"sasl.username": "u", "sasl.password": "p"}
PACKAGE = "org.apache.kafka.common.security"


@pytest.fixture
def closed_port():
    """A port of this machine on which nobody listens, and nobody else will meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def refusal(**properties):
    with pytest.raises(Usage) as caught:
        translate({name.replace("__", "."): value for name, value in properties.items()})
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("java", "ours"),
    [
        ({"linger.ms": "5", "acks": "all"}, {"linger.ms": "5", "acks": "all"}),
        ({"ssl.truststore.location": "ca.pem", "ssl.truststore.password": "x"}, {"ssl.ca.location": "ca.pem"}),
        ({"ssl.truststore.location": "ca", "ssl.truststore.type": "PEM"}, {"ssl.ca.location": "ca"}),
        ({"ssl.truststore.certificates": "PEM"}, {"ssl.ca.pem": "PEM"}),
        ({"ssl.keystore.location": "me.p12"}, {"ssl.keystore.location": "me.p12"}),
        (
            {"ssl.keystore.location": "me.pem", "ssl.key.password": "k"},
            {"ssl.certificate.location": "me.pem", "ssl.key.location": "me.pem", "ssl.key.password": "k"},
        ),
        (
            PLAIN | {"sasl.jaas.config": f'{PACKAGE}.plain.PlainLoginModule required username="u" password="p";'},
            PLAIN | LOGIN,
        ),
        (
            {
                "security.protocol": "SASL_SSL",
                "sasl.jaas.config": f"{PACKAGE}.plain.PlainLoginModule required username='u' password=p;",
            },
            PLAIN | LOGIN,
        ),
        (
            SCRAM | {"sasl.jaas.config": 'a.ScramLoginModule required\n  username = "a\\"b" \n password="; =";'},
            SCRAM | {"sasl.username": 'a"b', "sasl.password": "; ="},
        ),
        (
            PLAIN
            | {"sasl.password": "new", "sasl.jaas.config": 'x.PlainLoginModule required username="u" password="old";'},
            PLAIN | {"sasl.username": "u", "sasl.password": "new"},
        ),
        (SCRAM | LOGIN, SCRAM | LOGIN),
        (
            {"partition.assignment.strategy": "org.apache.kafka.clients.consumer.CooperativeStickyAssignor"},
            {"partition.assignment.strategy": "cooperative-sticky"},
        ),
        (
            {
                "fetch.max.wait.ms": "9",
                "max.request.size": "2000",
                "send.buffer.bytes": "9",
                "receive.buffer.bytes": "9",
            },
            {
                "fetch.wait.max.ms": "9",
                "message.max.bytes": "2000",
                "socket.send.buffer.bytes": "9",
                "socket.receive.buffer.bytes": "9",
            },
        ),
        (
            {"enable.auto.commit": "false", "isolation.level": "read_committed"},
            {"enable.auto.commit": "false", "isolation.level": "read_committed"},
        ),
    ],
)
def test_java_properties_are_translated(java, ours):
    translation = translate(java)
    assert translation.properties == ours
    assert translation.notes == ()


@pytest.mark.parametrize("client", [Producer, AdminClient, Consumer])
@pytest.mark.parametrize(
    "java",
    [
        {"fetch.max.wait.ms": "9", "max.request.size": "2000", "send.buffer.bytes": "9", "receive.buffer.bytes": "9"},
        PLAIN | {"sasl.jaas.config": 'x.PlainLoginModule required username="u" password="p";'},
        SCRAM | LOGIN,
        {"security.protocol": "SSL", "ssl.endpoint.identification.algorithm": "", "ssl.enabled.protocols": "TLSv1.3"},
        {"key.serializer": "x", "value.deserializer": "y", "interceptor.classes": "z", "buffer.memory": "1"},
        {"partition.assignment.strategy": "org.apache.kafka.clients.consumer.RangeAssignor"},
    ],
)
def test_librdkafka_takes_what_was_translated(client, java):
    properties = client_properties(Config(kafka=java)) | ({"group.id": "g"} if client is Consumer else {})
    made = connect(client, properties)
    if client is Consumer:
        made.close()


def test_what_only_java_knows_is_left_out_and_listed_once():
    java = {"value.serializer": "x", "key.serializer": "x", "interceptor.classes": "x", "metrics.num.samples": "2"}
    translation = translate(java | {"linger.ms": "5"})
    assert translation.properties == {"linger.ms": "5"}
    (note,) = translation.notes
    assert note.endswith("left out: interceptor.classes, key.serializer, metrics.num.samples, value.serializer")


def test_an_empty_host_name_check_is_switched_off_with_a_warning():
    translation = translate({"ssl.endpoint.identification.algorithm": ""})
    assert translation.properties == {"ssl.endpoint.identification.algorithm": "none"}
    assert "not verified" in translation.notes[0]


@pytest.mark.parametrize(
    ("properties", "mend"),
    [
        ({"ssl__truststore__location": "x.jks"}, "run `keytool -list -rfc -keystore x.jks > x.pem`"),
        ({"ssl__truststore__location": "x.p12"}, "run `openssl pkcs12 -in x.p12 -nokeys -out x.pem`"),
        ({"ssl__keystore__location": "x.jks"}, "-importkeystore -srckeystore x.jks -destkeystore x.p12"),
        ({"sasl__mechanism": "PLAIN"}, "set security.protocol=SASL_SSL"),
        ({"sasl__mechanism": "PLAIN", "security__protocol": "SSL"}, "set security.protocol=SASL_SSL"),
        ({"security__protocol": "SASL_SSL"}, "set it to PLAIN, SCRAM-SHA-256"),
        ({"security__protocol": "SASL_SSL", "sasl__mechanism": "GSSAPI"}, "needs a librdkafka built from source"),
        ({"security__protocol": "SASL_SSL", "sasl__mechanism": "PLAIN"}, "needs sasl.username"),
        ({"sasl__jaas__config": "com.sun.Krb5LoginModule required;"}, "Kerberos"),
        ({"sasl__jaas__config": "a.OAuthBearerLoginModule required;"}, "set sasl.mechanism=OAUTHBEARER"),
        ({"sasl__jaas__config": "a.ScramLoginModule required username=a;"}, "add sasl.mechanism=SCRAM-SHA-256"),
        ({"sasl__jaas__config": "nonsense"}, "set sasl.username and sasl.password"),
    ],
)
def test_what_cannot_be_translated_is_refused_with_the_line_that_mends_it(properties, mend):
    assert mend in refusal(**properties)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("group.id", "g", "worker.group"),
        ("enable.auto.commit", "true", "committed together"),
        ("isolation.level", "read_uncommitted", "aborted epoch"),
        ("transactional.id", "t", "worker.slot"),
        ("auto.offset.reset", "latest", "worker.start"),
        ("partitioner", "consistent", "same partition|land in the partition"),
    ],
)
def test_what_the_worker_must_own_is_refused_with_the_reason(name, value, reason):
    with pytest.raises(Usage, match=reason):
        translate({name: value})


@pytest.mark.parametrize(
    ("properties", "name"),
    [({"no.such.key": "1"}, "no.such.key"), ({"linger.ms": "soon"}, "queue.buffering.max.ms"), ({"acks": {}}, "acks")],
)
def test_a_property_that_librdkafka_refuses_is_told_in_one_line(properties, name):
    with pytest.raises(Usage) as caught:
        connect(Producer, {"bootstrap.servers": "127.0.0.1:1", **properties})
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("Kafka properties: ")


def test_the_default_broker_is_the_one_on_this_machine():
    assert client_properties(Config())["bootstrap.servers"] == "127.0.0.1:9092"


def test_librdkafka_is_silent_until_logging_is_configured():
    logger = client_properties(Config())["logger"]
    assert any(isinstance(handler, logging.NullHandler) for handler in logger.handlers)


def test_a_broker_that_is_not_there_is_told_at_once_with_its_address(closed_port):
    config = Config(kafka={"bootstrap.servers": f"127.0.0.1:{closed_port}"})
    with pytest.raises(Unavailable) as caught:
        check_reachable(client_properties(config), timeout_s=30)
    assert str(caught.value) == (
        f"no broker answers at 127.0.0.1:{closed_port}: start one with `streamproc broker start` or pass -b"
    )


def test_a_port_that_listens_but_is_no_broker_is_told_within_the_time():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = Config(kafka={"bootstrap.servers": f"127.0.0.1:{listener.getsockname()[1]}"})
        with pytest.raises(Unavailable):
            check_reachable(client_properties(config), timeout_s=0.5)


def test_an_open_port_has_no_complaint(closed_port):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert open_port(listener.getsockname(), 5) is None
    assert open_port(("127.0.0.1", closed_port), 5) == "connection refused"


def test_server_lists_are_read_as_kafka_writes_them():
    assert parse_servers("a:1, b,SASL_SSL://c:3,[::1]:4,[fe80::1]") == [
        ("a", 1),
        ("b", 9092),
        ("c", 3),
        ("::1", 4),
        ("fe80::1", 9092),
    ]


@pytest.mark.parametrize("servers", ["a:b", "a:0", "a:70000", "a:"])
def test_a_wrong_server_is_refused(servers):
    with pytest.raises(Usage, match="is not HOST:PORT"):
        parse_servers(servers)
