"""How fast is an answer, ours beside the peers': same weights, same machine, one run, everybody in turn.

Peers: llama.cpp (low-level calls, GGUF bfloat16, its cache kept; with flash attention as it is meant to be used, and
without, which is faster for short questions), transformers (forwards on a kept DynamicCache) and its continuous
batching. Model: the shape of bench_forward.py, random bfloat16 weights from a fixed seed. A question is 24 tokens, an
answer 8. Per context, ratios against the best peer of that case, above 1 where we are faster:

    s1          latency of a question after 400 new tokens: we took them in as they came (`ours.*.arrive_ms`), a
                stateless peer with its prefix cache on computes them now
    s2          latency where everybody's cache holds everything
    s2_draft    the same where the previous answer still holds: one forward of ours against the best peer's s2
    s2_draft_peer_same_trick    against the best peer that is given the same draft and verifies it in one forward
    ingest      tokens/s from empty, in portions of 512: against the best peer; `ingest_llama`: against llama.cpp
    s3_p99_ms   an ask that a finished standing answer satisfies, from its message to the committed reply, at rest
                (`s3.at_work_*`: at any time while the loop works on other sessions)
    s4          32 sessions x 8 standing questions, due every 4 records: records/s at which every answer is ready, and
                has seen the newest due record, before its session's next records come; the real loop against llama.cpp
    growth      latency at the longest context over that at the shortest, beside that of the floor
    flash       s1, s2 and drafts once more, against the peers without llama.cpp's plain attention
    least       s1, s2 and drafts once more, of everybody's shortest repeat
    floor       milliseconds of a question's 8 steps at the measured ceilings of memory and arithmetic
    ours, peers raw figures, medians of the repeats; `agreement` says that all compute the same model

Not shown in S4: transformers, which is far behind in S2. Peers are driven without a server around them, so are we in
s1, s2 and ingest; s3 and s4 are our whole loop, messages in memory.
"""

import argparse
import contextlib
import functools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
import transformers
from common import last_line, show
from peers import cases, floor, hf, ours, standing
from peers.noise import Noise
from peers.ratios import PLAIN, growth, ratios
from peers.subject import (
    ANSWER,
    ARRIVING,
    OURS,
    QUESTION,
    SHAPE,
    SMALL,
    Contender,
    make_model,
    make_weights,
    num_parameters,
    question,
)

from streamproc.errors import StreamprocError

try:
    from peers import llama, plot, sustained
except ModuleNotFoundError as missing:
    if missing.name not in ("gguf", "llama_cpp", "matplotlib"):
        raise
    print(f"bench_peers: {missing.name} is missing; pip install -e '.[dev,bench]' -c constraints.txt", file=sys.stderr)
    sys.exit(os.EX_UNAVAILABLE)

LLAMA = {"llama.cpp": llama.Setting("f16", True), PLAIN: llama.Setting("f16", False)}
TRANSFORMERS = ("transformers", "transformers continuous batching")
WAYS = ("decodes", "drafts")
PARTS = ("ingest", "s1", "s2", "s3", "s4")
COLUMNS = ("ingest_tokens_per_s", "arrive_ms", "s1_ms", "s2_ms", "draft_ms")
SAME_MODEL = 0.5    # of the next tokens have to agree
QUIET = 0.03        # share of the machine that others may take
LONG = 8_000        # tokens of a context from which on three repeats must do, and one filling


class Files:
    """One set of weights in everybody's form."""

    def __init__(self, shape: dict[str, Any], folder: Path, context_weight: float) -> None:
        self.shape = shape
        self.weights = make_weights(shape, context_weight)
        self.gguf = folder / "weights.gguf"
        llama.export(shape, self.weights, self.gguf)

    @functools.cached_property
    def loaded(self) -> Any:
        return ours.load(self.shape, self.weights, self.gguf.parent)


def make(name: str, files: Files, num_tokens: int, threads: int) -> Contender:
    """A contender with room for so many tokens."""
    if name == OURS:
        return ours.Ours(files.loaded, num_tokens, threads)
    if name in LLAMA:
        return llama.Llama(name, files.gguf, num_tokens, threads, LLAMA[name])
    kind = hf.KeptCache if name == "transformers" else hf.Batching
    return kind(make_model(files.shape, files.weights, "sdpa"), num_tokens)


def everybody(given: argparse.Namespace, files: Files,
              stack: contextlib.ExitStack) -> tuple[list[Contender], dict[str, str]]:  # fmt: skip
    """Us first, then the peers that run here; and why the others do not."""
    room = max(given.contexts) + ARRIVING + QUESTION + ANSWER
    room += -room % 256
    found, failed = [], {}
    for name in [OURS, *given.peers]:
        try:
            one = make(name, files, room, given.threads)
            stack.callback(one.close)
            one.ask(question(0), ANSWER)
            found.append(one)
        except (RuntimeError, ValueError, AssertionError) as problem:
            failed[name] = f"{type(problem).__name__}: {problem}"
            print(f"{name} cannot run here: {failed[name]}", file=sys.stderr)
    return found, failed


def compare(given: argparse.Namespace, files: Files) -> dict[str, Any]:
    """S1, S2, drafts and ingest of everybody at every context."""
    with contextlib.ExitStack() as stack:
        contenders, failed = everybody(given, files, stack)
        return {"cannot_run": failed, **measure(given, contenders)}


def measure(given: argparse.Namespace, contenders: list[Contender]) -> dict[str, Any]:
    found: dict[str, Any] = {"agreement": cases.agreement(contenders)}
    print(f"agreement with our tokens: {found['agreement']}", flush=True)
    for name, shares in found["agreement"].items():
        if shares["next_token"] < SAME_MODEL:
            sys.exit(f"bench_peers: {name} does not compute our model: {shares}")
    figures: dict[str, dict[str, dict[str, float]]] = {one.name: {} for one in contenders}
    for context in given.contexts:
        repeats = min(given.repeats, 3) if context > LONG else given.repeats
        rows = [cases.ingest(contenders, context, fillings(given, context, repeats))]
        if {"s1", "s2"} & set(given.only):
            rows.append(cases.questions(contenders, context, repeats, OURS))
        for name, row in ((name, row) for part in rows for name, row in cases.medians(part).items()):
            figures[name].setdefault(str(context), {}).update(row)
        show([{"context": context, "contender": name, **{case: of[str(context)].get(case, "-") for case in COLUMNS}}
              for name, of in figures.items()])  # fmt: skip
    found["ours"] = figures.pop(OURS)
    return {**found, "peers": figures, **ratios(found["ours"], figures)}


def fillings(given: argparse.Namespace, context: int, repeats: int) -> int:
    """How often a context is filled from empty, which at a long one takes most of the time."""
    if "ingest" not in given.only:
        return 1
    return given.ingest_repeats or (1 if given.quick or context > LONG else repeats)


def stand(given: argparse.Namespace, files: Files) -> dict[str, Any]:
    """S3 and S4: our loop, then the peer on the same stream."""
    stream = standing.Stream(given.sessions, given.queries, given.every, given.session_context)
    more_tokens = (given.rounds + 8) * given.every * standing.RECORD
    loop = standing.start(files.loaded, stream, given.threads, more_tokens, given.step_tokens)
    found: dict[str, Any] = {}
    if "s3" in given.only:
        found["s3"] = standing.hits(loop, given.asks)
        found["s3_p99_ms"] = found["s3"]["p99_ms"]
    if "s4" in given.only:
        standing.answered(loop, 1)
        mine = standing.answered(loop, given.rounds)
        theirs = {name: peer_sustained(name, given, files, loop) for name in given.s4_peers}
        best = max((row[way]["records_per_s"] for row in theirs.values() for way in given.ways), default=None)
        found["s4"] = {"records_per_s": mine["records_per_s"], "peer_records_per_s": best,
                       "ratio": best and mine["records_per_s"] / best, "ours": mine, "peers": theirs}  # fmt: skip
    loop.processor.runner.close()
    print({name: found[name] for name in ("s3", "s4") if name in found}, flush=True)
    return found


def peer_sustained(name: str, given: argparse.Namespace, files: Files, loop: standing.Loop) -> dict[str, Any]:
    """Decoding every answer, and verifying the previous one as a draft as we do."""
    more_tokens = (2 * given.rounds + 4) * given.every * standing.RECORD
    sessions = sustained.Sessions(files.gguf, loop.stream, given.threads, LLAMA[name], more_tokens)
    answers = sessions.round(None)
    found: dict[str, Any] = {"agreement": sustained.agreement(answers, loop.first)}
    for way in given.ways:
        found[way], answers = sustained.sustained(sessions, given.rounds, answers, drafts=way == "drafts")
    sessions.close()
    return found


def whole_numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = functools.partial(parser.add_argument, type=int)
    parser.add_argument("--quick", action="store_true", help="contexts of 1,000 and 4,000 only, within 5 minutes")
    parser.add_argument("--only", default=",".join(PARTS), help="some of ingest,s1,s2,s3,s4")
    parser.add_argument("--contexts", type=whole_numbers, help="such as 1000,4000")
    parser.add_argument("--peers", default=",".join([*LLAMA, *TRANSFORMERS]))
    parser.add_argument("--plot", type=Path, help="write latency against context to this PNG")
    parser.add_argument("--small", action="store_true", help="a model of 8M parameters: to try the program itself")
    parser.add_argument("--context-weight", type=float, default=1.0, help="of what attention adds: with 0.1 answers "
                        "mostly stay as they were when records come, with 1 hardly ever")
    numbers("--repeats", default=5, help="of questions; at most 3 at a context above 8,000")
    numbers("--ingest-repeats", default=0, help="0: as many as of questions; one with --quick and above 8,000")
    numbers("--threads", default=torch.get_num_threads())
    numbers("--asks", default=1_000, help="of S3")
    numbers("--sessions", default=32)
    numbers("--queries", default=8)
    numbers("--every", default=4, help="records of a session after which its questions are due again")
    numbers("--session-context", default=1_000, help="tokens of a session when S3 and S4 start")
    numbers("--rounds", default=0, help="of S4: times that every session's questions are due; 0: 5, or 1 with --quick, "
            "and then only beside llama.cpp plain, which decodes")
    numbers("--step-tokens", default=512, help="engine.step_tokens of S3 and S4")
    given = parser.parse_args()
    given.contexts = given.contexts or ([1_000, 4_000] if given.quick else [1_000, 4_000, 16_000])
    given.only, given.peers = given.only.split(","), [name for name in given.peers.split(",") if name]
    given.s4_peers = [name for name in given.peers if name == PLAIN or (name in LLAMA and not given.quick)]
    given.ways = WAYS[:1] if given.quick else WAYS
    given.rounds = given.rounds or (1 if given.quick else 5)
    for unknown in {*given.only} - {*PARTS} or {*given.peers} - {*LLAMA, *TRANSFORMERS}:
        parser.error(f"unknown: {unknown}")
    if given.plot and not (given.plot.parent.is_dir() and {"s1", "s2"} & {*given.only}):
        parser.error("--plot needs s1 or s2 among --only, and a folder that is there")
    return given


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    result: dict[str, Any] = {}
    noise = Noise()
    with tempfile.TemporaryDirectory(prefix="streamproc-bench-") as folder:
        files = Files(SMALL if given.small else SHAPE, Path(folder), given.context_weight)
        measured = floor.ceilings()
        if {"ingest", "s1", "s2"} & set(given.only):
            result = compare(given, files)
            result["floor"] = {str(context): floor.floor(files.shape, context, measured) for context in given.contexts}
            result["growth"] = growth(result["ours"], result["peers"], result["floor"])
        if {"s3", "s4"} & set(given.only):
            result |= stand(given, files)
    if given.plot:
        plot.plot(given.plot, {OURS: result["ours"], **result["peers"]})
    others = noise.others()
    if others is None or others > QUIET:
        print(f"bench_peers: others took {others} of the machine meanwhile: measure again when it is quiet",
              file=sys.stderr)  # fmt: skip
    about = {"others_share": others, "parameters": num_parameters(files.weights), "threads": given.threads,
             "ceilings": measured, "llama_cpp": llama.version(), "transformers": transformers.__version__}
    last_line({**result, "about": about})


if __name__ == "__main__":
    try:
        main()
    except StreamprocError as problem:
        sys.exit(f"bench_peers: {problem}")
