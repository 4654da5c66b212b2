"""Names of what can go wrong, as Jepsen's Kafka workload calls them where it has a name for it.

    lost-write              an acknowledged record is not there, or an answer that was due and is committed past
    duplicate               the same record, answer, reply or dead letter stands in the log twice
    inconsistent-offsets    two different messages were seen at one offset
    G1a                     aborted read: a message was seen that no committed transaction wrote
    precommitted-read       an answer was visible before the offsets that it was computed from were committed
    unseen                  a committed message never reached the reader, who has read past it to the end
    nonmonotonic-poll       the reader's offsets went back
    poll-skip               the reader's offsets went over a committed message
    nonmonotonic-send       answers of one question and session stand in the log in another order than its records
    torn-transaction        one part of a transaction is in the log, another is not
    hanging-transaction     the log goes on after what readers of committed messages can see

and ours:

    wrong-answer            not what a recompute gives: a session has lost, repeated or reordered a record
    phantom                 an answer that nothing has called for
    stuck                   what was sent was not all processed in time, with everything healed
    crash                   a worker ended with a traceback
    silent-gap              the log no longer fits what was committed, and nobody has said so
    wrong-fate              an epoch committed or aborted where the other was right
"""

from typing import NamedTuple


class Anomaly(NamedTuple):
    """One finding: its name, and what was found where."""

    name: str
    text: str
