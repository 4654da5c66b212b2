"""Ours against the best peer of each case; above 1 we are faster."""

from collections.abc import Callable, Iterable
from typing import Any

from peers.subject import OURS

Row = dict[str, float]
Figures = dict[str, dict[str, Row]]     # by contender and context: cases.medians
PLAIN = "llama.cpp plain"


def ratios(ours: dict[str, Row], peers: Figures) -> dict[str, Any]:
    """What the docstring of bench_peers.py says of each; a case that was not measured is left out."""
    flash = {name: rows for name, rows in peers.items() if name != PLAIN}
    llama = {name: rows for name, rows in peers.items() if name.startswith("llama.cpp")}
    found = {
        **latencies(ours, peers),
        "ingest": each(ours, lambda context: ours[context]["ingest_tokens_per_s"] / highest(peers, context)),
        "ingest_llama": each(ours, lambda context: ours[context]["ingest_tokens_per_s"] / highest(llama, context)),
        "flash": latencies(ours, flash),
        "least": latencies(ours, peers, "_least"),
        "best_peer": {context: {case: best_name(peers, context, case) for case in ("s1_ms", "s2_ms")}
                      for context in ours if peers and "s2_ms" in ours[context]},
    }  # fmt: skip
    return {name: value for name, value in found.items() if value}


def latencies(ours: dict[str, Row], peers: Figures, suffix: str = "") -> dict[str, dict[str, float]]:
    """s1, s2 and both readings of a draft."""
    cases = {"s1": ("s1_ms", "s1_ms"), "s2": ("s2_ms", "s2_ms"), "s2_draft": ("draft_ms", "s2_ms"),
             "s2_draft_peer_same_trick": ("draft_ms", "draft_ms")}  # fmt: skip
    found = {name: each(ours, lambda context, mine=mine, theirs=theirs:
                        lowest(peers, context, theirs + suffix) / ours[context][mine + suffix])
             for name, (mine, theirs) in cases.items()}  # fmt: skip
    return {name: value for name, value in found.items() if value}


def each(contexts: Iterable[str], ratio: Callable[[str], float]) -> dict[str, float]:
    """By context, where both sides were measured."""
    found = {}
    for context in contexts:
        try:
            found[context] = round(ratio(context), 3)
        except (KeyError, ValueError):
            continue
    return found


def lowest(peers: Figures, context: str, case: str) -> float:
    return min(rows[context][case] for rows in peers.values() if case in rows[context])


def highest(peers: Figures, context: str) -> float:
    return max(rows[context]["ingest_tokens_per_s"] for rows in peers.values())


def best_name(peers: Figures, context: str, case: str) -> str:
    return min(peers, key=lambda name: peers[name][context][case])


def growth(ours: dict[str, Row], peers: Figures, floor: dict[str, Row]) -> dict[str, dict[str, float]]:
    """Latency at the longest context over that at the shortest: everybody's, and the floor's."""
    contexts = sorted(ours, key=int)
    first, last = contexts[0], contexts[-1]
    found = {"floor": {"s2_ms": floor[last]["floor_ms"] / floor[first]["floor_ms"]}}
    for name, rows in {OURS: ours, **peers}.items():
        found[name] = {case: rows[last][case] / rows[first][case] for case in ("s1_ms", "s2_ms") if case in rows[last]}
    return found
