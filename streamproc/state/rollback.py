"""Takes things back: questions that changed, records beyond the committed offset, partitions that are gone."""

from collections.abc import Callable

from streamproc.messages import Query
from streamproc.state.fork import Fork
from streamproc.state.lifecycle import Phase
from streamproc.state.partition import Partition, Recovery
from streamproc.state.session import Session
from streamproc.state.workload import Workload


def drop_query(workload: Workload, partition: Partition, query_id: str) -> None:
    """A query has changed: what was asked by its old version is not answered any more."""

    def is_old(fork: Fork) -> bool:
        return isinstance(fork.question.source, Query) and fork.question.source.id == query_id

    drop_forks(workload, partition, is_old)
    partition.finished = [fork for fork in partition.finished if not is_old(fork)]
    partition.dirty.update(dict.fromkeys(partition.sessions))


def drop_forks(workload: Workload, partition: Partition, is_gone: Callable[[Fork], bool]) -> None:
    """Forget the forks of this partition for which `is_gone` holds."""
    for fork in workload.drop_forks(lambda fork: fork.question.as_of.partition == partition.number and is_gone(fork)):
        partition.forks.pop(fork.seq_id, None)
        partition.ask_offsets.pop(fork.seq_id, None)


def truncate(workload: Workload, partition: Partition, recovery: Recovery) -> None:
    """Back to the state before the committed offset; KV is append-only, so this is exact."""
    offset = recovery.live_from
    drop_forks(workload, partition, lambda fork: fork.question.is_ask or fork.question.as_of.offset >= offset)
    for key, session in list(partition.sessions.items()):
        _truncate_session(workload, session, offset)
        if not session.current.entries:
            workload.drop(session.current)
            if session.head:
                partition.heads[key] = session.head
            del partition.sessions[key]
    partition.rewind(recovery)


def _truncate_session(workload: Workload, session: Session, offset: int) -> None:
    for generation in session.truncate(offset):
        workload.drop(generation)
    current = session.current
    is_cold = not current.block_table and current.seq_id not in workload.growing
    workload.pool.release(current.trim_blocks(workload.pool))
    if current.num_computed == current.num_tokens:
        workload.growing.pop(current.seq_id, None)
    elif not is_cold or current.num_waiting_forks:      # a cold one is computed when somebody needs it
        workload.grow(current)


def let_go(workload: Workload, partition: Partition) -> None:
    """The partition belongs to somebody else now: free all that it held."""
    drop_forks(workload, partition, lambda fork: True)
    for session in partition.sessions.values():
        for generation in session.all_generations:
            workload.drop(generation)
    partition.enter(Phase.GONE)
