"""What `deterministic` costs: the same steps with products whose rows have the same bits in every batch, and torch's.

Decode steps of 1 to 64 sequences, and a step that prefills; turn by turn, so that the chip is as warm for one as for
the other.
"""

from typing import Any

from gpu.bench import Bench, free
from gpu.decoding import Sequences, how_many_fit
from gpu.targets import verdict


def run(bench: Bench) -> dict[str, Any]:
    context, subject = bench.sizes.contexts[0], bench.subject
    most = how_many_fit(bench, bench.sizes.batches, context)
    assert most, "no sequence fits"
    sequences = Sequences(bench, most, context)
    rows, targets, not_run = [], [], [f"decode {batch}: memory" for batch in bench.sizes.batches if batch > most]
    for batch in (batch for batch in bench.sizes.batches if batch <= most):
        if bench.clock.left <= 0:
            not_run.append(f"decode {batch}")
            continue
        exact, fast = (sequences.decode_s(forward, batch) for forward in (subject.exact, subject.fast))
        rows.append({"step": f"decode {batch} x {context}", "deterministic_ms": exact * 1e3, "torch_ms": fast * 1e3,
                     "price": exact / fast})
        targets.append(verdict("deterministic", exact / fast, f"decode {batch}"))
    exact, fast = (sequences.prefill_s(forward, 1, bench.sizes.portion) for forward in (subject.exact, subject.fast))
    rows.append({"step": f"prefill {bench.sizes.portion}", "deterministic_ms": exact * 1e3, "torch_ms": fast * 1e3,
                 "price": exact / fast})
    subject.fast.close()
    del sequences
    free(bench)
    return {"rows": rows, "targets": targets, "not_run": not_run}
