"""How a kernel's result is held against what is exact, in float64."""

import traceback
from collections.abc import Callable
from typing import Any

import torch

from gpu.bench import Bench
from gpu.guards import Guards

EPSILON = {torch.float32: 2.0 ** -23, torch.float16: 2.0 ** -10, torch.bfloat16: 2.0 ** -7}     # an ulp of 1


def roundings(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error, in roundings to the result's dtype: halves of an ulp, of numbers as large as their row's are
    usually at least: where large terms cancel, what is left is no measure. NaN or infinite where a number is missing.
    """
    if not actual.numel():
        return 0.0
    size = torch.maximum(exact.abs(), exact.square().mean(-1, keepdim=True).sqrt())
    return float(((actual.double() - exact).abs() / (size.clamp_min(2.0 ** -60) * EPSILON[actual.dtype] / 2)).max())


class Table:
    """What was compared, and what of it is wrong."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.rows: list[dict[str, Any]] = []
        self.not_run: list[str] = []

    def case(self, name: str, work: Callable[[Guards], dict[str, Any]]) -> None:
        """`work` gives figures; of them `ok` decides, beside the bands around its buffers. Errors are a row too."""
        if self.bench.clock.left <= 0:
            self.not_run.append(name)
            return
        guards = Guards(self.bench.device)
        found: dict[str, Any] = {"error": "", "bits": "", "note": "", "ok": True}
        began = self.bench.clock.left
        try:
            found |= work(guards)
            if not guards.are_untouched():
                found |= {"ok": False, "note": "wrote outside its buffers"}
        except Exception as problem:        # one that does not compile is a row too
            traceback.print_exc()
            if self.bench.device.type == "cuda":
                torch.cuda.synchronize()        # raises where the device is lost: then nothing more can be compared
            found |= {"ok": False, "note": str(problem).split("\n", 1)[0][:100]}
        self.rows.append({"case": name, "seconds": round(began - self.bench.clock.left, 2), **found})

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = {"rows": self.rows, "not_run": self.not_run}
        if wrong := [row["case"] for row in self.rows if not row["ok"]]:
            found["error"] = f"wrong: {', '.join(wrong)}"
        return found


def near(actual: torch.Tensor, exact: torch.Tensor, most: float) -> dict[str, Any]:
    """Figures of one comparison."""
    error = roundings(actual, exact)
    return {"error": round(error, 3), "ok": error <= most}


def same(*pairs: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
    """Figures of one comparison of bits."""
    equal = all(torch.equal(bits(one), bits(other)) for one, other in pairs)
    return {"bits": "equal" if equal else "differ", "ok": equal}


def both(*found: dict[str, Any]) -> dict[str, Any]:
    """The figures of several comparisons of one kernel: it is right where all are; of errors the largest counts."""
    joined = {name: value for each in found for name, value in each.items()}
    errors = [each["error"] for each in found if "error" in each]
    if errors:
        joined["error"] = max(errors)
    return joined | {"ok": all(each["ok"] for each in found)}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)
