"""What the log and the group's committed offsets say of partitions: where their owner has to begin."""

import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streamproc.config import Config
from streamproc.errors import Refused, Unavailable
from streamproc.kafka.committed import Committed, Place, outsider, read_committed
from streamproc.kafka.epoch import longest_open_s
from streamproc.kafka.gaps import Found, find_gap
from streamproc.kafka.heads import Heads, known_before, read_heads
from streamproc.kafka.identity import Identities, Identity, not_as_many
from streamproc.kafka.positions import watermarks
from streamproc.kafka.properties import client_properties
from streamproc.kafka.tailing import Tail
from streamproc.state.asklog import answered_to
from streamproc.state.origin import Origin, decode_origin
from streamproc.state.partition import Recovery
from streamproc.state.registrar import OWNER
from streamproc.state.stamp import FRESH, decode_stamp

TIMEOUT_S = 15.0
ASK_S = 5.0  # beyond what a transaction may stay open
PAUSE_S = 0.2
NO_ONE = Committed(-1, "")


class Survey(NamedTuple):
    """What was found out of all partitions of an assignment, and who asks for the rest."""

    client: Consumer
    identity: Identity
    offsets: dict[Place, Committed]
    heads: dict[int, Heads]
    partitions_known: int


class GroupLog:
    """Reads only; changes nothing."""

    def __init__(
        self,
        config: Config,
        identities: Identities,
        warn: Callable[[str], None],
        model: str = "",
    ) -> None:
        """model: digest of the one that processes; empty: not known, and not looked at."""
        self._config, self._identities, self._warn = config, identities, warn
        self._model = model
        self._records, self._asks = config.topics.records, config.topics.asks
        self._properties = client_properties(config)
        self._patience_s = longest_open_s(self._properties) + ASK_S

    def recover(self, numbers: Collection[int]) -> dict[int, Recovery]:
        """What a new owner of partitions finds. Raises Refused at a gap, unless the settings say to go on."""
        identity = self._identity()
        if not numbers:
            return {}
        places = [(topic, number) for number in numbers for topic in (self._records, self._asks)]
        if OWNER in numbers:
            places.append((self._config.topics.control, 0))
        with self._outsider() as client:
            committed = self._committed(client, places)
            heads = read_heads(self._config, numbers, self._warn)
            known = self._partitions_known(client, numbers, committed, heads)
            survey = Survey(client, identity, committed, heads, known)
            return {number: self._recover(number, survey) for number in numbers}

    def _recover(self, number: int, survey: Survey) -> Recovery:
        client, identity, offsets, all_heads, partitions_known = survey
        heads = all_heads[number]
        committed, metadata = offsets[self._records, number]
        low, high = self._watermarks(client, self._records, number)
        stamp = decode_stamp(metadata) if committed >= 0 else FRESH
        before, origin = decode_origin(metadata), Origin(self._model, identity.num_partitions)
        if committed < 0 and not heads.known and partitions_known <= number:
            before = Origin("", partitions_known)
        found = Found(
            self._records, number, self._config.worker.group, identity.id, low, high, committed, stamp.topic_id,
            heads.known, before, origin,
        )  # fmt: skip
        cut = frozenset(session for session, head in heads.known.items() if head.start_offset < low)
        if gap := find_gap(found):
            if self._config.worker.on_gap == "fail":
                raise Refused(gap.line("fail"))
            self._warn(gap.line("rebuild"))
            if gap.starts_over:
                committed, stamp, cut = -1, FRESH, frozenset()
            elif not low <= committed <= high:
                committed, stamp, cut = min(max(committed, low), high), FRESH, frozenset()
        known = known_before(heads, committed, low) if committed >= 0 else {}
        stale = tuple(each for each in (*heads.known, *heads.unread) if known.get(each) != heads.known.get(each))
        if committed < 0:
            committed = low if self._config.worker.start == "earliest" else high
        asks = self._asks_from(client, number, offsets[self._asks, number])
        control_from = max(offsets.get((self._config.topics.control, 0), NO_ONE).offset, 0)
        first = min((head.start_offset for head in known.values()), default=committed)
        return Recovery(
            min(max(first, low), committed), committed, known, *asks, control_from, stamp, identity.id, high, stale,
            cut, origin, is_signed=offsets[self._records, number].offset < 0 or before == origin,
        )  # fmt: skip

    def _partitions_known(
        self, client: Consumer, numbers: Collection[int], offsets: dict[Place, Committed], heads: dict[int, Heads]
    ) -> int:
        """How many the group has known of, for those of which it knows nothing; 0: nobody says."""
        new = [n for n in numbers if offsets[self._records, n].offset < 0 and not heads[n].known]
        asked = dict(offsets)
        if new and min(numbers) > OWNER:  # whoever owns that one commits, if anybody does
            asked |= self._committed(client, [(self._records, OWNER)])
        metadata = [found.metadata for place, found in asked.items() if place[0] == self._records]
        return max((decode_origin(each).num_partitions for each in metadata), default=0)

    def _identity(self) -> Identity:
        """The records topic. Waits a moment for the others to have as many partitions; raises Refused without."""
        topics, deadline = self._config.topics, time.monotonic() + TIMEOUT_S
        names = (topics.records, topics.asks, topics.sessions)
        while True:
            found = dict(zip(names, self._identities.of(*names), strict=True))
            problem = not_as_many(found, topics.records, topics.asks)
            if problem is None:
                return found[topics.records]
            if time.monotonic() > deadline:
                raise Refused(problem)
            time.sleep(PAUSE_S)

    def asks_from(self, number: int) -> tuple[int, str]:
        """Where the asks go on, and which are answered beyond. Asks that are gone are told, and left."""
        with self._outsider() as client:
            return self._asks_from(client, number, self._committed(client, [(self._asks, number)])[self._asks, number])

    def _asks_from(self, client: Consumer, number: int, committed: Committed) -> tuple[int, str]:
        offset, metadata = committed
        low, high = self._watermarks(client, self._asks, number)
        if low <= offset <= high:
            return offset, metadata if answered_to(offset, metadata) <= high else ""
        if offset >= 0:
            self._warn(
                f"{self._asks} partition {number}: offset {offset} is committed, the log holds {low} to {high}: "
                "going on with what there is; asks that are gone are not answered"
            )
        return (low if offset < low else high), ""

    def rewound(self, number: int, fallback: int) -> Recovery:
        """The committed offsets now, after an epoch of unknown fate; the fallback where none was ever committed."""
        places = [(topic, number) for topic in (self._records, self._asks)]
        with self._outsider() as client:
            found = self._committed(client, places)
            asks_from, asks_metadata = self._asks_from(client, number, found[self._asks, number])
        committed, metadata = found[self._records, number]
        offset = committed if committed >= 0 else fallback
        stamp = decode_stamp(metadata) if committed >= 0 else FRESH
        return Recovery(offset, offset, {}, asks_from, asks_metadata, stamp=stamp)

    def _outsider(self) -> AbstractContextManager[Consumer]:
        return outsider(self._properties, self._config.worker.group)

    def _committed(self, client: Consumer, places: Collection[Place]) -> dict[Place, Committed]:
        return read_committed(client, places, self._patience_s)

    def _watermarks(self, client: Consumer, topic: str, number: int) -> tuple[int, int]:
        try:
            return watermarks(client, TopicPartition(topic, number), TIMEOUT_S)
        except KafkaException as problem:
            error = problem.args[0]
        if error.code() != KafkaError._UNKNOWN_PARTITION:
            raise Unavailable(f"offsets of {topic} partition {number}: {error.str()}")
        return self._new_watermarks(topic, number)

    def _new_watermarks(self, topic: str, number: int) -> tuple[int, int]:
        """Of a partition that was just added: the group knows of it before every broker does."""
        tail = Tail(self._properties, topic, number + 1)
        try:
            return tail.starts()[number], tail.ends()[number]
        finally:
            tail.close()
