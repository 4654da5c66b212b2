"""The jars of the embedded Kafka: pinned by coordinate, size and sha256, fetched once, verified at every start.

`jars.lock` names them; where they are fetched from is jgo's business (Maven Central, or the repositories of the user's
jgo settings). A file becomes a jar only when it is whole: what an interrupted download left behind lies beside it as
`NAME.part` and is continued.
"""

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from streamproc.errors import Refused, StreamprocError, Unavailable
from streamproc.kafka.java import INSTALL

ATTEMPTS = 4
CHUNK_BYTES = 64 * 1024
TIMEOUT_S = 30
OK, PARTIAL = 200, 206


class Jar(NamedTuple):
    """One pinned file."""

    group: str
    artifact: str
    version: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


class Interrupted(StreamprocError):
    """A download stopped early; it can be continued."""


# (jar, offset) -> the offset at which the bytes really begin, and the bytes. Raises Interrupted.
Fetch = Callable[[Jar, int], tuple[int, Iterable[bytes]]]
# (bytes there, bytes in all): called at the start of a download and for every chunk; never if there is nothing to do
Report = Callable[[int, int], None]
Pause = Callable[[float], None]


def pinned_jars() -> tuple[Jar, ...]:
    """What `jars.lock` says."""
    lines = files("streamproc.kafka").joinpath("jars.lock").read_text().splitlines()
    return tuple(parse_pin(line) for line in lines if line and not line.startswith("#"))


def parse_pin(line: str) -> Jar:
    """`group:artifact:version size sha256`"""
    coordinate, size, sha256 = line.split()
    group, artifact, version = coordinate.split(":")
    return Jar(group, artifact, version, int(size), sha256)


def kafka_version(jars: Iterable[Jar]) -> str:
    """The version of the broker itself: "4.2.1"."""
    return next(jar.version for jar in jars if jar.artifact.startswith("kafka_"))


def ensure_jars(
    folder: Path, jars: tuple[Jar, ...], fetch: Fetch, report: Report, pause: Pause = time.sleep
) -> list[Path]:
    """Paths of all jars, whole and verified; only what is missing is fetched.

    Raises Unavailable where one cannot be had, Refused where one is not what was pinned.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "download.lock"):
            download_missing(folder, jars, fetch, report, pause)
    except OSError as problem:
        raise Unavailable(f"cannot keep Kafka's jars in {folder}: {problem.strerror or problem}") from None
    return [folder / jar.filename for jar in jars]


def download_missing(folder: Path, jars: tuple[Jar, ...], fetch: Fetch, report: Report, pause: Pause) -> None:
    missing = [jar for jar in jars if not is_whole(folder / jar.filename, jar)]
    progress = Progress(report, there=0, total=sum(jar.size for jar in missing))
    if missing:
        progress.show(0)
    for jar in missing:
        download(folder, jar, fetch, progress, pause)
        progress.there += jar.size


class Progress:
    """Bytes of a download so far, over all files."""

    def __init__(self, report: Report, there: int, total: int) -> None:
        self.report, self.there, self.total = report, there, total

    def show(self, of_this_file: int) -> None:
        self.report(self.there + of_this_file, self.total)


def download(folder: Path, jar: Jar, fetch: Fetch, progress: Progress, pause: Pause) -> None:
    """One jar into the folder, continued where an earlier attempt stopped."""
    part = folder / f"{jar.filename}.part"
    for attempt in range(ATTEMPTS):
        try:
            append(part, jar, fetch, progress)
        except Interrupted as problem:
            if attempt == ATTEMPTS - 1:
                raise Unavailable(f"{jar.filename}: {problem}; the next start continues the download") from None
            pause(0.5 * 2**attempt)
        else:
            break
    if not is_whole(part, jar):
        part.unlink()
        raise Refused(f"{jar.filename}: what was downloaded is not what is pinned (sha256 differs); it was deleted")
    part.replace(folder / jar.filename)


def append(part: Path, jar: Jar, fetch: Fetch, progress: Progress) -> None:
    """Fetch what is missing of one file. Raises Interrupted where the end did not come."""
    there = part.stat().st_size if part.exists() else 0
    if there >= jar.size:
        return
    begin, chunks = fetch(jar, there)
    with part.open("r+b" if part.exists() else "wb") as out:
        out.seek(begin)
        out.truncate()
        for chunk in chunks:
            out.write(chunk)
            progress.show(out.tell())
        if out.tell() < jar.size:
            raise Interrupted(f"the connection ended after {out.tell()} of {jar.size} bytes")


def is_whole(path: Path, jar: Jar) -> bool:
    """Whether the file is there and is exactly the pinned one."""
    if not path.is_file() or path.stat().st_size != jar.size:
        return False
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest() == jar.sha256


def maven_fetch() -> Fetch:
    """Fetch by jgo's access to Maven repositories. Raises Unavailable where jgo is not installed."""
    try:
        from jgo.config import GlobalSettings  # noqa: PLC0415 - an extra that not everybody has
        from jgo.maven import MavenContext  # noqa: PLC0415
        from jgo.util import http  # noqa: PLC0415
        from requests import RequestException  # noqa: PLC0415
    except ModuleNotFoundError:
        raise Unavailable(f"the embedded Kafka must be downloaded first, and jgo does that: {INSTALL}") from None
    maven = MavenContext(remote_repos=GlobalSettings.load().repositories or None)

    def chunks_of(response: "http.requests.Response") -> Iterator[bytes]:
        try:
            yield from response.iter_content(CHUNK_BYTES)
        except RequestException as problem:
            raise Interrupted(str(problem)) from None

    def fetch(jar: Jar, offset: int) -> tuple[int, Iterable[bytes]]:
        folder = maven.project(jar.group, jar.artifact).at_version(jar.version).path_prefix.as_posix()
        answers = []
        for name, address in maven.remote_repos.items():
            url = f"{address}/{folder}/{jar.filename}"
            try:
                response = http.get(url, stream=True, timeout=TIMEOUT_S, headers={"Range": f"bytes={offset}-"})
            except RequestException as problem:
                answers.append(f"{name}: {type(problem).__name__}")
                continue
            if response.status_code in (OK, PARTIAL):
                return offset if response.status_code == PARTIAL else 0, chunks_of(response)
            answers.append(f"{name}: HTTP {response.status_code}")
        raise Interrupted(f"no repository has it ({', '.join(answers)})")

    return fetch


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; other processes wait."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
