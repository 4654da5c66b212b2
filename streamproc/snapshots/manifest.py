"""What a snapshot says: the sessions of a partition at an offset, the names of their blocks, the segments these lie in.

    <group>/<topic>/manifests/<partition>/<offset>-<created_ms>-<tag>-<digest>.json
    <group>/<topic>/segments/<digest>.safetensors
    <group>/<topic>/condemned/<digest>            see collector.py
    <group>/<topic>/grace/<seconds>               see grace.py

`tag` stands for the model and the topic's id: manifests of others are told apart without being read. `digest` is the
start of the SHA-256 of the file: a manifest that was changed after it was written is known as damaged. A digest can be
forged: what is read is held to types and bounds here, so that nobody further on need doubt it.
"""

import base64
import binascii
import hashlib
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import orjson

from streamproc.values import printable

Field = TypeVar("Field")

FORMAT = "streamproc snapshot 1"
KINDS: dict[type, str] = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}
MOST_SHOWN = 40  # characters of what is wrong
NAME_BYTES = 16
DIGEST_CHARS = 16  # of a manifest's path
MOST = 2**63 - 1  # of a count or an offset
MOST_SEGMENTS = 16_384  # of a manifest: half a terabyte in segments of the usual size
MOST_HEADER_BYTES = 16 * 2**20  # of a segment: a quarter of a million blocks
MOST_SEGMENT_BYTES = 2**40
BLOCK_HEADER_BYTES = 32  # a block takes more than that of a segment's header
DIGEST = re.compile("[0-9a-f]{64}")
FILE_NAME = re.compile(rf"(\d{{20}})-(\d{{13}})-([0-9a-f]{{8}})-([0-9a-f]{{{DIGEST_CHARS}}})\.json")


class Damaged(Exception):
    """These bytes are not what was written; the message says how that is known."""


class Unknown(Exception):
    """These bytes are whole, but of a format that this version does not read."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a snapshot is of. `fingerprint`: all that the bytes of a block depend on besides its tokens."""

    fingerprint: str
    group: str
    topic: str
    topic_id: str
    partition: int

    @property
    def scope(self) -> str:
        """The folder of a group and topic; inside it a block is stored once for all partitions of one model."""
        return f"{as_folder(self.group)}/{as_folder(self.topic)}"

    @property
    def folder(self) -> str:
        """Where the manifests of the partition lie, of whatever model."""
        return f"{manifests_folder(self.scope)}/{self.partition}"

    @property
    def tag(self) -> str:
        """8 characters for model and topic id."""
        return hashlib.sha256(f"{self.fingerprint}\n{self.topic_id}".encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class SessionPart:
    """One session at the offset: its generation's start offset, the records of the session before it, its tokens, and
    the names of its full blocks from the start on.
    """

    key: str
    start_offset: int
    records_before: int
    num_tokens: int
    names: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """A segment: its digest (of its header, which has those of its blocks), and sizes to read and check it by."""

    sha256: str
    num_bytes: int
    header_bytes: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A partition as of `offset`: the next record to be read."""

    identity: Identity
    offset: int
    created_ms: int
    sessions: tuple[SessionPart, ...]
    segments: tuple[SegmentRef, ...]

    @property
    def names(self) -> frozenset[bytes]:
        """The blocks of all sessions; not all of them need be stored."""
        return frozenset(name for session in self.sessions for name in session.names)


class ManifestName(NamedTuple):
    """What the path of a manifest says."""

    path: str
    offset: int
    created_ms: int
    tag: str
    digest: str


def as_folder(name: str) -> str:
    """A name as one part of a path: as it is, unless it has characters that mean something there."""
    quoted = urllib.parse.quote(name, safe="")
    return quoted if name.strip(".") else quoted.replace(".", "%2E")


def from_folder(part: str) -> str:
    return urllib.parse.unquote(part)


def manifests_folder(scope: str) -> str:
    return f"{scope}/manifests"


def segments_folder(scope: str) -> str:
    return f"{scope}/segments"


def condemned_folder(scope: str) -> str:
    return f"{scope}/condemned"


def segment_path(scope: str, sha256: str) -> str:
    return f"{segments_folder(scope)}/{sha256}.safetensors"


def segment_digest(scope: str, path: str) -> str | None:
    """The digest in the path of a segment; None: the path of none, so it is not ours."""
    digest = path.rpartition("/")[2].removesuffix(".safetensors")
    return digest if DIGEST.fullmatch(digest) and path == segment_path(scope, digest) else None


def mark_path(scope: str, sha256: str) -> str:
    """Of the mark beside a segment that is condemned; see collector.py."""
    return f"{condemned_folder(scope)}/{sha256}"


def mark_digest(scope: str, path: str) -> str | None:
    """The digest in the path of a mark; None: not ours."""
    digest = path.rpartition("/")[2]
    return digest if DIGEST.fullmatch(digest) and path == mark_path(scope, digest) else None


def parse_name(path: str) -> ManifestName | None:
    """What a path says, or None: not the path of a manifest."""
    found = FILE_NAME.fullmatch(path.rpartition("/")[2])
    return ManifestName(path, int(found[1]), int(found[2]), found[3], found[4]) if found else None


def encode(manifest: Manifest) -> tuple[str, bytes]:
    """A manifest as its path and content."""
    content = orjson.dumps(
        {
            "format": FORMAT,
            "identity": asdict(manifest.identity),
            "offset": manifest.offset,
            "created_ms": manifest.created_ms,
            "segments": [asdict(segment) for segment in manifest.segments],
            "sessions": [session_doc(session) for session in manifest.sessions],
        }
    )
    identity = manifest.identity
    name = f"{manifest.offset:020}-{manifest.created_ms:013}-{identity.tag}-{digest_of(content)}.json"
    return f"{identity.folder}/{name}", content


def session_doc(session: SessionPart) -> dict[str, Any]:
    assert all(len(name) == NAME_BYTES for name in session.names), "a block's name has another length"
    return {
        "key": session.key,
        "start_offset": session.start_offset,
        "records_before": session.records_before,
        "num_tokens": session.num_tokens,
        "names": base64.b64encode(b"".join(session.names)).decode(),
    }


def decode(name: ManifestName, content: bytes | memoryview) -> Manifest:
    """The manifest of this path and content. Raises Damaged or Unknown."""
    if digest_of(content) != name.digest:
        raise Damaged("its content is not what its name says")
    try:
        doc = orjson.loads(content)
    except ValueError:
        raise Unknown("it is not JSON") from None
    if not isinstance(doc, dict) or doc.get("format") != FORMAT:
        theirs = doc.get("format") if isinstance(doc, dict) else None
        raise Unknown(f"its format is {printable(repr(theirs), MOST_SHOWN)}, this version reads {FORMAT!r}")
    return Manifest(
        parse_identity(field(doc, "identity", dict)),
        count(doc, "offset"),
        count(doc, "created_ms"),
        tuple(parse_session(session) for session in field(doc, "sessions", list)),
        parse_segments(field(doc, "segments", list)),
    )


def parse_identity(doc: dict[str, Any]) -> Identity:
    fingerprint, group = field(doc, "fingerprint", str), field(doc, "group", str)
    topic, topic_id = field(doc, "topic", str), field(doc, "topic_id", str)
    return Identity(fingerprint, group, topic, topic_id, count(doc, "partition", 2**31 - 1))


def parse_session(doc: Any) -> SessionPart:
    try:
        joined = base64.b64decode(field(doc, "names", str), validate=True)
    except (ValueError, binascii.Error):
        raise Damaged("its names are not base64") from None
    if len(joined) % NAME_BYTES:
        raise Damaged(f"its names are not of {NAME_BYTES} bytes each")
    start, before, num_tokens = (count(doc, name) for name in ("start_offset", "records_before", "num_tokens"))
    return SessionPart(field(doc, "key", str), start, before, num_tokens, unpack(joined, NAME_BYTES))


def parse_segments(docs: Sequence[Any]) -> tuple[SegmentRef, ...]:
    if len(docs) > MOST_SEGMENTS:
        raise Damaged(f"it names {len(docs)} segments; at most {MOST_SEGMENTS} are read")
    segments = tuple(parse_segment(doc) for doc in docs)
    if len({segment.sha256 for segment in segments}) < len(segments):
        raise Damaged("it names a segment twice")
    return segments


def parse_segment(doc: Any) -> SegmentRef:
    sha256 = field(doc, "sha256", str)
    if not DIGEST.fullmatch(sha256):
        raise Damaged(f"a segment's sha256 is {printable(repr(sha256), MOST_SHOWN)}, not 64 hex digits")
    num_bytes = count(doc, "num_bytes", MOST_SEGMENT_BYTES)
    header_bytes = count(doc, "header_bytes", min(num_bytes, MOST_HEADER_BYTES))
    return SegmentRef(sha256, num_bytes, header_bytes, count(doc, "num_blocks", header_bytes // BLOCK_HEADER_BYTES))


def field(doc: Any, name: str, kind: type[Field]) -> Field:
    """A field of what was read. Raises Damaged where it is missing or of another kind."""
    value = doc.get(name) if isinstance(doc, dict) else None
    if type(value) is not kind:  # a bool is no number
        raise Damaged(f"its {name} is {printable(repr(value), MOST_SHOWN)}, not {KINDS[kind]}")
    return value


def count(doc: Any, name: str, most: int = MOST) -> int:
    """A whole number from 0 on. Raises Damaged."""
    number = field(doc, name, int)
    if not 0 <= number <= most:
        raise Damaged(f"its {name} is {number}, not 0 to {most}")
    return number


def unpack(joined: bytes, size: int) -> tuple[bytes, ...]:
    """Equal pieces of what was joined."""
    return tuple(joined[start : start + size] for start in range(0, len(joined), size))


def digest_of(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGEST_CHARS]
