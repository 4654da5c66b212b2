import json

import pytest
from click.testing import CliRunner
from snapshot_world import BLOCK_BYTES, IDENTITY, other, restored, written

from streamproc.cli.main import cli
from streamproc.snapshots.collector import Retention
from streamproc.snapshots.manifest import digest_of
from streamproc.snapshots.store import open_store


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "kept")


@pytest.fixture
def verb(url):
    """`verb("list", ...)` -> exit code and output, about the group and topic of the tests."""

    def run(*args):
        settings = (f"snapshots.url={url}", "worker.group=desk", "topics.records=ticks")
        result = CliRunner().invoke(cli, ["snapshots", *args, *(word for text in settings for word in ("-X", text))])
        return result.exit_code, result.stdout or result.stderr

    return run


def damage(store, folder, place):
    path = store.root / store.list(f"desk/ticks/{folder}")[0].path
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_what_is_kept_is_listed_by_partition_the_newest_first(verb, url):
    store = open_store(url)
    written(store, 100, [1, 2], other(partition=10))
    written(store, 100, [1, 2])
    written(store, 200, [1, 2, 3])
    code, text = verb("list")
    assert code == 0
    header, *rows = (line.split() for line in text.splitlines())
    assert header[:2] == ["PARTITION", "OFFSET"]
    assert [row[:2] for row in rows] == [["3", "200"], ["3", "100"], ["10", "100"]]
    assert rows[0][4:7] == ["1", "53", "3"]
    assert rows[0][8] == "ffffffffffff"
    doc = json.loads(verb("list", "--json")[1])
    first = doc["snapshots"][0]
    assert (first["partition"], first["offset"], first["topic_id"], first["blocks"]) == (3, 200, "Zk9", 3)
    assert first["bytes"] > 3 * BLOCK_BYTES


def test_a_damaged_snapshot_is_listed_as_one(verb, url):
    store = open_store(url)
    written(store)
    damage(store, "manifests", 50)
    code, text = verb("list")
    assert code == 0
    assert text.splitlines()[1].endswith("its content is not what its name says")


def test_an_empty_store_is_said(verb, url):
    assert verb("list") == (0, f"no snapshots of desk/ticks in {url}\n")
    assert verb("verify") == (0, "0 snapshots, 0 segments, 0 blocks read: 0 damaged\n")
    assert verb("prune")[0] == 0


def test_whole_snapshots_are_verified(verb, url):
    store = open_store(url)
    written(store, 100, range(5))
    written(store, 200, range(10))
    assert verb("verify") == (0, "2 snapshots, 2 segments, 10 blocks read: 0 damaged\n")


@pytest.mark.parametrize(
    ("folder", "place", "said"),
    [
        ("manifests", 33, "manifests/3/"),
        ("segments", 9, "10 of 10 blocks: its header is not what its name says"),
        ("segments", -1, "1 of 10 blocks: damaged"),
    ],
)
def test_what_is_damaged_is_named_and_the_answer_is_no(verb, url, folder, place, said):
    store = open_store(url)
    written(store)
    damage(store, folder, place)
    code, text = verb("verify")
    assert code == 3
    assert said in text
    assert text.endswith("1 damaged\n")
    code, text = verb("verify", "--json")
    assert code == 3
    (problem,) = json.loads(text)["damaged"]
    assert problem["path"] == store.list(f"desk/ticks/{folder}")[0].path


def test_a_missing_segment_is_damage(verb, url):
    store = open_store(url)
    written(store)
    store.delete(store.list("desk/ticks/segments")[0].path)
    assert verb("verify")[0] == 3


def test_prune_keeps_the_newest_and_what_it_needs(verb, url):
    store = open_store(url)
    for offset, numbers in ((100, [1, 2]), (200, [3]), (300, [4])):
        written(store, offset, numbers, retention=Retention(keep=9))
    code, text = verb("prune", "--keep", "1", "--now", "--dry-run")
    assert (code, text.startswith("2 snapshots and 2 segments would be deleted")) == (0, True)
    assert len(store.list("desk/ticks/segments")) == 3
    doc = json.loads(verb("prune", "--keep", "1", "--now", "--json")[1])
    assert len([path for path in doc["deleted"] if path.endswith(".safetensors")]) == 2
    assert restored(store, [1, 2, 3, 4]) == ([4], [])
    assert verb("prune", "--keep", "1", "--now")[1] == "0 snapshots and 0 segments deleted: 0.0 MB\n"


def test_prune_waits_for_snapshots_on_their_way(verb, url):
    store = open_store(url)
    written(store, 100, [1], retention=Retention(keep=9))
    written(store, 200, [2], retention=Retention(keep=9))
    assert verb("prune", "--keep", "1")[1].startswith("1 snapshots and 0 segments deleted")
    assert len(store.list("desk/ticks/segments")) == 2


def test_only_the_group_and_topic_of_the_settings_are_touched(verb, url):
    store = open_store(url)
    for offset in (1, 2, 3):
        written(store, offset, [1], other(group="lab"), retention=Retention(keep=9))
    verb("prune", "--keep", "1", "--now")
    assert len(store.list("lab/ticks/manifests")) == 3
    assert verb("list")[1].startswith("no snapshots of desk/ticks")


def test_without_a_url_the_setting_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["snapshots", "list"])
    assert result.exit_code == 2
    assert "snapshots.url is not set" in result.stderr
    assert "\n" not in result.stderr.strip()


def test_a_url_of_no_store_is_refused(verb, tmp_path):
    result = CliRunner().invoke(cli, ["snapshots", "list", "-X", "snapshots.url=ftp://x", "--json"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"] == "USAGE"


def test_a_bucket_is_listed_and_verified_too(s3_url):
    written(open_store(s3_url), identity=IDENTITY)
    settings = ["-X", f"snapshots.url={s3_url}", "-X", "worker.group=desk", "-X", "topics.records=ticks"]
    for words in ("list", "verify", "prune"):
        result = CliRunner().invoke(cli, ["snapshots", words, *settings])
        assert result.exit_code == 0, result.stderr


def test_a_copy_of_the_folder_inside_it_is_left_alone(verb, url):
    """Somebody's backup has paths that look like those of other partitions."""
    store = open_store(url)
    for offset in (100, 200, 300):
        written(store, offset, [1], retention=Retention(keep=9))
    for found in store.list(IDENTITY.folder):
        for folder in ("backup", "7"):
            store.put(f"{IDENTITY.folder}/{folder}/{found.path.split('/')[-1]}", [store.get(found.path)])
    assert verb("verify")[0] == 0
    assert verb("prune", "--keep", "1", "--now")[1].startswith("2 snapshots")
    assert len(store.list(f"{IDENTITY.folder}/backup")) == len(store.list(f"{IDENTITY.folder}/7")) == 3


def test_a_manifest_in_the_folder_of_another_partition_is_named(verb, url):
    store = open_store(url)
    written(store)
    (found,) = store.list(IDENTITY.folder)
    store.put(found.path.replace("/3/", "/4/"), [store.get(found.path)])
    code, text = verb("verify")
    assert code == 3
    assert "it is of desk/ticks/manifests/3" in text


@pytest.mark.parametrize(("where", "what"), [("num_tokens", "x"), ("key", {}), ("names", 5)])
def test_a_forged_snapshot_is_listed_verified_and_pruned_with_its_line(verb, url, where, what):
    store = open_store(url)
    written(store)
    (found,) = store.list(IDENTITY.folder)
    doc = json.loads(bytes(store.get(found.path)))
    doc["sessions"][0][where] = what
    content = json.dumps(doc).encode()
    place, _, name = found.path.rpartition("/")
    stem = name.rpartition("-")[0].replace(f"{doc['created_ms']:013}", "9999999999999")
    store.put(f"{place}/{stem}-{digest_of(content)}.json", [content])
    assert f"its {where} is {what!r}, not" in verb("list")[1]
    code, text = verb("verify")
    assert (code, f"its {where} is {what!r}, not" in text) == (3, True)
    assert verb("prune", "--dry-run")[0] == 0
