import hashlib
from dataclasses import asdict, replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshot_world import IDENTITY, blocks, name, other, session

from streamproc.snapshots.manifest import (
    Damaged,
    Identity,
    Manifest,
    SegmentRef,
    SessionPart,
    Unknown,
    as_folder,
    decode,
    digest_of,
    encode,
    from_folder,
    parse_name,
)
from streamproc.snapshots.segment import LENGTH, Header, Stored, checksum, opened, read_header, seal

MANIFEST = Manifest(IDENTITY, 120, 1_700_000_000_123, (session(1, 2, 3), session(1, 4, key="ÉTH")),
                    (SegmentRef("a" * 64, 1000, 200, 4),))  # fmt: skip

numbers = st.integers(0, 2**62)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
sessions = st.builds(SessionPart, texts, numbers, numbers, numbers,
                     st.lists(st.binary(min_size=16, max_size=16), max_size=5).map(tuple))  # fmt: skip
segments = st.builds(SegmentRef, st.binary(min_size=32, max_size=32).map(bytes.hex), st.integers(2**24, 2**40),
                     st.integers(3200, 2**24), st.integers(0, 100))  # fmt: skip
manifests = st.builds(Manifest, st.builds(Identity, texts, texts, texts, texts, st.integers(0, 10**6)), numbers,
                      st.integers(0, 10**13 - 1), st.lists(sessions, max_size=4).map(tuple),
                      st.lists(segments, max_size=4, unique_by=lambda segment: segment.sha256).map(tuple))  # fmt: skip


@given(manifests)
def test_a_manifest_is_read_as_it_was_written(manifest):
    path, content = encode(manifest)
    assert path.startswith(f"{manifest.identity.folder}/")
    found = parse_name(path)
    assert (found.offset, found.created_ms, found.tag) == (manifest.offset, manifest.created_ms, manifest.identity.tag)
    assert decode(found, content) == manifest


def test_manifests_of_a_partition_are_in_the_order_of_their_offsets():
    paths = [encode(replace(MANIFEST, offset=offset))[0] for offset in (9, 10, 99, 10**12)]
    assert sorted(paths) == paths
    assert paths[0].startswith("desk/ticks/manifests/3/00000000000000000009-1700000000123-")


@pytest.mark.parametrize("path", ["a/b.json", "a/1-2-x-y.json", f"{encode(MANIFEST)[0]}.part", "a/clock"])
def test_other_files_are_no_manifests(path):
    assert parse_name(path) is None


def test_every_flipped_bit_is_seen():
    path, content = encode(MANIFEST)
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 4
        with pytest.raises(Damaged, match="not what its name says"):
            decode(parse_name(path), bytes(damaged))


@pytest.mark.parametrize(
    ("doc", "reason"),
    [
        ({"format": "streamproc snapshot 9"}, "'streamproc snapshot 9', this version reads 'streamproc snapshot 1'"),
        ({"format": 5}, "its format is 5, this"),
        ({}, "its format is None, this"),
        ([], "its format is None, this"),
    ],
)
def test_a_whole_manifest_of_another_format_is_not_called_damaged(doc, reason):
    content = orjson.dumps(doc)
    found = parse_name(encode(MANIFEST)[0])._replace(digest=digest_of(content))
    with pytest.raises(Unknown, match=reason):
        decode(found, content)


def forged(change):
    """A manifest that somebody has changed, under the name that fits it."""
    path, content = encode(MANIFEST)
    doc = orjson.loads(content)
    change(doc)
    content = orjson.dumps(doc)
    return parse_name(path)._replace(digest=digest_of(content)), content


SEGMENT = asdict(MANIFEST.segments[0])


@pytest.mark.parametrize(
    ("where", "what", "reason"),
    [
        (("offset",), "7", "its offset is '7', not a whole number"),
        (("offset",), True, "its offset is True, not a whole number"),
        (("offset",), -1, "its offset is -1, not 0 to"),
        (("created_ms",), None, "its created_ms is None"),
        (("identity",), [], "its identity is [], not an object"),
        (("identity", "fingerprint"), 5, "its fingerprint is 5, not a text"),
        (("identity", "topic_id"), {}, "its topic_id is {}, not a text"),
        (("identity", "partition"), "0", "its partition is '0', not a whole number"),
        (("sessions",), 5, "its sessions is 5, not a list"),
        (("sessions", 0), 5, "its names is None, not a text"),
        (("sessions", 0, "key"), {"a": 1}, "its key is {'a': 1}, not a text"),
        (("sessions", 0, "num_tokens"), "x", "its num_tokens is 'x', not a whole number"),
        (("sessions", 0, "num_tokens"), 1e300, "its num_tokens is 1e+300, not a whole number"),
        (("sessions", 0, "names"), 5, "its names is 5, not a text"),
        (("sessions", 0, "names"), "ÿ", "its names are not base64"),
        (("sessions", 0, "names"), "AAAA", "its names are not of 16 bytes each"),
        (("segments",), {}, "its segments is {}, not a list"),
        (("segments",), [SEGMENT] * 2, "it names a segment twice"),
        (("segments",), [SEGMENT] * 20_000, "it names 20000 segments; at most 16384 are read"),
        (("segments", 0), None, "its sha256 is None, not a text"),
        (("segments", 0, "sha256"), [1], "its sha256 is [1], not a text"),
        (("segments", 0, "sha256"), "a\0b", r"a segment's sha256 is 'a\x00b', not 64 hex digits"),
        (("segments", 0, "sha256"), "../../etc/passwd", "not 64 hex digits"),
        (("segments", 0, "sha256"), "A" * 64, "not 64 hex digits"),
        (("segments", 0, "header_bytes"), 10**15, "its header_bytes is 1000000000000000, not 0 to 1000"),
        (("segments", 0, "header_bytes"), 2**64 - 1, "its header_bytes is 18446744073709551615, not 0 to 1000"),
        (("segments", 0, "header_bytes"), "x", "its header_bytes is 'x', not a whole number"),
        (("segments", 0, "num_bytes"), 2**63, "its num_bytes is 9223372036854775808, not 0 to 1099511627776"),
        (("segments", 0, "num_blocks"), 10**9, "its num_blocks is 1000000000, not 0 to 6"),
    ],
)
def test_whatever_a_forged_manifest_says_it_is_damaged_in_one_line(where, what, reason):
    def change(doc):
        *above, last = where
        for step in above:
            doc = doc[step]
        doc[last] = what

    with pytest.raises(Damaged) as caught:
        decode(*forged(change))
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


def resealed(change, compressed=False, **said):
    """A segment of two blocks whose header somebody has changed, and a reference that fits it but for what is said."""
    segment, parts = seal("model", blocks(1, 2), compressed)
    doc = orjson.loads(parts[0][8:])
    change(doc["__metadata__"])
    header = LENGTH.pack(len(text := orjson.dumps(doc))) + text
    num_bytes = len(header) + segment.num_bytes - segment.header_bytes
    ref = SegmentRef(hashlib.sha256(header).hexdigest(), num_bytes, len(header), segment.num_blocks)
    return replace(ref, **said), header, parts[1:]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda doc: doc.pop("fingerprint"), "its fingerprint is None, not a text"),
        (lambda doc: doc.update(fingerprint=7), "its fingerprint is 7, not a text"),
        (lambda doc: doc.update(names=7), "its names is 7, not a text"),
        (lambda doc: doc.update(names="A"), "its header cannot be read"),
        (lambda doc: doc.update(names=""), "it has not as many blocks as it says, 2"),
        (lambda doc: doc.update(block_bytes="x"), "its header cannot be read: ValueError"),
        (lambda doc: doc.update(block_bytes="-5"), "its blocks are of a size that cannot be, -5 bytes"),
        (lambda doc: doc.update(block_bytes="0"), "its blocks are of a size that cannot be, 0 bytes"),
        (lambda doc: doc.update(block_bytes=str(10**14)), "its blocks are of a size that cannot be"),
        (lambda doc: doc.update(block_bytes="2048"), "its blocks are 4096 bytes, not 8192"),
        (lambda doc: doc.update(sizes="4096 9999"), "its blocks are of a size that cannot be"),
        (lambda doc: doc.update(sizes="4096"), "it has not as many blocks as it says, 2"),
        (lambda doc: doc.update(format="\x1b[2J"), r"its format is '\x1b[2J', this version reads"),
    ],
)
def test_whatever_a_forged_header_says_it_is_damaged_in_one_line(change, reason):
    ref, header, _ = resealed(change)
    with pytest.raises(Damaged) as caught:
        read_header(ref, header)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_block_that_unpacks_to_another_size_than_its_header_says_is_damaged_without_the_memory_for_it():
    ref, header_bytes, pieces = resealed(lambda doc: doc.update(block_bytes=str(2**27)), compressed=True)
    header = read_header(ref, header_bytes)
    assert opened(header, header.blocks[0], memoryview(pieces[0])) is None


@pytest.mark.parametrize("junk", [b"junk", b""])
def test_a_block_that_does_not_unpack_is_damaged(junk):
    stored = memoryview(junk)
    block = Stored(name(1), 0, len(junk), checksum(name(1), stored))
    assert opened(Header("model", 4096, (block,)), block, stored) is None


def test_the_tag_tells_models_and_topics_apart_and_nothing_else():
    assert IDENTITY.tag == other(partition=9, group="g").tag
    assert len({each.tag for each in (IDENTITY, other(fingerprint="x"), other(topic_id="y"))}) == 3


@given(texts)
def test_no_name_of_a_group_leaves_its_folder(text):
    part = as_folder(text)
    assert "/" not in part
    assert part not in (".", "..")
    assert from_folder(part) == text


@pytest.mark.parametrize("compressed", [False, True])
def test_a_segment_is_a_file_that_safetensors_reads(tmp_path, compressed):
    from safetensors import safe_open

    given = blocks(1, 2, 3)
    segment, parts = seal("model", given, compressed)
    (tmp_path / "x").write_bytes(b"".join(parts))
    assert (tmp_path / "x").stat().st_size == segment.num_bytes
    with safe_open(tmp_path / "x", "numpy") as file:
        assert file.metadata()["fingerprint"] == "model"
        tensor = file.get_tensor("blocks")
    if not compressed:
        assert [row.tobytes() for row in tensor] == [data for _, data in given]


@pytest.mark.parametrize("compressed", [False, True])
def test_blocks_come_back_from_a_segment(compressed):
    given = [*blocks(1, 2), (name(3), b"\xa5" * 4096)]
    segment, parts = seal("model", given, compressed)
    content = memoryview(b"".join(parts))
    header = read_header(segment, content[: segment.header_bytes])
    assert (header.fingerprint, header.block_bytes, len(header.blocks)) == ("model", 4096, 3)
    found = [(block.name, opened(header, block, content[block.start : block.end])) for block in header.blocks]
    assert [(block_name, bytes(data)) for block_name, data in found] == given
    assert segment.num_bytes < 3 * 4096 if compressed else segment.num_bytes > 3 * 4096


def test_what_compression_does_not_make_smaller_is_stored_as_it_is():
    import os

    given = [(name(1), os.urandom(4096))]
    segment, parts = seal("model", given, compressed=True)
    content = memoryview(b"".join(parts))
    header = read_header(segment, content[: segment.header_bytes])
    assert bytes(opened(header, header.blocks[0], content[segment.header_bytes :])) == given[0][1]


@pytest.mark.parametrize("compressed", [False, True])
def test_every_flipped_byte_of_a_segment_is_seen_and_costs_its_block_alone(compressed):
    given = blocks(1, 2)
    segment, parts = seal("model", given, compressed)
    whole = b"".join(parts)
    header = read_header(segment, whole[: segment.header_bytes])
    for place in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        if place < segment.header_bytes:
            with pytest.raises(Damaged):
                read_header(segment, bytes(damaged[: segment.header_bytes]))
        else:
            assert whole_blocks(header, damaged) == [block.name for block in header.blocks
                                                     if not block.start <= place < block.end]  # fmt: skip


def whole_blocks(header: Header, content):
    view = memoryview(content)
    return [block.name for block in header.blocks if opened(header, block, view[block.start : block.end]) is not None]


def test_the_same_blocks_are_never_a_segment_of_the_same_path():
    assert seal("model", blocks(1), False)[0].sha256 != seal("model", blocks(1), False)[0].sha256
