"""Sessions whose context began in records that retention has deleted since.

One that has records left is cut: its context is shorter than the one that its answers so far have seen, and how many of
its records are gone nobody knows. That is a gap, and `worker.on_gap` decides. One that has none left before the
committed offset is over: everyday where a symbol is traded no more, and no gap. A later record of it begins it anew.

Which it is follows from the log alone, once all that is left up to the committed offset has been read again. The first
epoch writes the heads as they are then, or removes them: so every later owner counts alike.
"""

import logging

from streamproc.errors import Refused
from streamproc.state.partition import Partition

log = logging.getLogger("streamproc")


def judge_cuts(partition: Partition, topic: str, on_gap: str) -> None:
    """All that is left of this partition has been read again. Raises Refused where a context is cut and must not be."""
    if not partition.cut:
        return
    where = f"{topic} partition {partition.number}"
    over = sorted(partition.cut & partition.heads.keys())
    if cut := partition.cut - partition.heads.keys():
        _tell_of_cut(partition, cut, where, on_gap)
    if over:
        log.info(f"{where}: {len(over)} sessions are over, {over[0]!r} the first by name: all their records are "
                 "deleted; a later record begins such a session anew")  # fmt: skip
    for key in over:
        del partition.heads[key]
    partition.stale = (*partition.stale, *over)
    partition.cut = frozenset()


def _tell_of_cut(partition: Partition, cut: frozenset[str], where: str, on_gap: str) -> None:
    start, first = min((head.start_offset, key) for key in cut if (head := partition.sessions[key].head))
    reason = (
        f"{where}: records {start} to {partition.rebuild_from - 1} are deleted, and with them the beginning of "
        f"{len(cut)} sessions' contexts, the first that of {first!r}, which began at {start}"
    )
    remedy = "they begin at the oldest record that each has left, and do not count those that are gone"
    if on_gap == "fail":
        raise Refused(f"{reason}; set worker.on_gap = rebuild: {remedy}")
    log.warning(f"{reason}; {remedy} (worker.on_gap = rebuild)")
