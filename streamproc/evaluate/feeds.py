"""The records that an evaluation plays: many independent stretches, each the log of one partition.

Synthetic stretches are drawn from seeds of their own, `eval-SEED-NUMBER`: texts, where training uses numbers, so no
stretch has ever been trained on. Of the sample or a file, stretches start at drawn places.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from streamproc.errors import Usage
from streamproc.evaluate.settings import SAMPLE, SYNTHETIC, Settings
from streamproc.market.files import read_records
from streamproc.market.sample import sample_records
from streamproc.market.synthetic import feed, instruments
from streamproc.records import Record

MOST_SYMBOLS = 6        # of a synthetic session
MOST_KEYS = 3           # sessions in one partition, where each key has its own
MOST_RECORDS = 200_000  # of a file
WITHOUT_QUOTES = 4      # every so many synthetic stretches may have trades alone, or quotes alone


def seeded(seed: int, number: int) -> random.Random:
    """The generator of one stretch; no number seeds the same."""
    return random.Random(f"eval-{seed}-{number}")


class Feeds(Protocol):
    """Where stretches come from."""

    @property
    def some(self) -> Sequence[Record]:
        """Records such as come up, to measure."""
        ...

    def num_keys(self, by_partition: bool) -> int:
        """Sessions in one stretch, at most."""
        ...

    def stretch(self, number: int, by_partition: bool, num_records: int) -> Iterator[Record]:
        """Records of one partition, in order; about `num_records` or more where there are that many."""
        ...


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Feeds that never were; without end."""

    seed: int

    @property
    def some(self) -> Sequence[Record]:
        return [next(self.stretch(number, True, 1)) for number in range(100)]

    def num_keys(self, by_partition: bool) -> int:
        return 1 if by_partition else MOST_KEYS

    def stretch(self, number: int, by_partition: bool, num_records: int) -> Iterator[Record]:
        rng = seeded(self.seed, number)
        most = MOST_SYMBOLS if by_partition else MOST_KEYS
        found = instruments(rng, most)
        while number % WITHOUT_QUOTES and not any(0 < item.quotes < 1 for item in found):
            found = instruments(rng, most)
        return feed(rng, found)


@dataclass(frozen=True, slots=True)
class Recorded:
    """Records that were; stretches of them may overlap."""

    records: Sequence[Record]
    seed: int

    @property
    def some(self) -> Sequence[Record]:
        return self.records[:: len(self.records) // 100 + 1]

    def num_keys(self, by_partition: bool) -> int:
        return 1 if by_partition else min(MOST_KEYS, len({record.sym for record in self.records}))

    def stretch(self, number: int, by_partition: bool, num_records: int) -> Iterator[Record]:
        """With a session for each key: the records of a few keys, as of a partition that others share with them."""
        rng, records = seeded(self.seed, number), self.records
        if not by_partition:
            keys = self._keys(rng)
            records = [record for record in records if record.sym in keys]
        start = rng.randrange(max(len(records) - num_records, len(records) // 2, 1))
        return itertools.islice(records, start, None)

    def _keys(self, rng: random.Random) -> set[str]:
        """A few symbols; those that trade often come often."""
        num, keys = self.num_keys(by_partition=False), set[str]()
        rare = sorted({record.sym for record in self.records})
        for _ in range(100):
            if len(keys) < num:
                keys.add(rng.choice(self.records).sym)
        return keys | set(rare[: num - len(keys)])


def open_feeds(settings: Settings, note: Callable[[str], None]) -> Feeds:
    """What the settings name. Raises Usage for a file that is none or has no records, BadRecord for a bad row."""
    if settings.feed == SYNTHETIC:
        return Synthetic(settings.seed)
    source = sample_records() if settings.feed == SAMPLE else read_records(settings.feed)
    records = list(itertools.islice(source, MOST_RECORDS + 1))
    if not records:
        raise Usage(f"--feed: {settings.feed} has no records")
    if len(records) > MOST_RECORDS:
        note(f"warning: {settings.feed}: only the first {MOST_RECORDS:,} records are played")
    return Recorded(records[:MOST_RECORDS], settings.seed)
