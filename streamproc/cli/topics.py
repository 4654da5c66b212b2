"""`streamproc topics create|check`: the six topics on the cluster that the settings name.

`create` exits 1 if any topic could not be made; `check` exits 3 if any is missing or differs.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from click.exceptions import Exit

from streamproc.cli.common import Call, shared_options

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

    from streamproc.kafka.topics import Finding

FAILED, NO = 1, 3


@click.group()
def topics() -> None:
    """Create or check the topics."""


@topics.command()
@click.option(
    "--partitions", metavar="N", type=click.IntRange(1), help="Of records, asks, answers, sessions.  [default: 4]"
)
@click.option(
    "--replication", metavar="N", type=click.IntRange(1), help="Copies of each partition.  [default: the broker's]"
)
@click.option("--dry-run", is_flag=True, help="Say what would be created, create nothing.")
@shared_options
def create(call: Call, partitions: int | None, replication: int | None, dry_run: bool) -> None:
    """Create the topics that are missing; what exists stays as it is.

    \b
    streamproc topics create
    streamproc topics create -b kafka:9092 --partitions 12 --replication 3
    """
    from streamproc.kafka.topics import BROKER_DEFAULT, create, load_specs

    specs = load_specs(call.config.topics)
    findings = create(admin_client(call), specs, partitions, replication or BROKER_DEFAULT, dry_run)
    show(call, findings)
    if any(finding.state == "failed" for finding in findings):
        raise Exit(FAILED)


@topics.command()
@shared_options
def check(call: Call) -> None:
    """Say which topics are missing or differ; changes nothing."""
    from streamproc.kafka.topics import check, load_specs

    findings = check(admin_client(call), load_specs(call.config.topics))
    show(call, findings)
    if any(finding.state == "failed" for finding in findings):
        raise Exit(FAILED)
    if any(finding.state != "ok" for finding in findings):
        if not call.json:
            call.note("missing topics: `streamproc topics create`; topics that differ are yours to change")
        raise Exit(NO)


def admin_client(call: Call) -> "AdminClient":
    """A client of a cluster that answers. Raises Unavailable, Refused or Usage with one line."""
    from streamproc.kafka.properties import check_reachable, client_properties, connect_admin

    properties = client_properties(call.config)
    check_reachable(properties)
    return connect_admin(properties)


def show(call: Call, findings: "list[Finding]") -> None:
    """One line a topic, or one JSON object with all of them."""
    call.emit({"topics": [item(finding) for finding in findings]}, table(findings))


def item(finding: "Finding") -> dict[str, object]:
    doc = {name: value for name, value in asdict(finding).items() if value not in (None, ())}
    if finding.error:
        doc["message"] = "; ".join(doc.pop("problems"))
    return doc


def table(findings: "list[Finding]") -> str:
    width = max(len(finding.name) for finding in findings)
    rows = [f"{'TOPIC':<{width}}  {'PARTITIONS':<10}  {'STATE':<8}  NOTE"]
    for finding in findings:
        note = "; ".join(finding.problems)
        note = f"{finding.error}: {note}" if finding.error else note or "-"
        rows.append(f"{finding.name:<{width}}  {finding.partitions or '-':<10}  {finding.state:<8}  {note}")
    return "\n".join(rows)
