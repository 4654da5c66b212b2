"""The life of a partition on a worker, as two tables: what may follow what, and what each event makes the worker do.

RESTORING   reads its sessions' records again, silently, up to the committed offset
LIVE        records trigger questions, answers are published
LEAVING     nothing new is taken in: what was asked is answered while there is time, then committed
GONE        owned by somebody else now

An event may come at any point of a life, and again at once: a partition is assigned while it restores, lost while the
device computes it, revoked and back before anybody has noticed. Whatever came before is let go of first.
"""

from enum import Enum


class Phase(Enum):
    RESTORING = "restoring"
    LIVE = "live"
    LEAVING = "leaving"
    GONE = "gone"


NEXT = {
    Phase.RESTORING: {Phase.LIVE, Phase.GONE},
    Phase.LIVE: {Phase.RESTORING, Phase.LEAVING, Phase.GONE},
    Phase.LEAVING: {Phase.GONE},
    Phase.GONE: set(),
}


class Event(Enum):
    ASSIGNED = "assigned"
    REVOKED = "revoked"  # still ours until we say that we have let go
    LOST = "lost"  # somebody else's already: nothing of it may be committed


class Act(Enum):
    NOTHING = "nothing"
    FINISH = "finish"  # answer and commit within the deadline, then let go
    LET_GO = "let go"


ACTS = {
    (None, Event.ASSIGNED): Act.NOTHING,
    (None, Event.REVOKED): Act.NOTHING,
    (None, Event.LOST): Act.NOTHING,
    (Phase.RESTORING, Event.ASSIGNED): Act.LET_GO,
    (Phase.RESTORING, Event.REVOKED): Act.LET_GO,  # nothing has happened that could be committed, but that it is left
    (Phase.RESTORING, Event.LOST): Act.LET_GO,
    (Phase.LIVE, Event.ASSIGNED): Act.LET_GO,
    (Phase.LIVE, Event.REVOKED): Act.FINISH,
    (Phase.LIVE, Event.LOST): Act.LET_GO,
    (Phase.LEAVING, Event.ASSIGNED): Act.LET_GO,
    (Phase.LEAVING, Event.REVOKED): Act.LET_GO,
    (Phase.LEAVING, Event.LOST): Act.LET_GO,
}
