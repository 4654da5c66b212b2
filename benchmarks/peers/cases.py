"""S1, S2, drafts and ingest: one question after the other, everybody in turn.

    s1      ARRIVING tokens have come since the last question. We computed them as they came (`arrive_ms`: not hidden);
            a stateless peer, its prefix cache holding the context, computes them now, and then the question
    s2      everybody's cache holds all of it: the question's 24 tokens in one step, then 7 steps of the answer's 8
    draft   the answer is known from before and still holds: one forward over question and 7 tokens of it confirms all 8
    ingest  tokens/s from empty to the context, in portions of 512

Every repeat has other tokens, so that nobody's prefix cache knows more than it is said to.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from peers.subject import ANSWER, ARRIVING, PORTION, Contender, Ids, question, tokens

SETTLE_S = 0.02     # threads of whoever was measured last stop spinning well within it
PROMPT = 96         # tokens on which everybody is compared
Rows = dict[str, dict[str, list[float]]]


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    time.sleep(SETTLE_S)
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def turns(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """Everybody, another one first at each repeat."""
    first = number % len(contenders)
    return [*contenders[first:], *contenders[:first]]


def fill(contender: Contender, context: int, salt: int) -> float:
    """Grow to `context` tokens in portions -> seconds that it computed."""
    total = 0.0
    while contender.size < context:
        ids = tokens(contender.size, min(PORTION, context - contender.size), salt)
        total += seconds(lambda ids=ids: contender.grow(ids))[0]
    return total


def ingest(contenders: Sequence[Contender], context: int, repeats: int) -> Rows:
    """Everybody from empty to `context`, with the last repeat's tokens kept."""
    rows: Rows = {contender.name: {"ingest_tokens_per_s": []} for contender in contenders}
    for repeat in range(repeats):
        for contender in turns(contenders, repeat):
            contender.cut(0)
            found = context / fill(contender, context, salt=repeat + 1)
            rows[contender.name]["ingest_tokens_per_s"].append(found)
    return rows


def questions(contenders: Sequence[Contender], context: int, repeats: int, ours: str) -> Rows:
    """S1, S2 and drafts at a context that everybody has; milliseconds."""
    rows: Rows = {contender.name: {} for contender in contenders}
    for repeat in range(repeats):
        for contender in turns(contenders, repeat):
            found = one_round(contender, context, repeat, arrives_first=contender.name == ours)
            for name, taken in found.items():
                rows[contender.name].setdefault(name, []).append(taken * 1e3)
    return rows


def one_round(contender: Contender, context: int, number: int, arrives_first: bool) -> dict[str, float]:
    """Seconds by case; the context is as before afterwards."""
    arriving, found = tokens(context, ARRIVING, salt=1000 + number), {}
    asked, again = question(2 * number), question(2 * number + 1)
    if arrives_first:
        found["arrive_ms"], _ = seconds(lambda: contender.grow(arriving))
        found["s1_ms"], _ = seconds(lambda: contender.ask(asked, ANSWER))
    else:
        found["s1_ms"], _ = seconds(lambda: contender.ask((*arriving, *asked), ANSWER))
        contender.grow(arriving)
    found["s2_ms"], answer = seconds(lambda: contender.ask(again, ANSWER))
    taken, verified = seconds(lambda: contender.verify(again, answer[:-1]))
    if verified is not None:
        found["draft_ms"] = taken
        found["draft_held"] = float(held(verified, answer)) / 1e3
        if arrives_first and verified != answer:    # greedy and exact: it has to
            sys.exit(f"bench_peers: our own draft did not hold: {verified} after {answer}")
    contender.cut(context)
    return found


def held(verified: Ids, answer: Ids) -> int:
    """How many tokens of the answer the one forward confirms; bfloat16 of other shapes may turn a close call."""
    pairs = zip(verified, answer, strict=False)     # we tell no tokens after the first that does not hold
    return next((i for i, pair in enumerate(pairs) if pair[0] != pair[1]), len(verified))


def agreement(contenders: Sequence[Contender]) -> dict[str, dict[str, float]]:
    """Share of short prompts after which a peer has the greedy token of the first contender, and of an answer's tokens.

    Random weights leave the best tokens close together, so that bfloat16 alone turns some; other weights agree in none.
    """
    prompt = tokens(0, PROMPT, salt=77)
    told = {one.name: ([one.ask(prompt[:end], 1)[0] for end in range(4, PROMPT, 4)], one.ask(prompt, ANSWER))
            for one in contenders}  # fmt: skip
    (_, (first, answer)), *others = told.items()
    return {name: {"next_token": same(nexts, first), "answer": same(words, answer)} for name, (nexts, words) in others}


def same(one: Sequence[int], other: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def medians(rows: Rows) -> dict[str, dict[str, float]]:
    """Of the repeats; of latencies the shortest too, as `s2_ms_least`: what noise of the machine can only lengthen."""
    found = {name: {what: statistics.median(values) for what, values in row.items()} for name, row in rows.items()}
    for name, row in rows.items():
        found[name] |= {f"{what}_least": min(values) for what, values in row.items() if what.endswith("_ms")}
    return found
