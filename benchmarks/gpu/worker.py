"""Runs parts one after the other and tells what each found, part by part, in a file of lines of JSON."""

import json
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpu.timing import Clock

Part = Callable[[Any], dict[str, Any]]
SHARES = {"ceilings": 15, "kernels": 110, "times": 60, "oracle": 45, "runner": 20, "scenarios": 140, "fleet": 40,
          "determinism": 30, "blocks": 25}  # fmt: skip
LEAST_S = 2.0


class Report:
    """The file, in which a line is complete or not there."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def tell(self, **event: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(event) + "\n")


def work(bench: Any, parts: Mapping[str, Part], seconds: float, report: Report, is_alive: Callable[[], bool]) -> None:
    """A part's share of the time that is left is its own; what it does not need is for those after it.

    is_alive: whether the device can still be used; where it cannot, those who started this begin anew with the rest
    """
    whole, names = Clock(seconds), list(parts)
    for i, name in enumerate(names):
        share = SHARES[name] / sum(SHARES[each] for each in names[i:])
        bench.clock = Clock(max(whole.left, 0) * share)
        report.tell(begins=name, budget_s=bench.clock.left)
        if whole.left < LEAST_S:
            report.tell(ends=name, result={"error": "not run: the time was over"})
            continue
        report.tell(ends=name, result=_result(bench, parts[name]))
        if not is_alive():
            return


def _result(bench: Any, part: Part) -> dict[str, Any]:
    began = bench.clock.left
    try:
        found = part(bench)
    except Exception as problem:    # whatever it is, the other parts are run
        traceback.print_exc()
        found = {"error": f"{type(problem).__name__}: {problem}".split("\n", 1)[0]}
    return {"seconds": round(began - bench.clock.left, 2), **found}
