"""What a snapshot says: the sessions of a partition at an offset, the names of their blocks, the segments these lie in.

    <group>/<topic>/manifests/<partition>/<offset>-<created_ms>-<tag>-<digest>.json
    <group>/<topic>/segments/<digest>.safetensors
    <group>/<topic>/condemned/<digest>            see collector.py
    <group>/<topic>/grace/<seconds>               see grace.py

`tag` stands for the model and the topic's id: manifests of others are told apart without being read. `digest` is the
start of the SHA-256 of the file: a manifest that was changed after it was written is known as damaged.
"""

import base64
import binascii
import hashlib
import re
import urllib.parse
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import orjson

FORMAT = "streamproc snapshot 1"
NAME_BYTES = 16
DIGEST_CHARS = 16  # of a manifest's path
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


def segment_digest(path: str) -> str:
    """The digest in the path of a segment or of its mark."""
    return path.rpartition("/")[2].removesuffix(".safetensors")


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
        if doc["format"] != FORMAT:
            raise Unknown(f"its format is {doc['format']!r}, this version reads {FORMAT!r}")
        return Manifest(
            Identity(**doc["identity"]),
            doc["offset"],
            doc["created_ms"],
            tuple(parse_session(session) for session in doc["sessions"]),
            tuple(SegmentRef(**segment) for segment in doc["segments"]),
        )
    except (ValueError, KeyError, TypeError, binascii.Error) as problem:
        raise Unknown(f"it cannot be read: {type(problem).__name__}: {problem}") from None


def parse_session(doc: dict[str, Any]) -> SessionPart:
    names = unpack(base64.b64decode(doc["names"], validate=True), NAME_BYTES)
    return SessionPart(doc["key"], doc["start_offset"], doc["records_before"], doc["num_tokens"], names)


def unpack(joined: bytes, size: int) -> tuple[bytes, ...]:
    """Equal pieces of what was joined."""
    return tuple(joined[start : start + size] for start in range(0, len(joined), size))


def digest_of(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGEST_CHARS]
