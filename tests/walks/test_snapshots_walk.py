"""Two writers and a collector on one store, at random: between any two steps on the store any of the others may act,
and time passes. At every moment, whatever a published manifest names is there.
"""

import random
import threading

import pytest
from snapshot_world import IDENTITY, DictStore, Said, Wrapped, blocks, name, other, session

from streamproc.errors import Unavailable
from streamproc.snapshots import publisher as publishers
from streamproc.snapshots.collector import Collector, Retention
from streamproc.snapshots.manifest import encode, parse_name, segment_path
from streamproc.snapshots.publisher import Publisher
from streamproc.snapshots.restore import read_manifest

GRACE_S = 100.0
NUM_ROUNDS = 25
PATIENT_S = 30
NUMBERS = range(14)
IDENTITIES = (IDENTITY, other(partition=4))


class Stopped(Exception):
    """The walk is over."""


class Turns(Wrapped):
    """A store that lets one actor do one step at a time; who is next is drawn."""

    def __init__(self, store):
        super().__init__(store)
        self._changed = threading.Condition()
        self._waiting = set()
        self._asleep = {}  # actor: steps of others until it wakes
        self._turn = None
        self._is_over = False

    def step(self, deed, path):
        me = threading.current_thread()
        with self._changed:
            self._waiting.add(me)
            self._turn = None
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._turn is me or self._is_over, PATIENT_S)
            if self._is_over:
                raise Stopped

    def next(self, actors, rng):
        """Let one actor do one step and wait until it wants another or has ended -> whether any could."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._all_wait(actors), PATIENT_S)
            if not self._waiting:
                return False
            self._turn = self._draw(sorted(self._waiting, key=lambda actor: actor.name), rng)
            self._waiting.discard(self._turn)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._turn is None or self._all_wait(actors), PATIENT_S)
            return True

    def _draw(self, actors, rng):
        """One of those that are not asleep; now and then one falls asleep for long, as a stopped process does."""
        self._asleep = {actor: num_steps - 1 for actor, num_steps in self._asleep.items() if num_steps > 1}
        awake = [actor for actor in actors if actor not in self._asleep] or actors
        drawn = rng.choice(awake)
        if rng.random() < 0.03 and len(awake) > 1:
            self._asleep[drawn] = rng.randint(10, 80)
            awake.remove(drawn)
        return rng.choice(awake)

    def _all_wait(self, actors):
        return all(actor in self._waiting or not actor.is_alive() for actor in actors)

    def ended(self):
        with self._changed:
            self._turn = None
            self._changed.notify_all()

    def stop(self):
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


class Walk:
    def __init__(self, seed, collector_grace_s=GRACE_S):
        self.rng = random.Random(seed)
        self.pace = self.rng.choice((0.03, 0.3, 1.0))  # slow walks have many steps within a grace period
        self.collector_grace_s = collector_grace_s
        self.now = 0.0
        self.files = DictStore(lambda: self.now + 12_345)
        self.turns = Turns(self.files)
        self.published = {}  # path: segments, of manifests whose writer was told that they are published
        self.num_taken_back = 0
        self.num_deleted = 0
        self.problems = []

    def writer(self, seed):
        """A worker that owns a partition now and then, whoever else believes so too."""
        rng = random.Random(seed)
        retention = Retention(keep=1, grace_s=GRACE_S)
        publisher = Publisher(self.turns, Said(), retention, now=lambda: self.now, unix_s=lambda: self.now)
        for _ in range(NUM_ROUNDS):
            identity = rng.choice(IDENTITIES)
            wanted = rng.sample(NUMBERS, rng.choice((1, 2, 3, 9)))
            if rng.random() < 0.2:
                publisher.forget(identity)
                publisher.learn(identity)
            given = [number for number in wanted if name(number) not in publisher.shelf(identity)]
            if given and rng.random() < 0.8:
                publisher.write(identity, blocks(*given, num_bytes=16))
            try:
                manifest = publisher.publish(identity, rng.randint(0, 50), [session(*wanted)])
            except Unavailable:
                self.num_taken_back += 1
                continue
            self.published[encode(manifest)[0]] = manifest.segments
            if rng.random() < 0.8:
                publisher.tidy(identity)

    def collector(self):
        collector = Collector(self.turns, IDENTITY.scope, self.collector_grace_s)
        for _ in range(NUM_ROUNDS):
            self.num_deleted += len(collector.collect().segments)

    def act(self, deed, *args):
        try:
            deed(*args)
        except Stopped:
            pass
        except BaseException as problem:
            self.problems.append(problem)
            raise
        finally:
            self.turns.ended()

    def run(self):
        actors = [
            threading.Thread(target=self.act, args=(self.writer, self.rng.random()), name="writer 1"),
            threading.Thread(target=self.act, args=(self.writer, self.rng.random()), name="writer 2"),
            threading.Thread(target=self.act, args=(self.collector,), name="collector"),
        ]
        for actor in actors:
            actor.start()
        try:
            while self.turns.next(actors, self.rng):
                step_s = self.rng.choice((0, 0, 1, 3, 10, 30)) if self.rng.random() < 0.9 else GRACE_S * 0.7
                self.now += step_s * self.pace
                self.check()
        finally:
            self.turns.stop()
            for actor in actors:
                actor.join()
        assert self.problems == []

    def check(self):
        for path, segments in self.published.items():
            if path in self.files.files:
                paths = {segment_path(IDENTITY.scope, segment.sha256) for segment in segments}
                assert paths <= self.files.files.keys(), f"{path} names what is gone"


@pytest.fixture(autouse=True)
def often_put_together(monkeypatch):
    """Four segments are too many already."""
    monkeypatch.setattr(publishers, "MANY", 4)


@pytest.mark.parametrize("seed", range(40))
def test_nothing_that_a_manifest_names_is_ever_deleted(seed):
    Walk(seed).run()


def test_the_walk_deletes_and_takes_back_and_what_is_left_can_be_read():
    walks = [Walk(seed) for seed in range(100, 110)]
    for walk in walks:
        walk.run()
        for found in walk.files.list("desk/ticks/manifests"):
            assert read_manifest(walk.files, parse_name(found.path)) is not None
    assert sum(walk.num_deleted for walk in walks) > 20
    assert sum(walk.num_taken_back for walk in walks) > 5


def run_walks(number, **given):
    for seed in range(number):
        Walk(seed, **given).run()


def test_the_walk_finds_out_a_collector_that_does_not_wait():
    with pytest.raises(AssertionError, match="names what is gone"):
        run_walks(200, collector_grace_s=0)


@pytest.mark.parametrize("rule", ["marks", "presence", "taking back"])
def test_the_walk_finds_out_a_writer_that_leaves_a_rule_out(rule, monkeypatch):
    class Everything(frozenset):
        def __contains__(self, item):
            return True

    if rule == "marks":
        monkeypatch.setattr(publishers, "marked", lambda store, scope: frozenset())
    elif rule == "presence":
        monkeypatch.setattr(publishers, "present", lambda store, scope: Everything())
    else:
        monkeypatch.setattr(publishers, "DONE", float("inf"))
    with pytest.raises(AssertionError, match="names what is gone"):
        run_walks(200)
