"""Is the engine right on this GPU, and how fast is it there? One command, at most 8 minutes, without Kafka.

    python -P benchmarks/gpu_suite.py                           # all parts
    python -P benchmarks/gpu_suite.py --only ceilings,kernels
    python -P benchmarks/gpu_suite.py --tiny                    # the suite itself, on a CPU; with TRITON_INTERPRET=1
                                                                # the kernels, too, in Triton's interpreter

Needs torch >= 2.11, transformers >= 5.17 and triton >= 3.6, and a checkout: nothing has to be installed from it.

    ceilings    what the machine reaches: memory, a large product, links, launches
    kernels     every kernel against its reference, on fresh random inputs; bits of rows in any company
    times       kernels beside their floors of bytes and operations at those ceilings
    oracle      a small model: any cutting, company, draft, fork and restored block gives the same bits
    runner      the engine's runner with that model: plans one behind another, masks, saves and loads beside steps
    scenarios   Llama-3.1-8B's shape at 2k to 32k: questions, drafts, decode, beside transformers
    fleet       many sessions with many questions each
    determinism what `deterministic` costs
    blocks      snapshots and restoring, and from how many tokens on restoring is faster than computing again

A part that fails, hangs or takes the process with it is recorded with its error, and the others are run all the same.
The last line is one JSON object; the exit status is 1 where a part failed.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out

from gpu import checkout
from gpu.supervisor import supervise
from telling import last_line, show

BEGAN = time.monotonic()
FOLDER = Path(__file__).resolve().parent
PARTS = {"ceilings": "ceilings", "kernels": "kernel_checks", "times": "kernel_times", "oracle": "oracle",
         "runner": "runner", "scenarios": "scenarios", "fleet": "fleet", "determinism": "determinism",
         "blocks": "blocks"}  # fmt: skip


def work(given: argparse.Namespace) -> None:
    """In a process of its own: run the parts and report them."""
    if given.device == "cpu":       # tiny products: threads that wait for each other take longer than they save
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    checkout.use()
    import torch  # noqa: PLC0415  # the supervising process does without
    from gpu.bench import make_bench  # noqa: PLC0415
    from gpu.card import card  # noqa: PLC0415
    from gpu.worker import Report, work  # noqa: PLC0415

    bench = make_bench(given.device, given.tiny, given.seed)
    report = Report(given.report)
    report.tell(card=card(bench.device))
    parts = {name: importlib.import_module(f"gpu.{PARTS[name]}").run for name in given.only}

    def is_alive() -> bool:
        try:
            if bench.device.type == "cuda":
                torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    work(bench, parts, given.seconds - (time.monotonic() - BEGAN), report, is_alive)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all parts together")
    parser.add_argument("--tiny", action="store_true", help="small shapes, on the CPU unless --device says otherwise")
    parser.add_argument("--device", help="such as cuda:1; default: cuda, with --tiny cpu")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the kernels' inputs")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)     # of a process that this one has started
    given = parser.parse_args(argv)
    if unknown := sorted({*given.only.split(",")} - {*PARTS}):
        parser.error(f"unknown: {', '.join(unknown)}")
    given.only = [name for name in PARTS if name in given.only.split(",")]      # a later one may free what earlier need
    given.device = given.device or ("cpu" if given.tiny else "cuda")
    return given


def tell(results: dict[str, dict], only: Sequence[str]) -> None:
    """Tables of all parts, then targets, for people."""
    for name in only:
        result = results[name]
        print(f"\n{name}: {result.get('seconds', 0)} s" + (f", FAILED: {result['error']}" if "error" in result else ""))
        for key in ("rows", "more_rows"):
            if result.get(key):
                show(result[key])
        if result.get("not_run"):
            print(f"not run, for want of time or memory: {', '.join(result['not_run'])}")
    if targets := [verdict for name in only for verdict in results[name].get("targets", ())]:
        print("\ntargets")
        show([{**verdict, "met": "met" if verdict["met"] else "MISSED"} for verdict in targets])


def main(argv: Sequence[str]) -> int:
    given = arguments(argv)
    if given.report:
        work(given)
        return 0

    def command(report: Path, names: Sequence[str], seconds: float) -> list[str]:
        mine = ["--only", ",".join(names), "--seconds", str(seconds), "--device", given.device, "--seed",
                str(given.seed), "--report", str(report), *(["--tiny"] if given.tiny else [])]
        return [sys.executable, "-P", str(FOLDER / "gpu_suite.py"), *mine]

    told = supervise(given.only, given.seconds, command)
    tell(told.results, given.only)
    failed = [name for name in given.only if "error" in told.results[name]]
    last_line({"suite": "gpu", "tiny": given.tiny, "failed": failed, "card": told.card, "parts": told.results})
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
