"""The six topics: what they should be, what they are, and how the missing ones are made.

What they should be is data (`topics/*.toml`). A topic that exists is never changed: where it differs, that is said.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from typing import Any

import orjson
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public there, but its __init__ has no __all__
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from streamproc.config import Topics
from streamproc.errors import Unavailable
from streamproc.kafka.process import wait_until

TIMEOUT_S = 10.0
BROKER_DEFAULT = -1
POLICY = "cleanup.policy"


@dataclass(frozen=True, slots=True)
class Example:
    """One message as it lies in the topic."""

    key: str
    value: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What one topic should be."""

    role: str
    name: str
    description: str
    partitions: int  # of a new one
    fixed: bool  # no other number will do
    follows: str | None  # role of the topic that it shares its partition numbers with
    key: str
    config: Mapping[str, str]
    schema: Mapping[str, Any]
    example: Example


@dataclass(frozen=True, slots=True)
class Finding:
    """How one topic stands: ok | missing | differs | planned | created | exists (made by others meanwhile) | failed."""

    role: str
    name: str
    state: str
    partitions: int | None = None
    problems: tuple[str, ...] = ()
    error: str | None = None  # Kafka's own word, with `failed`


def load_specs(topics: Topics) -> tuple[TopicSpec, ...]:
    """The specifications, under the names that the settings give them."""
    folder = files("streamproc.topics")
    return tuple(
        parse_spec(tomllib.loads(folder.joinpath(f"{role}.toml").read_text()), name)
        for role, name in asdict(topics).items()
    )


def parse_spec(doc: Mapping[str, Any], name: str) -> TopicSpec:
    example, value = doc["example"], doc["example"]["value"]
    raw = value.encode() if isinstance(value, str) else orjson.dumps(value)
    return TopicSpec(
        role=doc["role"],
        name=name,
        description=doc["description"],
        partitions=doc["partitions"],
        fixed=doc.get("fixed", False),
        follows=doc.get("follows"),
        key=doc["key"],
        config=doc["config"],
        schema=doc["schema"],
        example=Example(example["key"], raw, example.get("headers", {})),
    )


def with_partitions(specs: Iterable[TopicSpec], partitions: int | None) -> tuple[TopicSpec, ...]:
    """The specifications with another number of partitions wherever the number is free."""
    return tuple(spec if spec.fixed or partitions is None else replace(spec, partitions=partitions) for spec in specs)


def check(admin: AdminClient, specs: Iterable[TopicSpec]) -> list[Finding]:
    """How every topic stands. Raises Unavailable where no Kafka answers."""
    specs = tuple(specs)
    counts = partition_counts(admin)
    policies = cleanup_policies(admin, [spec.name for spec in specs if spec.name in counts])
    names = {spec.role: spec.name for spec in specs}
    return [compare(spec, counts, policies, names) for spec in specs]


def create(
    admin: AdminClient,
    specs: Iterable[TopicSpec],
    partitions: int | None = None,
    replication: int = BROKER_DEFAULT,
    dry_run: bool = False,
) -> list[Finding]:
    """Make the missing topics and wait until clients can see them -> how every topic stands now.

    `partitions` overrides the free numbers; what follows an existing topic takes that topic's. Raises Unavailable
    where no Kafka answers.
    """
    specs = with_partitions(specs, partitions)
    findings = check(admin, specs)
    there = {finding.role: finding.partitions for finding in findings if finding.partitions is not None}
    missing = {
        spec.role: replace(spec, partitions=there.get(spec.follows or "") or spec.partitions)
        for spec, finding in zip(specs, findings, strict=True)
        if finding.state == "missing"
    }
    made = plan(missing) if dry_run else make(admin, missing, replication)
    return [made.get(finding.role, finding) for finding in findings]


def plan(missing: Mapping[str, TopicSpec]) -> dict[str, Finding]:
    return {role: Finding(role, spec.name, "planned", spec.partitions) for role, spec in missing.items()}


def make(admin: AdminClient, missing: Mapping[str, TopicSpec], replication: int) -> dict[str, Finding]:
    """Create topics -> what became of each, by role."""
    if not missing:
        return {}
    wanted = [NewTopic(spec.name, spec.partitions, replication, config=dict(spec.config)) for spec in missing.values()]
    futures = admin.create_topics(wanted, operation_timeout=TIMEOUT_S)
    outcomes = {role: outcome(spec, futures[spec.name]) for role, spec in missing.items()}
    created = {spec.name: spec.partitions for role, spec in missing.items() if outcomes[role].state == "created"}
    if not wait_until(lambda: all_led(admin, created), TIMEOUT_S):
        raise Unavailable(f"the topics were created, but have no leader after {TIMEOUT_S:.0f} s: is a broker down?")
    return outcomes


def outcome(spec: TopicSpec, future: Any) -> Finding:
    try:
        future.result()
    except KafkaException as problem:
        error: KafkaError = problem.args[0]
        if error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return Finding(spec.role, spec.name, "exists")
        return Finding(spec.role, spec.name, "failed", None, (error.str(),), error.name())
    return Finding(spec.role, spec.name, "created", spec.partitions)


def all_led(admin: AdminClient, created: Mapping[str, int]) -> bool:
    """Whether every partition of the topics has a leader in the metadata that clients get."""
    known = admin.list_topics(timeout=TIMEOUT_S).topics
    return all(
        name in known
        and known[name].error is None
        and len(known[name].partitions) == count
        and all(partition.leader >= 0 for partition in known[name].partitions.values())
        for name, count in created.items()
    )


def partition_counts(admin: AdminClient) -> dict[str, int]:
    """Partitions of every topic of the cluster, by name. Raises Unavailable where no Kafka answers."""
    try:
        topics = admin.list_topics(timeout=TIMEOUT_S).topics
    except KafkaException as problem:
        raise Unavailable(f"no Kafka answers: {problem.args[0].str()}; is it running, and is -b right?") from None
    return {name: len(topic.partitions) for name, topic in topics.items()}


def cleanup_policies(admin: AdminClient, names: Iterable[str]) -> dict[str, frozenset[str] | KafkaError]:
    """Cleanup policies by topic, or why they cannot be read."""
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    futures = admin.describe_configs(resources, request_timeout=TIMEOUT_S) if resources else {}
    policies: dict[str, frozenset[str] | KafkaError] = {}
    for resource, future in futures.items():
        try:
            policies[resource.name] = frozenset(future.result()[POLICY].value.split(","))
        except KafkaException as problem:
            policies[resource.name] = problem.args[0]
    return policies


def compare(
    spec: TopicSpec,
    counts: Mapping[str, int],
    policies: Mapping[str, frozenset[str] | KafkaError],
    names: Mapping[str, str],
) -> Finding:
    """What one topic is, held against what it should be."""
    if spec.name not in counts:
        return Finding(spec.role, spec.name, "missing")
    count, policy = counts[spec.name], policies[spec.name]
    if isinstance(policy, KafkaError):
        return Finding(spec.role, spec.name, "failed", count, (policy.str(),), policy.name())
    problems = []
    wanted = counts.get(names[spec.follows]) if spec.follows else spec.partitions if spec.fixed else None
    if wanted is not None and count != wanted:
        why = f"as many as {names[spec.follows]}" if spec.follows else "no other number will do"
        problems.append(f"has {count} partition{'s' * (count != 1)}, needs {wanted}: {why}")
    if policy != set(spec.config[POLICY].split(",")):
        problems.append(f"{POLICY} is {','.join(sorted(policy))}, needs {spec.config[POLICY]}")
    return Finding(spec.role, spec.name, "differs" if problems else "ok", count, tuple(problems))
