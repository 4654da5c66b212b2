"""Every kernel against its reference: errors in roundings, bits of a row in any company."""

from typing import Any

from gpu import attention_checks, row_checks
from gpu.bench import Bench
from gpu.checking import Table


def run(bench: Bench) -> dict[str, Any]:
    table = Table(bench)
    attention_checks.check(table)
    row_checks.check(table)
    return {"kernels": bench.kernels.NAME, "seed": bench.seed, **table.result()}
