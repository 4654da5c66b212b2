"""`streamproc snapshots list|verify|prune`: what is kept of the group and the records topic that the settings name.

`verify` exits 3 if anything is damaged.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from click.exceptions import Exit

from streamproc.cli.common import Call, shared_options
from streamproc.errors import Usage

if TYPE_CHECKING:
    from streamproc.snapshots.collector import Retention
    from streamproc.snapshots.contract import Store
    from streamproc.snapshots.survey import Checked, Entry

NO = 3
MB = 1_000_000
COLUMNS = ("PARTITION", "OFFSET", "WRITTEN (UTC)", "SESSIONS", "TOKENS", "BLOCKS", "MB", "MODEL", "NOTE")


@click.group()
def snapshots() -> None:
    """List, verify or prune the snapshots of the sessions' KV."""


@snapshots.command("list")
@shared_options
def list_command(call: Call) -> None:
    """List the snapshots, by partition, the newest first.

    \b
    streamproc snapshots list
    streamproc snapshots list -X snapshots.url=s3://bucket/prefix -X worker.group=desk --json
    """
    from streamproc.snapshots.survey import entries

    store, scope = opened(call)
    found = entries(store, scope)
    call.emit({"url": store.url, "snapshots": [item(entry) for entry in found]}, table(found, store, scope))


@snapshots.command()
@shared_options
def verify(call: Call) -> None:
    """Read every snapshot in full and name what is damaged; changes nothing.

    A worker passes over what is damaged and computes it from the topic.
    """
    from streamproc.snapshots.survey import check_segments, entries

    store, scope = opened(call)
    found = entries(store, scope)
    checked = list(check_segments(store, found))
    problems = [{"path": entry.name.path, "problem": entry.problem} for entry in found if entry.problem]
    problems += [{"path": each.path, "problem": segment_problem(each)} for each in checked if each.problem]
    num_blocks = sum(each.num_blocks for each in checked)
    doc = {"url": store.url, "snapshots": len(found), "segments": len(checked), "blocks": num_blocks}
    summary = f"{len(found)} snapshots, {len(checked)} segments, {num_blocks} blocks read: {len(problems)} damaged"
    lines = [f"{problem['path']}: {problem['problem']}" for problem in problems]
    call.emit({**doc, "damaged": problems}, "\n".join([*lines, summary]))
    if problems:
        raise Exit(NO)


@snapshots.command()
@click.option("--keep", metavar="N", type=click.IntRange(1), help="Newest of a partition to keep.  [default: settings]")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, delete nothing.")
@click.option("--now", is_flag=True, help="No worker writes here: delete at once what nobody needs.")
@shared_options
def prune(call: Call, keep: int | None, dry_run: bool, now: bool) -> None:
    """Delete surplus snapshots, and blocks that no snapshot needs any more.

    Workers do the same as they go. Blocks are marked first and deleted by a later prune, ten minutes or more, so that a
    snapshot on its way can count on them.

    \b
    streamproc snapshots prune --dry-run
    streamproc snapshots prune --keep 1 --now
    """
    from streamproc.snapshots.collector import Collector, prune

    store, scope = opened(call)
    retention = retention_of(call)
    retention = replace(retention, keep=keep or retention.keep, grace_s=0.0 if now else retention.grace_s)
    manifests = [found for folder in folders(store, scope)
                 for found in prune(store, folder, None, retention, dry_run).manifests]  # fmt: skip
    collector = Collector(store, scope, retention.grace_s, is_alone=now)
    swept = collector.would_collect(manifests) if dry_run else collector.collect()
    segments, marked = swept.segments, swept.condemned
    if now:  # what was marked goes at once
        segments, marked = segments + (marked if dry_run else collector.collect().segments), []
    num_bytes = sum(found.num_bytes for found in manifests + segments)
    deed = "would be deleted" if dry_run else "deleted"
    text = f"{len(manifests)} snapshots and {len(segments)} segments {deed}: {num_bytes / MB:.1f} MB"
    text += f"; {len(marked)} segments are no longer needed and go with a later prune" if marked else ""
    paths = [found.path for found in manifests + segments]
    call.emit({"deleted": paths, "bytes": num_bytes, "marked": len(marked), "dry_run": dry_run}, text)


def opened(call: Call) -> "tuple[Store, str]":
    """The store of the settings, and the folder of their group and topic in it. Raises Usage."""
    from streamproc.snapshots.manifest import as_folder
    from streamproc.snapshots.store import open_store

    config = call.config
    if not config.snapshots.url:
        raise Usage("snapshots.url is not set: there are no snapshots; use -X snapshots.url=FOLDER or s3://bucket/prefix")
    return open_store(config.snapshots.url), f"{as_folder(config.worker.group)}/{as_folder(config.topics.records)}"


def retention_of(call: Call) -> "Retention":
    from streamproc.snapshots.collector import Retention

    settings = call.config.snapshots
    return Retention.every(settings.interval_s, settings.keep, settings.max_age_s)


def folders(store: "Store", scope: str) -> list[str]:
    """The folders of the partitions."""
    from streamproc.snapshots.survey import entries, partitions

    return list(partitions(entries(store, scope)).values())


def segment_problem(checked: "Checked") -> str:
    return f"{checked.num_damaged} of {checked.num_blocks} blocks: {checked.problem}"


def item(entry: "Entry") -> dict[str, Any]:
    name, manifest = entry.name, entry.manifest
    doc: dict[str, Any] = {"path": name.path, "partition": int(entry.partition), "offset": name.offset}
    doc |= {"created_ms": name.created_ms}
    if manifest is None:
        return {**doc, "problem": entry.problem}
    return {
        **doc,
        "topic_id": manifest.identity.topic_id,
        "fingerprint": manifest.identity.fingerprint,
        "sessions": len(manifest.sessions),
        "tokens": sum(session.num_tokens for session in manifest.sessions),
        "blocks": len(manifest.names),
        "segments": len(manifest.segments),
        "bytes": entry.num_bytes,
    }


def table(found: "list[Entry]", store: "Store", scope: str) -> str:
    if not found:
        return f"no snapshots of {scope} in {store.url}"
    rows = [COLUMNS, *(row(item(entry)) for entry in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def row(doc: dict[str, Any]) -> tuple[str, ...]:
    written = datetime.fromtimestamp(doc["created_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    start = (str(doc["partition"]), str(doc["offset"]), written)
    if "problem" in doc:
        return (*start, "-", "-", "-", "-", "-", doc["problem"])
    counts = (str(doc[name]) for name in ("sessions", "tokens", "blocks"))
    return (*start, *counts, f"{doc['bytes'] / MB:.1f}", doc["fingerprint"][:12], "-")
