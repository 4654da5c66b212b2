from dataclasses import replace

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
from streamproc.snapshots.segment import Header, opened, read_header, seal

MANIFEST = Manifest(IDENTITY, 120, 1_700_000_000_123, (session(1, 2, 3), session(1, 4, key="ÉTH")),
                    (SegmentRef("a" * 64, 1000, 200, 4),))  # fmt: skip

numbers = st.integers(0, 2**62)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
sessions = st.builds(SessionPart, texts, numbers, numbers, numbers,
                     st.lists(st.binary(min_size=16, max_size=16), max_size=5).map(tuple))  # fmt: skip
segments = st.builds(SegmentRef, texts, numbers, numbers, numbers)
manifests = st.builds(Manifest, st.builds(Identity, texts, texts, texts, texts, st.integers(0, 10**6)), numbers,
                      st.integers(0, 10**13 - 1), st.lists(sessions, max_size=4).map(tuple),
                      st.lists(segments, max_size=4).map(tuple))  # fmt: skip


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
        ({"format": "streamproc snapshot 1"}, "cannot be read: KeyError"),
        ([], "cannot be read: TypeError"),
    ],
)
def test_a_whole_manifest_of_another_format_is_not_called_damaged(doc, reason):
    content = orjson.dumps(doc)
    found = parse_name(encode(MANIFEST)[0])._replace(digest=digest_of(content))
    with pytest.raises(Unknown, match=reason):
        decode(found, content)


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
