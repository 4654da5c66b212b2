"""A worker's slot as its name in the group: static membership.

A member with a name that stops, or dies, keeps its partitions until the session timeout: who comes back under the name
gets them without a rebalance. A name belongs to one process at a time. With the new protocol Kafka refuses who comes
while the name is taken, so a restart after a kill has to wait until Kafka has let go; with the classic one it is the
process that was there that is refused.
"""

import time
from collections.abc import Callable

from confluent_kafka import KafkaError

from streamproc.errors import Fenced
from streamproc.kafka.properties import LOGGER

RELEASE_S = 75.0  # Kafka lets go of a dead member after its session timeout: 45 s as it comes, 60 s at most by default
RETRY_S = 1.0
TAKEN = KafkaError(KafkaError.UNRELEASED_INSTANCE_ID).str()  # the library hides the code of a fatal error, not its text
FENCED = KafkaError(KafkaError.FENCED_INSTANCE_ID).str()
LOGGER.addFilter(lambda record: TAKEN not in record.getMessage())  # once a try; it is told below, once


class Slot:
    """`name` None: a member without one, which leaves for good whenever it stops."""

    def __init__(
        self, group: str, name: str | None, warn: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._group, self._name, self._warn, self._clock = group, name, warn, clock
        self._held_since: float | None = None
        self._retry_at = 0.0
        self.is_held = False  # somebody has our name

    @property
    def properties(self) -> dict[str, str]:
        return {} if self._name is None else {"group.instance.id": self._name}

    def refuses(self, error: KafkaError) -> bool:
        """Whether this error says that our name is somebody else's now. Raises Fenced where it will stay so."""
        if FENCED in error.str():
            raise self._fenced()
        if TAKEN not in error.str():
            return False
        now = self._clock()
        if self._held_since is None:
            self._held_since = now
            self._warn(
                f"slot {self._name} of group {self._group} is still taken: waiting up to {RELEASE_S:.0f} s for Kafka "
                "to let go of a worker that was killed; a living one needs a worker.slot of its own"
            )
        elif now - self._held_since > RELEASE_S:
            raise self._fenced()
        self.is_held, self._retry_at = True, now + RETRY_S
        return True

    def may_retry(self) -> bool:
        """Whether it is time to try again; then it counts as ours until we are told otherwise."""
        self.is_held = self._clock() < self._retry_at
        return not self.is_held

    def joined(self) -> None:
        """The group has taken us in."""
        self._held_since = None

    def _fenced(self) -> Fenced:
        return Fenced(
            f"another worker of group {self._group} is in slot {self._name}: give each worker its own worker.slot"
        )
