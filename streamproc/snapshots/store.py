"""Opens the place where snapshots lie: a folder's path, file:///path, s3://bucket/prefix (gs://, az:// and what else
obstore knows), or memory:// for trying things out.
"""

import urllib.parse
from pathlib import Path

from streamproc.errors import Usage
from streamproc.snapshots.contract import TAKES, Store
from streamproc.snapshots.files import FileStore
from streamproc.values import without_account

REMOTE = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss")


def open_store(url: str) -> Store:
    """The store of this URL. Raises Usage where it is none; whether it answers is seen at the first use."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        raise Usage(f"snapshots.url = {without_account(url)!r}: not a URL; use {TAKES}") from None
    if parts.scheme == "memory" or parts.scheme in REMOTE:
        from streamproc.snapshots.objects import ObjectStore  # noqa: PLC0415 - a folder needs no client of object stores

        return ObjectStore(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.strip("/"):
        return FileStore(Path(urllib.parse.unquote(parts.path)))
    if parts.scheme or not url.strip() or "\0" in url:
        raise Usage(f"snapshots.url = {without_account(url)!r}: no store that can be opened; use {TAKES}")
    try:
        return FileStore(Path(url).expanduser())
    except (RuntimeError, OSError):  # nobody has that name; a folder above is closed
        raise Usage(f"snapshots.url = {url!r}: no folder that can be opened; use {TAKES}") from None
