import hashlib
import random
import time

import pytest
from snapshot_world import (
    BLOCK_BYTES,
    IDENTITY,
    DictStore,
    Failing,
    Said,
    blocks,
    name,
    other,
    restored,
    session,
    written,
)

from streamproc.errors import Unavailable
from streamproc.snapshots.collector import FOREIGN_S, Collector, Retention, prune
from streamproc.snapshots.publisher import Publisher

GRACE_S = 600.0


class World:
    """A store with a clock that a test moves; the store's clock is a day ahead of ours."""

    def __init__(self):
        self.now = 1000.0
        self.store = DictStore(lambda: self.now + 86_400)

    def publisher(self, **given):
        retention = Retention(**{"keep": 1, "grace_s": GRACE_S, **given})
        return Publisher(self.store, Said(), retention, now=lambda: self.now, unix_s=lambda: self.now)

    def collect(self):
        return Collector(self.store, IDENTITY.scope, GRACE_S).collect()

    def of(self, folder):
        return [found.path for found in self.store.list(f"desk/ticks/{folder}")]

    def offsets(self, partition=3):
        return [int(path.split("/")[-1][:20]) for path in self.of(f"manifests/{partition}")]


@pytest.fixture
def world():
    return World()


def publish(world, publisher, offset, numbers=(1,), identity=IDENTITY):
    publisher.publish(identity, offset, [session(*numbers)])
    world.now += 1


def test_a_segment_that_nobody_names_is_marked_and_goes_a_grace_period_later(world):
    publisher = world.publisher()
    publisher.write(IDENTITY, blocks(1))
    publish(world, publisher, 1)
    publisher.write(IDENTITY, blocks(2))
    publish(world, publisher, 2, (2,))
    prune(world.store, IDENTITY.folder, IDENTITY.tag, Retention(keep=1))
    kept = [publisher.shelf(IDENTITY).of([name(2)])[0].ref.sha256]
    world.now += GRACE_S - 10
    assert world.collect().condemned == []  # too young: it might be on its way
    world.now += 20
    assert len(world.collect().condemned) == 1
    assert len(world.of("segments")) == 2
    world.now += GRACE_S - 10
    assert world.collect().segments == []
    world.now += 20
    assert len(world.collect().segments) == 1
    assert [path.split("/")[-1].split(".")[0] for path in world.of("segments")] == kept
    assert world.of("condemned") == ["desk/ticks/condemned/clock"]
    assert restored(world.store, [1, 2]) == ([2], [])


def test_a_condemned_segment_is_not_named_again(world):
    """Another partition's blocks, long not needed, that somebody still remembers."""
    publisher, zombie = world.publisher(), world.publisher()
    for each in (publisher, zombie):
        each.write(IDENTITY, blocks(1))
    world.now += GRACE_S + 1
    world.collect()
    zombie.publish(IDENTITY, 5, [session(1)])
    assert not zombie.shelf(IDENTITY).of([name(1)])
    assert restored(world.store, [1]) == ([], [])


def test_a_segment_named_by_any_partition_or_model_stays(world):
    for each in (other(partition=9), other(fingerprint="e"), other(topic_id="x")):
        publisher = world.publisher()
        publisher.write(each, blocks(1))
        publish(world, publisher, 1, identity=each)
    for _ in range(3):
        world.now += GRACE_S + 1
        assert world.collect().segments == []
    assert len(world.of("segments")) == 3


def test_a_damaged_manifest_protects_nothing_and_an_unknown_one_everything(world):
    publisher = world.publisher()
    publisher.write(IDENTITY, blocks(1))
    publish(world, publisher, 1)
    (path,) = world.of("manifests")
    content, modified_s = world.store.files[path]
    world.now += GRACE_S + 1
    world.store.files[path] = (content[:-1] + b" ", modified_s)
    assert len(world.collect().condemned) == 1
    digest = hashlib.sha256(b'{"format":"streamproc snapshot 2"}').hexdigest()[:16]
    world.store.files[path[: -len(digest) - 5] + digest + ".json"] = (b'{"format":"streamproc snapshot 2"}', modified_s)
    with pytest.raises(Unavailable, match=r"nothing is collected in desk/ticks: .*streamproc snapshot 2"):
        world.collect()


def test_a_pass_that_cannot_read_a_manifest_deletes_nothing(world):
    publisher = world.publisher()
    publisher.write(IDENTITY, blocks(1))
    publish(world, publisher, 1)
    world.now += 3 * GRACE_S
    collector = Collector(Failing(world.store, ("get",)), IDENTITY.scope, GRACE_S)
    with pytest.raises(Unavailable):
        collector.collect()
    assert len(world.of("segments")) == 1


def test_a_dry_run_changes_nothing(world):
    publisher = world.publisher()
    publisher.write(IDENTITY, blocks(1))
    before = dict(world.store.files)
    world.now = time.time()
    assert len(Collector(world.store, IDENTITY.scope, 0).would_collect().condemned) == 1
    assert world.store.files == before


@pytest.mark.parametrize(
    ("keep", "max_age_s", "left"),
    [(1, 0, [500]), (2, 0, [400, 500]), (9, 0, [100, 200, 300, 400, 500]), (1, 250, [400, 500])],
)
def test_the_newest_are_kept_and_those_younger_than_an_age(world, keep, max_age_s, left):
    publisher = world.publisher()
    for offset in (100, 200, 300, 400, 500):
        publisher.publish(IDENTITY, offset, [])
        world.now += 100
    prune(world.store, IDENTITY.folder, IDENTITY.tag, Retention(keep, max_age_s))
    assert world.offsets() == left


def test_what_is_newest_is_told_by_when_it_was_written_not_by_its_offset(world):
    """A group that was set back, or a topic that was recreated, starts low again."""
    publisher = world.publisher()
    for offset in (800, 900, 5, 6):
        publish(world, publisher, offset)
        prune(world.store, IDENTITY.folder, IDENTITY.tag, Retention(keep=2))
    assert world.offsets() == [5, 6]


def test_the_newest_of_another_model_stay_for_a_day(world):
    publisher, theirs = world.publisher(), other(fingerprint="e" * 64)
    for offset in (1, 2, 3):
        publish(world, publisher, offset, identity=theirs)
    publish(world, publisher, 4)
    prune(world.store, IDENTITY.folder, IDENTITY.tag, Retention(keep=1))
    assert world.offsets() == [3, 4]
    world.now += FOREIGN_S + 10
    publish(world, publisher, 5)
    prune(world.store, IDENTITY.folder, IDENTITY.tag, Retention(keep=1))
    assert world.offsets() == [5]


def test_other_files_in_the_folder_are_left_alone(world):
    world.store.put(f"{IDENTITY.folder}/notes.txt", [b"mine"])
    publish(world, world.publisher(), 1)
    prune(world.store, IDENTITY.folder, IDENTITY.tag, Retention(keep=1))
    assert world.store.get(f"{IDENTITY.folder}/notes.txt") is not None


def test_a_collector_on_every_store_deletes_what_nobody_names(store):
    written(store, 100, [1, 2])
    written(store, 200, [3])
    prune(store, IDENTITY.folder, IDENTITY.tag, Retention(keep=1))
    collector = Collector(store, IDENTITY.scope, grace_s=-1)
    assert len(collector.collect().condemned) == 1
    assert len(collector.collect().segments) == 1
    assert collector.collect().segments == []
    assert restored(store, [1, 2, 3]) == ([3], [])


def test_published_work_of_a_random_worker_is_found_whole(world):
    """One worker for a long time: what its newest manifest names is there at every moment."""
    rng = random.Random(7)
    publisher = world.publisher()
    for offset in range(300):
        fresh = rng.sample(range(40), 3)
        unknown = [number for number in fresh if name(number) not in publisher.shelf(IDENTITY)]
        if unknown:
            publisher.write(IDENTITY, blocks(*unknown))
        publisher.publish(IDENTITY, offset, [session(*fresh)])
        publisher.tidy(IDENTITY)
        world.now += rng.choice((1, 15, 30, 70))
        assert restored(world.store, fresh) == (fresh, [])
    assert len(world.of("segments")) < 80  # of some 300: two grace periods are 40 publishes


def test_blocks_scattered_over_many_segments_are_put_together(world):
    """A slow session beside fast ones: a block of it in every segment, the rest of the segment soon waste."""
    publisher = world.publisher()
    slow = []
    for offset in range(400):
        slow.append(10_000 + offset)
        fast = list(range(offset * 10, offset * 10 + 10))
        publisher.write(IDENTITY, blocks(slow[-1], *fast))
        publisher.publish(IDENTITY, offset, [session(*slow), session(*fast, key="fast")])
        publisher.tidy(IDENTITY)
        world.now += 30
        if offset % 50 == 49:
            assert restored(world.store, [*slow, *fast]) == ([*slow, *fast], [])
    assert len(publisher.publish(IDENTITY, 401, [session(*slow)]).segments) <= 72
    num_bytes = sum(found.num_bytes for found in world.store.list("desk/ticks/segments"))
    assert num_bytes < 3 * 400 * BLOCK_BYTES


def test_few_small_segments_become_one_and_then_rest(world):
    publisher = world.publisher()
    for number in range(65):
        publisher.write(IDENTITY, blocks(number))
    everything = [session(*range(65))]
    assert len(publisher.publish(IDENTITY, 1, everything).segments) == 65
    publisher.tidy(IDENTITY)
    assert len(publisher.publish(IDENTITY, 2, everything).segments) == 34
    world.now += GRACE_S
    publisher.tidy(IDENTITY)
    assert len(publisher.publish(IDENTITY, 3, everything).segments) == 34
    assert restored(world.store, range(65)) == (list(range(65)), [])


def test_a_damaged_block_that_is_to_be_put_together_is_to_be_given_again(world):
    publisher = world.publisher()
    publisher.write(IDENTITY, blocks(*range(20)))
    publisher.publish(IDENTITY, 1, [session(3)])
    (path,) = world.of("segments")
    content, modified_s = world.store.files[path]
    world.store.files[path] = (content[:-1] + b"!", modified_s)  # of another block
    publisher.tidy(IDENTITY)
    assert name(3) in publisher.shelf(IDENTITY)
    publisher.publish(IDENTITY, 2, [session(3, 19)])
    world.now += 200
    world.store.files[path] = (bytes(len(content)), modified_s)
    publisher.publish(IDENTITY, 3, [session(19)])
    publisher.tidy(IDENTITY)
    assert name(19) not in publisher.shelf(IDENTITY)


def test_a_store_that_does_not_answer_makes_nobody_doubt(world):
    store = Failing(world.store, ("get",))
    store.is_failing = False
    publisher = Publisher(store, Said(), Retention(), now=lambda: world.now)
    publisher.write(IDENTITY, blocks(*range(20)))
    publisher.publish(IDENTITY, 1, [session(3)])
    store.is_failing = True
    with pytest.raises(Unavailable):
        publisher.tidy(IDENTITY)
    assert name(3) in publisher.shelf(IDENTITY)


def test_what_was_written_last_is_learned_also_where_a_group_was_set_back(world):
    publisher = world.publisher()
    for offset, number in ((900, 1), (5, 2)):
        publisher.write(IDENTITY, blocks(number))
        publish(world, publisher, offset, (number,))
    again = world.publisher()
    again.learn(IDENTITY)
    assert again.newest(IDENTITY).offset == 5
    assert name(2) in again.shelf(IDENTITY)


def test_a_block_waits_unnamed_for_its_first_manifest_as_long_as_the_grace_period(world):
    """Its partition publishes seldom, others often."""
    publisher = world.publisher()
    publisher.write(IDENTITY, blocks(1))
    for offset in range(15):
        world.now += 30
        publisher.publish(other(partition=9), offset, [])
        publisher.tidy(other(partition=9))
    assert name(1) in publisher.shelf(IDENTITY)
    publisher.publish(IDENTITY, 1, [session(1)])
    assert restored(world.store, [1]) == ([1], [])


def test_whoever_collects_waits_as_long_as_any_writer_of_the_store_needs(world):
    """A worker with a long interval has reason to count on a segment for long; a prune with other settings comes by."""
    quick, slow = world.publisher(), world.publisher(grace_s=8 * GRACE_S)
    quick.write(IDENTITY, blocks(1))
    publish(world, quick, 100)
    world.now += 2 * GRACE_S
    slow.learn(IDENTITY)
    publish(world, slow, 101, identity=other(partition=4))  # it has seen the segment
    for found in world.store.list("desk/ticks/manifests"):
        world.store.delete(found.path)  # nobody names it any more
    for _ in range(3):
        world.collect()
        world.now += GRACE_S / 2
    publish(world, slow, 102)  # has no need to look again
    world.collect()
    assert restored(world.store, [1]) == ([1], [])


def test_a_longer_grace_period_counts_until_nobody_needs_it_any_more(world):
    slow = world.publisher(grace_s=8 * GRACE_S)
    slow.learn(IDENTITY)
    slow.write(IDENTITY, blocks(1))
    assert len(world.of("grace")) == 1
    world.now += 7 * GRACE_S
    assert (world.collect().condemned, world.of("segments") != []) == ([], True)
    world.now += 10 * GRACE_S  # it is gone for good
    assert len(world.collect().condemned) == 1
    world.now += GRACE_S
    assert len(world.collect().segments) == 1


def test_whoever_is_alone_need_not_wait_for_others(world):
    world.publisher(grace_s=8 * GRACE_S).learn(IDENTITY)
    world.publisher().write(IDENTITY, blocks(1))
    alone = Collector(world.store, IDENTITY.scope, 0.0, is_alone=True)
    assert (len(alone.collect().condemned), len(alone.collect().segments)) == (1, 1)


@pytest.mark.parametrize(("interval_s", "grace_s"), [(1, 600), (30, 600), (600, 4800)])
def test_the_grace_period_is_many_intervals_long(interval_s, grace_s):
    assert Retention.every(interval_s, 3, 9) == Retention(3, 9, grace_s)


def test_a_clock_that_was_ahead_keeps_no_snapshot_from_being_kept(world):
    """What was written then has times that are yet to come: whatever is written since is newer all the same."""
    publisher = world.publisher()
    world.now += 86_400
    for offset in (100, 200, 300):
        publish(world, publisher, offset)
    world.now -= 86_400
    for offset in (400, 500, 600):
        publish(world, publisher, offset)
        prune(world.store, IDENTITY.folder, IDENTITY.tag, Retention(keep=1))
        assert offset in world.offsets()
    assert world.offsets() == [300, 600]  # 300: the last by its writer's clock
    prune(world.store, IDENTITY.folder, None, Retention(keep=1))
    assert world.offsets() == [300, 600]


def test_what_its_writer_made_last_stays_whatever_the_store_says(world):
    publisher = world.publisher()
    publish(world, publisher, 100)
    (path,) = world.of("manifests")
    content, _ = world.store.files[path]
    publish(world, publisher, 200)
    newest = world.of("manifests")[1]
    world.store.files[newest] = (world.store.files[newest][0], 0.0)
    prune(world.store, IDENTITY.folder, IDENTITY.tag, Retention(keep=1))
    assert world.offsets() == [100, 200]
    assert world.store.files[path][0] == content


def test_a_store_that_takes_nothing_more_can_still_get_emptier(world):
    publisher = world.publisher()
    for offset in (1, 2, 3):
        publish(world, publisher, offset)
    store = Failing(world.store, ("put",))
    assert len(prune(store, IDENTITY.folder, IDENTITY.tag, Retention(keep=1)).manifests) == 2
    assert world.offsets() == [3]


def test_nothing_is_deleted_but_what_is_ours_in_full(world):
    publisher = world.publisher()
    publisher.write(IDENTITY, blocks(1))
    publish(world, publisher, 1)
    publish(world, publisher, 2)
    digest = world.of("segments")[0].split("/")[-1]
    newest = world.of("manifests")[1].split("/")[-1]
    strange = [
        "segments/README.txt", "segments/.DS_Store", "segments/link", f"segments/backup/{digest}", "segments/film.part",
        f"segments/{digest}.bak", f"segments/{digest.upper()}", "segments/0123.safetensors", "condemned/mine.txt",
        f"condemned/{'a' * 63}", f"condemned/old/{'a' * 64}", f"manifests/3/backup/{newest}", "manifests/3/notes",
    ]  # fmt: skip
    for path in strange:
        world.store.files[f"desk/ticks/{path}"] = (b"theirs", 0.0)
    for _ in range(3):
        world.now += FOREIGN_S + GRACE_S
        prune(world.store, IDENTITY.folder, IDENTITY.tag, Retention(keep=1))
        world.collect()
    assert [path for path in strange if f"desk/ticks/{path}" not in world.store.files] == []
    assert len([path for path in world.of("manifests/3") if path.count("/") == 4]) == 2  # the notes, and the newest
