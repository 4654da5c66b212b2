"""A worker on fakes that dies at one record: `python poison_worker.py renderer|runner streamproc.toml`.

Its members are static: whoever comes back under the slot's name gets the partitions at once.
"""

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from fakes import FakeEngine, FakeRenderer, FakeRunner
from workers import BLOCK, ThreadWorker

from streamproc.records import Record
from streamproc.schedule.plan import Plan
from streamproc.settings import load_config

POISON, DEADLY = "666", 1  # a price, and the token for it
DIED = 9


class PoisonedRenderer(FakeRenderer):
    def record_ids(self, records: Sequence[Record]) -> list[tuple[int, ...]]:
        if any(getattr(record, "px", "") == POISON for record in records):
            os._exit(DIED)
        return super().record_ids(records)


class MarkingRenderer(FakeRenderer):
    """A token that no answer has stands for the poison, however a record is cut into chunks."""

    @staticmethod
    def text(record: Record) -> str:
        return FakeRenderer.text(record).replace(f" {POISON} ", chr(DEADLY))


class PoisonedRunner(FakeRunner):
    def run(self, plan: Plan) -> dict[int, tuple[int, ...]]:
        if any(DEADLY in chunk.token_ids for chunk in plan.chunks):
            os._exit(DIED)
        return super().run(plan)


if __name__ == "__main__":
    where, file = sys.argv[1:]
    renderer = PoisonedRenderer() if where == "renderer" else MarkingRenderer()
    runner = (PoisonedRunner if where == "runner" else FakeRunner)(2_000, BLOCK)
    config = load_config(file=Path(file))
    with ThreadWorker(config, FakeEngine(runner, renderer), config.worker.slot):
        print("in group", file=sys.stderr, flush=True)
        threading.Event().wait()
