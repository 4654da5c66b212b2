"""S3: an ask that a finished standing answer satisfies, from its message to the committed reply, the loop at rest.

The real loop of bench_peers.py, messages in memory, a small model on the CPU under it: finding an answer that is there
takes no device. Where orjson is missing Python's own json is in its place, which is slower.
"""

import importlib
import json
import sys
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

PORTION = 512       # tokens of a step


def measure(asks: int) -> dict[str, Any]:
    """Milliseconds; or why it could not be measured here."""
    how = "orjson"
    try:
        importlib.import_module("orjson")
    except ImportError:
        how = "json in place of orjson"
        sys.modules["orjson"] = _json()
    try:
        from peers import standing  # noqa: PLC0415
        from peers.ours import load  # noqa: PLC0415
        from peers.subject import SMALL, make_weights  # noqa: PLC0415
    except ImportError as problem:
        return {"not_run": str(problem)}
    loaded = load(SMALL, make_weights(SMALL), Path())
    stream = standing.Stream(sessions=4, queries=2, every=4, context=100)
    loop = standing.start(loaded, stream, torch.get_num_threads(), 12 * stream.every * standing.RECORD, PORTION)
    try:
        standing.answered(loop, rounds=1)
        found = sorted(standing.hit_at_rest(loop, number) for number in range(asks))
    finally:
        loop.processor.runner.close()
    return {"p50_ms": standing.percentile(found, 0.5), "p99_ms": standing.percentile(found, 0.99), "asks": asks,
            "how": how}  # fmt: skip


class Fragment:
    """What is JSON already."""

    def __init__(self, text: bytes) -> None:
        self.text = text


def _plain(value: Any) -> Any:
    """What json cannot write by itself, and orjson can."""
    return json.loads(value.text) if isinstance(value, Fragment) else asdict(value)


def _json() -> types.ModuleType:
    module = types.ModuleType("orjson")
    module.__dict__.update(
        loads=json.loads, JSONDecodeError=json.JSONDecodeError, OPT_SORT_KEYS=1, OPT_NON_STR_KEYS=2,
        Fragment=Fragment, dumps=lambda value, option=0: json.dumps(
            value, sort_keys=bool(option & 1), default=_plain).encode())  # fmt: skip
    return module
