"""What the engine is to reach on an H200, and whether it did."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    what: str
    bound: float
    is_least: bool = False      # the bound is the smallest value that does, not the largest

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.is_least else value <= self.bound


TARGETS = {
    "decode": Target("share of the bandwidth floor that a decode step reaches", 0.8, is_least=True),
    "prefill": Target("share of the measured matmul rate that grouped prefill reaches", 0.6, is_least=True),
    "question": Target("a question of 24 + 8 tokens at 19k over its floor", 1.3),
    "draft_ms": Target("a question at 19k whose draft is accepted, ms", 10),
    "hit_ms": Target("an ask that a finished answer satisfies, ms (p99)", 1),
    "growth": Target("latency at 32k over that at 2k", 1.25),
    "s1": Target("S1 against the best peer", 5.9, is_least=True),
    "s2": Target("S2 against the best peer", 1.5, is_least=True),
    "deterministic": Target("a step with `deterministic` over one without", 1.1),
    "host_us": Target("host time of a step, us", 200),
    "restore": Target("share of the link's rate that restoring reaches", 0.9, is_least=True),
}


def verdict(name: str, value: float, where: str = "") -> dict[str, Any]:
    """A figure beside its target."""
    target = TARGETS[name]
    return {"target": name, "where": where, "value": round(value, 4), "wanted": f"{'>=' if target.is_least else '<='} "
            f"{target.bound:g}", "met": target.is_met(value)}  # fmt: skip
