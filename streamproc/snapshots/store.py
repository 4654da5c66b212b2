"""Opens the place where snapshots lie: a folder's path, file:///path, s3://bucket/prefix (gs://, az:// and what else
obstore knows), or memory:// for trying things out.
"""

import urllib.parse
from pathlib import Path

from streamproc.errors import Usage
from streamproc.snapshots.contract import TAKES, Store
from streamproc.snapshots.files import FileStore

REMOTE = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss")


def open_store(url: str) -> Store:
    """The store of this URL. Raises Usage where it is none; whether it answers is seen at the first use."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "memory" or parts.scheme in REMOTE:
        from streamproc.snapshots.objects import ObjectStore  # noqa: PLC0415 - a folder needs no client of object stores

        return ObjectStore(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.strip("/"):
        return FileStore(Path(urllib.parse.unquote(parts.path)))
    if parts.scheme or not url.strip():
        raise Usage(f"snapshots.url = {url!r}: no store that can be opened; use {TAKES}")
    return FileStore(Path(url).expanduser())
