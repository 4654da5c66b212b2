"""Llama-3.1-8B's shape with random weights: S1 to S4 as bench_peers.py defines them, decode steps, the host's part.

    s1          tokens have come since the last question: we took them in as they came (`arrive_ms`), a stateless peer
                computes them now
    s2          everybody's cache holds everything; `over_floor`: beside the bytes and operations of its 8 steps
    draft       the previous answer holds: one forward
    standing    all standing questions of the session, in the same steps, over one context
    s3          an ask that a finished standing answer satisfies: the real loop on the CPU, the device has no part in it
    s4          many sessions, records and questions in turn (mixed.py)
    decode      a step of many sequences, with its share of the floor of bytes; prefill of many sequences in one step
"""

import traceback
from typing import Any

from gpu import hits, mixed
from gpu.bench import Bench, Row, free
from gpu.decoding import Sequences, decode_floor_s, host_s, how_many_fit, prefill_share
from gpu.peers import Peers
from gpu.questions import Ours
from gpu.targets import verdict
from streamproc.schedule.plan import Chunk

PEERS_SHARE = 0.45      # of the part's time
DECODE_CONTEXTS = 2     # the shortest ones


def run(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": [], "more_rows": [], "targets": [], "not_run": [], "failed_peers": {},
                             "host_us": {}, "s3": {}, "s4": {}}  # fmt: skip
    failed: dict[str, str] = {}
    stages = {"questions": questions, "decode": decode, "s4": mix, "s3": hit, "peers": beside}
    for name, stage in stages.items():
        if bench.clock.left <= 0:
            found["not_run"].append(name)
            continue
        try:
            stage(bench, found)
        except Exception as problem:        # what the other stages find is worth having
            traceback.print_exc()
            failed[name] = f"{type(problem).__name__}: {problem}".split("\n", 1)[0]
        free(bench)
        bench.timer.finish()        # raises where the device is lost
    found["targets"] += targets(bench, found)
    return found | ({"error": f"failed: {failed}"} if failed else {})


def questions(bench: Bench, found: dict[str, Any]) -> None:
    """Ours, at every context for which the time does; some of it is for the peers."""
    for_peers = bench.clock.left * PEERS_SHARE
    ours = Ours(bench)
    for context in bench.sizes.contexts:
        if bench.clock.left < for_peers:
            found["not_run"].append(f"ours at {context}")
            continue
        found["rows"].append(ours.measure(context))
    found["host_us"] = host_us(bench, ours)


def mix(bench: Bench, found: dict[str, Any]) -> None:
    found["s4"] = mixed.Mixed(bench).run()


def hit(bench: Bench, found: dict[str, Any]) -> None:
    found["s3"] = hits.measure(bench.sizes.asks)


def host_us(bench: Bench, ours: Ours) -> dict[str, float]:
    """Of a step of one token and of a question's at the session's length, and of all standing questions' at once."""
    kept = ours.kept
    table, size = kept.table, kept.size
    chunks = {"decode": [Chunk(0, size, (1,), table, 1)], "question": [Chunk(0, size, ours.question(0), table, 1)],
              "standing": [Chunk(i, size, ours.question(i), each, 1) for i, each in enumerate(kept.forks())]}
    return {name: host_s(bench, kept.forward, kept.kv, each) * 1e6 for name, each in chunks.items()}


def decode(bench: Bench, found: dict[str, Any]) -> None:
    forward = bench.subject.exact
    for context in bench.sizes.contexts[:DECODE_CONTEXTS]:
        most = how_many_fit(bench, bench.sizes.batches, context)
        sequences = Sequences(bench, most, context) if most else None
        for batch in bench.sizes.batches:
            if batch > most or sequences is None:
                found["not_run"].append(f"decode {batch} x {context}: memory")
                continue
            taken = sequences.decode_s(forward, batch)
            share = decode_floor_s(bench, batch, context) / taken
            found["more_rows"].append({"step": f"decode {batch} x {context}", "ms": taken * 1e3, "share": share})
            found["targets"].append(verdict("decode", share, f"{batch} x {context}"))
        if sequences is not None and context == bench.sizes.contexts[0]:
            taken = sequences.queued_s(forward, most)
            share = decode_floor_s(bench, most, context) / taken
            found["more_rows"].append({"step": f"queued {most} x {context}", "ms": taken * 1e3, "share": share})
            for count in (1, most):
                rows = max(bench.sizes.portion // count, 1)
                taken = sequences.prefill_s(forward, count, rows)
                share = prefill_share(bench, taken, count, rows)
                found["more_rows"].append({"step": f"prefill {count} x {rows}", "ms": taken * 1e3, "share": share})
                found["targets"].append(verdict("prefill", share, f"{count} x {rows}"))
        del sequences
        free(bench)


def beside(bench: Bench, found: dict[str, Any]) -> None:
    """The peers, in the time that is left: the middle context first."""
    peers = Peers(bench)
    contexts = sorted(bench.sizes.contexts, key=lambda context: context != bench.sizes.middle)
    for measure in (peers.kept, peers.batching):
        for context in contexts:
            measure(context)
    rows = [*found["rows"], *peers.rows]
    names = dict.fromkeys((name for row in rows for name in row), "")
    found["rows"] = [{**names, **row} for row in rows]      # a table's rows have the same columns
    found["failed_peers"], found["peers_how"] = peers.failed, peers.how
    found["not_run"] += [f"{name}: {why}" for name, why in peers.failed.items()]
    if bench.clock.left > 0 and "transformers continuous batching" not in peers.failed:
        try:
            found["s4"]["peer_records_per_s"] = mixed.batching(bench)
        except Exception as problem:        # as in peers.py
            found["not_run"].append(f"S4 of transformers: {problem}".split("\n", 1)[0])


def targets(bench: Bench, found: dict[str, Any]) -> list[Row]:
    ours = {row["context"]: row for row in found["rows"] if row["contender"] == "ours"}
    verdicts = []
    if middle := ours.get(bench.sizes.middle):
        verdicts += [verdict("question", middle["over_floor"]), verdict("draft_ms", middle["draft_ms"])]
    if "p99_ms" in found["s3"]:
        verdicts.append(verdict("hit_ms", found["s3"]["p99_ms"]))
    contexts = sorted(ours)
    if contexts == sorted(bench.sizes.contexts):
        verdicts.append(verdict("growth", ours[contexts[-1]]["s2_ms"] / ours[contexts[0]]["s2_ms"]))
    for context, row in ours.items():
        for case in ("s1", "s2"):
            theirs = [peer[f"{case}_ms"] for peer in found["rows"]
                      if peer["contender"] != "ours" and peer["context"] == context]
            if theirs:
                verdicts.append(verdict(case, min(theirs) / row[f"{case}_ms"], str(context)))
    return [*verdicts, *(verdict("host_us", value, name) for name, value in found["host_us"].items())]
