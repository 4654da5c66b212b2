"""An object store, or memory, as a store of snapshots; through obstore (Rust's object_store).

Credentials, region and endpoint come from the usual variables of the cloud (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL ...);
endpoint and region may also stand in the URL: s3://bucket/prefix?endpoint=http://127.0.0.1:9000&region=eu-central-1
"""

import contextlib
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from streamproc.errors import Unavailable, Usage
from streamproc.snapshots.contract import TAKES, Buffer, Found, refuse
from streamproc.values import printable, without_account

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError
    from obstore.store import MemoryStore, from_url
except ModuleNotFoundError:
    raise Unavailable("snapshots: object stores need obstore, run: pip install 'streamproc[worker]'") from None

MOST_CHARS = 300  # of what the client says
COME_FROM = "come from the cloud's variables, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
# Where a client without credentials asks for those of the machine it is on
MACHINES = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
NO_BUCKET = "NoSuchBucket"  # what S3 calls it
OPTIONS = ("endpoint", "region")
REQUEST_TIMEOUT = timedelta(seconds=30)
# The writer tries again by itself, and says so; here only what passes at once.
RETRY: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}


class ObjectStore:
    """Bucket and prefix; what is put is there whole or not at all, and listed at once."""

    def __init__(self, url: str) -> None:
        self.url = without_account(url).partition("?")[0]
        self.is_remote = not url.startswith("memory:")
        self._store: Any = connect(url) if self.is_remote else MemoryStore()

    def put(self, path: str, parts: Sequence[Buffer]) -> None:
        with self._saying("write", path):
            obstore.put(self._store, path, joined(parts), use_multipart=False)

    def put_if_absent(self, path: str, parts: Sequence[Buffer]) -> bool:
        with self._saying("write", path):
            try:
                obstore.put(self._store, path, joined(parts), mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

    def get(self, path: str) -> memoryview | None:
        with self._saying("read", path):
            try:
                return memoryview(obstore.get(self._store, path).bytes())
            except FileNotFoundError as problem:
                check_bucket(problem)
                return None

    def get_range(self, path: str, start: int, num_bytes: int) -> memoryview | None:
        with self._saying("read", path):
            try:
                return memoryview(obstore.get_range(self._store, path, start=start, length=num_bytes))
            except FileNotFoundError as problem:
                check_bucket(problem)
                return None

    def list(self, folder: str) -> "list[Found]":
        with self._saying("list", folder):
            items = obstore.list(self._store, folder).collect()
            return sorted(Found(item["path"], item["size"], item["last_modified"].timestamp()) for item in items)

    def delete(self, path: str) -> None:
        with self._saying("delete", path), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, path)

    def sweep(self, folder: str) -> None:
        """An object that was not put whole is not there."""

    @contextlib.contextmanager
    def _saying(self, deed: str, path: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as problem:
            refuse(self.url, deed, path, first_line(problem))


def connect(url: str) -> Any:
    """A client of the bucket. Raises Usage."""
    if without_account(url) != url:
        place = without_account(url).partition("?")[0]
        raise Usage(f"snapshots.url = {place}: has a name or password in it; credentials {COME_FROM}")
    place, _, query = url.partition("?")
    given = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    if strange := [name for name in given if name not in OPTIONS]:
        raise Usage(f"snapshots.url = {place}: unknown option {strange[0]}; use {' or '.join(OPTIONS)}")
    if not urllib.parse.urlsplit(place).netloc:
        raise Usage(f"snapshots.url = {place}: no bucket; use {TAKES}")
    try:
        client: dict[str, Any] = {"allow_http": True, "timeout": REQUEST_TIMEOUT}
        opened: Callable[..., Any] = from_url
        return opened(place.rstrip("/"), client_options=client, retry_config=RETRY, **given)
    except (BaseError, ValueError) as problem:
        raise Usage(f"snapshots.url = {place}: {first_line(problem)}") from None


def check_bucket(problem: FileNotFoundError) -> None:
    """A file may be missing; where its bucket is, raises what the client said."""
    if NO_BUCKET in str(problem):
        raise problem


def joined(parts: Sequence[Buffer]) -> Buffer:
    return parts[0] if len(parts) == 1 else b"".join(parts)


def first_line(problem: BaseException) -> str:
    """What an error of the client says, without its inner workings."""
    said = str(problem)
    if any(machine in said for machine in MACHINES):
        return f"there are no credentials; they {COME_FROM}"
    if NO_BUCKET in said:
        return "there is no such bucket; create it first"
    text = without_account(said).partition("Debug source:")[0].partition("<?xml")[0]
    return printable(" ".join(text.split()).rstrip(" :"), MOST_CHARS)
