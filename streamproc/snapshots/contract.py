"""What every store does; the rest of the code knows no more of it."""

from collections.abc import Sequence
from typing import NamedTuple, NoReturn, Protocol

from streamproc.errors import Unavailable

Buffer = bytes | memoryview
TAKES = "a folder, file:///path, s3://bucket/prefix or memory://"


class Found(NamedTuple):
    """A file in a store. `modified_s`: by the store's own clock, Unix time."""

    path: str
    num_bytes: int
    modified_s: float


class Store(Protocol):
    """Files by path, parts separated by '/'. Every method raises Unavailable with one line if the store does not do
    as it should; a file that is not there is None, or nothing to delete.
    """

    url: str

    @property
    def is_remote(self) -> bool:
        """Whether bytes cross a network."""
        ...

    def put(self, path: str, parts: Sequence[Buffer]) -> None:
        """A file of these parts, in the place of what was there."""
        ...

    def put_if_absent(self, path: str, parts: Sequence[Buffer]) -> bool:
        """A file of these parts, unless there is one already -> whether it was written."""
        ...

    def get(self, path: str) -> memoryview | None: ...

    def get_range(self, path: str, start: int, num_bytes: int) -> memoryview | None:
        """These bytes of a file, fewer where it ends before."""
        ...

    def list(self, folder: str) -> "list[Found]":
        """All files under a folder, by path."""
        ...

    def delete(self, path: str) -> None: ...

    def sweep(self, folder: str) -> None:
        """Delete what writers that were killed have left under a folder."""
        ...


def refuse(url: str, deed: str, path: str, reason: str) -> NoReturn:
    """The one line of every failing store."""
    raise Unavailable(f"snapshots: cannot {deed} {path} in {url}: {reason}") from None
