"""A plan shared between lanes, each with a thread of its own."""

from collections.abc import Iterable

from streamproc.schedule.plan import Chunk, Plan

LANE_TOKENS = 32         # fewer are not worth a lane


def split(plan: Plan, num_lanes: int) -> list[Plan]:
    """A plan as at most `num_lanes` plans of about equal work; the copies stay with the first.

    Chunks stay whole, and with those whose cells they read: a row sees cells that others write in the same step.
    """
    num_parts = min(num_lanes, plan.num_tokens // LANE_TOKENS, len(plan.chunks)) if num_lanes > 1 else 1
    if num_parts < 2:
        return [plan]
    parts: list[list[Chunk]] = [[] for _ in range(num_parts)]
    loads = [0] * num_parts
    for bundle in sorted(bundles(plan.chunks), key=_num_tokens, reverse=True):
        lane = loads.index(min(loads))
        parts[lane] += bundle
        loads[lane] += _num_tokens(bundle)
    return [Plan(plan.copies if not lane else (), tuple(part)) for lane, part in enumerate(parts) if part]


def bundles(chunks: Iterable[Chunk]) -> list[list[Chunk]]:
    """Chunks that need nothing of each other, each with those that need it."""
    found: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        bundle = [] if chunk.after is None else found[chunk.after]
        bundle.append(chunk)
        found[chunk.seq_id] = bundle
    return list({id(bundle): bundle for bundle in found.values()}.values())


def _num_tokens(chunks: Iterable[Chunk]) -> int:
    return sum(len(chunk.token_ids) for chunk in chunks)
