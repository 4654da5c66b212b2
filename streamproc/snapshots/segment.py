"""A segment: blocks in one file, as safetensors. Written once, never changed.

    8 bytes     length of the header, little endian
    header      JSON: the tensor `blocks`, and in `__metadata__` the names, a checksum a block, the model's fingerprint
    blocks      uint8 [number of blocks, bytes of a block]; compressed: uint8 [bytes of all], one block after the other

The digest of a segment, which is its file name, is the SHA-256 of length and header: the header has the checksum of
every block, so it stands for all bytes, and a block read alone is checked at the cost of one pass over that block. A
checksum covers the block's name and its bytes as they are stored. Every segment has a random part in its header: what
was once deleted cannot come back under the same path (see collector.py).

Compression is zstd, level 1, a block at a time. Measured on the KV of market-tiny over a feed (bfloat16, 196 KiB a
piece, one core): 1.30x at 1000 MB/s; with the bytes shuffled 1.43x at 390 MB/s, with only the upper bytes compressed
1.49x at 500 MB/s. It pays where bytes cross a network, and is left out for files of this machine, where it would halve
the speed of a restore.
"""

import base64
import binascii
import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import orjson

from streamproc.snapshots.contract import Buffer
from streamproc.snapshots.manifest import MOST_SHOWN, NAME_BYTES, Damaged, SegmentRef, field, unpack
from streamproc.values import printable

FORMAT = "streamproc segment 1"
CHECKSUM_BYTES = 16
LENGTH = struct.Struct("<Q")
ALIGN = 64  # bytes; where the blocks start
LEVEL = 1
MOST_BLOCK_BYTES = 2**28  # 256 tokens of a large model are a quarter of that

@dataclass(frozen=True, slots=True)
class Stored:
    """Where a block lies in its segment: bytes [start, end) of the file; `checksum` of its name and those bytes."""

    name: bytes
    start: int
    end: int
    checksum: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment says of itself. `blocks` in the order of the file; `block_bytes`: of a block, uncompressed."""

    fingerprint: str
    block_bytes: int
    blocks: tuple[Stored, ...]


def seal(fingerprint: str, blocks: Sequence[tuple[bytes, Buffer]], compressed: bool) -> tuple[SegmentRef, list[Buffer]]:
    """Blocks of one size as a segment: what to call it, and its content in pieces that are not joined."""
    block_bytes = len(blocks[0][1])
    assert all(len(data) == block_bytes for _, data in blocks), "blocks of several sizes in one segment"
    pieces = [compress(data) if compressed else data for _, data in blocks]
    sizes = [len(piece) for piece in pieces]
    metadata = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "block_bytes": str(block_bytes),
        "names": base64.b64encode(b"".join(name for name, _ in blocks)).decode(),
        "checksums": base64.b64encode(
            b"".join(checksum(name, piece) for (name, _), piece in zip(blocks, pieces, strict=True))
        ).decode(),
        "random": os.urandom(8).hex(),
    }
    if compressed:
        metadata["sizes"] = " ".join(map(str, sizes))
    shape = [sum(sizes)] if compressed else [len(blocks), block_bytes]
    header = header_of(metadata, shape, sum(sizes))
    ref = SegmentRef(hashlib.sha256(header).hexdigest(), len(header) + sum(sizes), len(header), len(blocks))
    return ref, [header, *pieces]


def header_of(metadata: dict[str, str], shape: list[int], num_bytes: int) -> bytes:
    """Length and header, padded with blanks as safetensors allows."""
    doc = {"__metadata__": metadata, "blocks": {"dtype": "U8", "shape": shape, "data_offsets": [0, num_bytes]}}
    text = orjson.dumps(doc)
    text += b" " * (-(LENGTH.size + len(text)) % ALIGN)
    return LENGTH.pack(len(text)) + text


def read_header(ref: SegmentRef, content: Buffer) -> Header:
    """The header in the first `ref.header_bytes` bytes of a segment. Raises Damaged."""
    if len(content) != ref.header_bytes:
        raise Damaged(f"it ends within its header, after {len(content)} bytes")
    if hashlib.sha256(content).hexdigest() != ref.sha256:
        raise Damaged("its header is not what its name says")
    try:
        metadata = field(orjson.loads(content[LENGTH.size :]), "__metadata__", dict)
        if (theirs := field(metadata, "format", str)) != FORMAT:
            raise Damaged(f"its format is {printable(repr(theirs), MOST_SHOWN)}, this version reads {FORMAT!r}")
        block_bytes = int(field(metadata, "block_bytes", str))
        names = unpack(base64.b64decode(field(metadata, "names", str)), NAME_BYTES)
        checksums = unpack(base64.b64decode(field(metadata, "checksums", str)), CHECKSUM_BYTES)
        is_compressed = "sizes" in metadata
        sizes = list(map(int, field(metadata, "sizes", str).split())) if is_compressed else [block_bytes] * len(names)
    except (ValueError, binascii.Error) as problem:
        raise Damaged(f"its header cannot be read: {type(problem).__name__}: {printable(str(problem), 100)}") from None
    if not 0 < block_bytes <= MOST_BLOCK_BYTES or not all(0 < size <= block_bytes for size in sizes):
        raise Damaged(f"its blocks are of a size that cannot be, {block_bytes} bytes")
    if not len(names) == len(checksums) == len(sizes) == ref.num_blocks:
        raise Damaged(f"it has not as many blocks as it says, {ref.num_blocks}")
    if ref.header_bytes + sum(sizes) != ref.num_bytes:
        raise Damaged(f"its blocks are {sum(sizes)} bytes, not {ref.num_bytes - ref.header_bytes}")
    places = pairwise(accumulate(sizes, initial=ref.header_bytes))
    blocks = tuple(Stored(name, *place, check) for name, place, check in zip(names, places, checksums, strict=True))
    return Header(field(metadata, "fingerprint", str), block_bytes, blocks)


def opened(header: Header, block: Stored, stored: memoryview) -> memoryview | None:
    """The bytes of a block, given those of the file; None: damaged."""
    if len(stored) != block.end - block.start or checksum(block.name, stored) != block.checksum:
        return None
    return stored if len(stored) == header.block_bytes else decompress(stored, header.block_bytes)


def checksum(name: bytes, stored: Buffer) -> bytes:
    digest = hashlib.sha256(name)
    digest.update(stored)
    return digest.digest()[:CHECKSUM_BYTES]


def compress(data: Buffer) -> Buffer:
    """A block compressed, or as it is where that is not smaller: its size tells which."""
    import zstandard  # noqa: PLC0415 - not needed for files of this machine

    packed: bytes = zstandard.ZstdCompressor(level=LEVEL).compress(data)
    return packed if len(packed) < len(data) else data


def decompress(packed: memoryview, num_bytes: int) -> memoryview | None:
    """None: not so many bytes. A frame says itself how much memory it takes: it is asked first."""
    import zstandard  # noqa: PLC0415 - not needed for files of this machine

    try:
        if zstandard.frame_content_size(packed) != num_bytes:
            return None
        return memoryview(zstandard.ZstdDecompressor().decompress(packed))
    except zstandard.ZstdError:
        return None
