"""The grace period: how long a segment may be on its way into a manifest. All who share a store must wait as long
before they delete one (collector.py), whatever their own settings say.

    <group>/<topic>/grace/<seconds>

Whoever needs more than what everybody grants puts such a file before it counts on any segment, and puts it again now
and then. It counts for twice as long as it says, by the store's clock.
"""

import math

from streamproc.snapshots.contract import Store

GRACE_S = 600.0  # granted by everybody
LIVES = 2  # times as long as it says, a file counts


def grace_folder(scope: str) -> str:
    return f"{scope}/grace"


def tell(store: Store, scope: str, grace_s: float) -> None:
    """Others are to grant so many seconds. Raises Unavailable."""
    if grace_s > GRACE_S:
        store.put(f"{grace_folder(scope)}/{math.ceil(grace_s)}", [b""])


def longest(store: Store, scope: str, grace_s: float, now: float) -> float:
    """The longest of what others need at this time, and `grace_s`. Raises Unavailable."""
    told = [(found.path.rpartition("/")[2], found.modified_s) for found in store.list(grace_folder(scope))]
    needed = [(int(name), modified_s) for name, modified_s in told if name.isdecimal()]
    return max([grace_s, *(each_s for each_s, modified_s in needed if now - modified_s < LIVES * each_s)])
