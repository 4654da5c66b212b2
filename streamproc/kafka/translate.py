"""Kafka client properties as people paste them from Java, in librdkafka's words.

What has a counterpart is translated, what has none and does no harm is dropped with a note, and what would leave the
client connecting to something else than meant is refused with the line that mends it. Pure: no client is made here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath

from streamproc.errors import Usage

RENAMED = {
    "fetch.max.wait.ms": "fetch.wait.max.ms",
    "max.request.size": "message.max.bytes",
    "receive.buffer.bytes": "socket.receive.buffer.bytes",
    "sasl.mechanisms": "sasl.mechanism",
    "send.buffer.bytes": "socket.send.buffer.bytes",
    "ssl.keystore.certificate.chain": "ssl.certificate.pem",
    "ssl.keystore.key": "ssl.key.pem",
    "ssl.truststore.certificates": "ssl.ca.pem",
}
ASSIGNORS = {
    "CooperativeStickyAssignor": "cooperative-sticky",
    "RangeAssignor": "range",
    "RoundRobinAssignor": "roundrobin",
}
JAVA_ONLY = re.compile(
    r".+\.(?:de)?serializer|.+\.classes|.+\.handler\.class|metrics?\..+|partitioner\..+|config\.providers.*"
    r"|ssl\.(?:protocol|provider|enabled\.protocols|secure\.random\.implementation|(?:trust|key)manager\.algorithm)"
    r"|sasl\.login\..+|auto\.include\.jmx\.reporter|buffer\.memory|default\.api\.timeout\.ms|exclude\.internal\.topics"
    r"|max\.block\.ms|security\.providers|socket\.connection\.setup\.timeout\.max\.ms"
    r"|internal\..+|group\.remote\.assignor"
)
# what streamproc sets itself: (its own value, which may be given too; why it is not the user's)
OWNED = {
    "auto.offset.reset": (None, "say where a new group starts with worker.start"),
    "enable.auto.commit": ("false", "offsets are committed together with the answers they led to"),
    "enable.auto.offset.store": ("false", "offsets are committed together with the answers they led to"),
    "enable.idempotence": ("true", "a message that is sent twice would break exactly-once"),
    "group.id": (None, "name the group with worker.group"),
    "group.instance.id": (None, "name the worker with worker.slot"),
    "isolation.level": ("read_committed", "answers of an aborted epoch must not be seen"),
    "partitioner": ("murmur2_random", "a key must land in the partition where every other client puts it"),
    "transactional.id": (None, "it is made from worker.group and worker.slot"),
}
PEM_SUFFIXES = (".pem", ".crt", ".cer")
PKCS12_SUFFIXES = (".p12", ".pfx", ".pkcs12")
MECHANISMS = "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
KERBEROS = (
    "Kerberos (GSSAPI) needs a librdkafka built from source, which this one is not; "
    "see https://github.com/confluentinc/confluent-kafka-python#install"
)
JAAS = re.compile(r"\s*([\w.$]+)\s+\w+(.*?);?\s*", re.DOTALL)
JAAS_OPTION = re.compile(r"""(\w+)\s*=\s*(?:"((?:\\.|[^"\\])*)"|'((?:\\.|[^'\\])*)'|([^\s;]+))""")


@dataclass(frozen=True, slots=True)
class Translation:
    """Properties librdkafka understands, and one line for each thing that was changed or left out."""

    properties: dict[str, str]
    notes: tuple[str, ...] = ()


def translate(properties: Mapping[str, str]) -> Translation:
    """Raises Usage with the line that mends a property which cannot be taken over."""
    check_owned(properties)
    found = {RENAMED.get(key, key): value for key, value in properties.items() if not JAVA_ONLY.fullmatch(key)}
    notes = []
    if dropped := sorted(key for key in properties if JAVA_ONLY.fullmatch(key)):
        notes.append(f"Kafka properties that only Java knows were left out: {', '.join(dropped)}")
    if found.get("ssl.endpoint.identification.algorithm") == "":
        found["ssl.endpoint.identification.algorithm"] = "none"
        notes.append("the broker's host name is not verified: ssl.endpoint.identification.algorithm is empty")
    found = keystore(truststore(jaas(found)))
    if "partition.assignment.strategy" in found:
        found["partition.assignment.strategy"] = assignors(found["partition.assignment.strategy"])
    check_sasl(found)
    return Translation(found, tuple(notes))


def check_owned(properties: Mapping[str, str]) -> None:
    """Refuses what streamproc sets itself, unless it is the very value that it sets."""
    for key, (own, reason) in OWNED.items():
        if key in properties and (own is None or properties[key].strip().lower() != own):
            raise Usage(f"Kafka property {key} = {properties[key]!r} is not yours to set: {reason}; take it out")


def truststore(properties: Mapping[str, str]) -> dict[str, str]:
    """Java's truststore as ssl.ca.location, where it is a PEM file."""
    found = dict(properties)
    path = found.pop("ssl.truststore.location", "")
    kind = store_kind(path, found.pop("ssl.truststore.type", ""))
    found.pop("ssl.truststore.password", None)
    if path and kind != "PEM":
        pem = PurePath(path).with_suffix(".pem")
        how = {
            "JKS": f"keytool -list -rfc -keystore {path} > {pem}",
            "PKCS12": f"openssl pkcs12 -in {path} -nokeys -out {pem}",
        }[kind]
        raise Usage(
            f"Kafka property ssl.truststore.location = {path!r}: only PEM can be read; "
            f"run `{how}` and set ssl.ca.location={pem}"
        )
    return found | ({"ssl.ca.location": path} if path else {})


def keystore(properties: Mapping[str, str]) -> dict[str, str]:
    """Java's keystore: PKCS#12 as it is, PEM as certificate and key."""
    found = dict(properties)
    path = found.get("ssl.keystore.location", "")
    kind = store_kind(path, found.pop("ssl.keystore.type", ""))
    if not path or kind == "PKCS12":
        return found
    if kind == "JKS":
        p12 = PurePath(path).with_suffix(".p12")
        raise Usage(
            f"Kafka property ssl.keystore.location = {path!r}: a JKS file cannot be read; run `keytool "
            f"-importkeystore -srckeystore {path} -destkeystore {p12} -deststoretype PKCS12` and set "
            f"ssl.keystore.location={p12}"
        )
    del found["ssl.keystore.location"]
    return found | {"ssl.certificate.location": path, "ssl.key.location": path}


def store_kind(path: str, given: str) -> str:
    """PEM, PKCS12 or JKS, by its type property, else by the file's name."""
    suffix = PurePath(path).suffix.lower()
    if given.upper() in ("PEM", "PKCS12", "JKS"):
        return given.upper()
    if suffix in PEM_SUFFIXES:
        return "PEM"
    return "PKCS12" if suffix in PKCS12_SUFFIXES else "JKS"


def jaas(properties: Mapping[str, str]) -> dict[str, str]:
    """User and password out of sasl.jaas.config; given ones go first."""
    found = dict(properties)
    line = found.pop("sasl.jaas.config", "")
    if not line.strip():
        return found
    module, options = parse_jaas(line)
    if module not in ("PlainLoginModule", "ScramLoginModule"):
        raise Usage(f"Kafka property sasl.jaas.config: {refused_module(module)}")
    if module == "PlainLoginModule":
        found.setdefault("sasl.mechanism", "PLAIN")
    elif "sasl.mechanism" not in found:
        raise Usage("Kafka property sasl.jaas.config: add sasl.mechanism=SCRAM-SHA-256 or SCRAM-SHA-512")
    for name in ("username", "password"):
        if name in options:
            found.setdefault(f"sasl.{name}", options[name])
    return found


def parse_jaas(line: str) -> tuple[str, dict[str, str]]:
    """Login module without its package, and its options."""
    found = JAAS.fullmatch(line)
    if not found:
        raise Usage(
            'Kafka property sasl.jaas.config: not `MODULE required username="..." password="...";`; '
            "set sasl.username and sasl.password instead"
        )
    options = {
        name: re.sub(r"\\(.)", r"\1", double or single or bare)
        for name, double, single, bare in JAAS_OPTION.findall(found.group(2))
    }
    return found.group(1).rpartition(".")[2], options


def refused_module(module: str) -> str:
    if module == "Krb5LoginModule":
        return KERBEROS
    if module == "OAuthBearerLoginModule":
        return (
            "set sasl.mechanism=OAUTHBEARER, sasl.oauthbearer.method=oidc, sasl.oauthbearer.client.id, "
            "sasl.oauthbearer.client.secret and sasl.oauthbearer.token.endpoint.url instead"
        )
    return f"the login module {module} is unknown; set sasl.mechanism, sasl.username and sasl.password instead"


def assignors(names: str) -> str:
    """librdkafka's names of assignors; Java's are class names."""
    words = [word.strip() for word in names.split(",")]
    return ",".join(ASSIGNORS.get(word.rpartition(".")[2], word) for word in words)


def check_sasl(properties: Mapping[str, str]) -> None:
    """A login that was meant is made: the mechanism, its protocol and its user belong together."""
    protocol = properties.get("security.protocol", "").upper()
    mechanism = properties.get("sasl.mechanism", "")
    if mechanism.upper() == "GSSAPI":
        raise Usage(f"Kafka property sasl.mechanism = 'GSSAPI': {KERBEROS}; use {MECHANISMS}")
    if protocol.startswith("SASL") and not mechanism:
        raise Usage(
            f"Kafka property security.protocol = {protocol!r} means Kerberos unless sasl.mechanism says "
            f"otherwise: set it to {MECHANISMS}"
        )
    if mechanism and not protocol.startswith("SASL"):
        raise Usage(
            f"Kafka property sasl.mechanism = {mechanism!r} has no effect without a protocol: "
            "set security.protocol=SASL_SSL (or SASL_PLAINTEXT)"
        )
    if mechanism.upper() != "OAUTHBEARER":
        for name in ("sasl.username", "sasl.password"):
            if mechanism and not properties.get(name):
                raise Usage(f"Kafka property sasl.mechanism = {mechanism!r} needs {name}")
