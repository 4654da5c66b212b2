"""The embedded broker without a JVM: pins and downloads, ports, state files, words of failure."""

import hashlib
import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner

from streamproc.cli.broker import broker as broker_command
from streamproc.cli.broker import lines_reporter
from streamproc.errors import Refused, Unavailable, Usage
from streamproc.kafka.broker import Broker, require_free
from streamproc.kafka.jars import Interrupted, Jar, ensure_jars, kafka_version, parse_pin, pinned_jars
from streamproc.kafka.java import bundled_java, java_version
from streamproc.kafka.process import DETACH, command_line, is_running, spawn_detached, terminate
from streamproc.kafka.server import decisive_line, escaped, new_cluster_id, server_properties

CONTENT = bytes(range(256)) * 1000


def a_jar(content: bytes = CONTENT, artifact: str = "thing") -> Jar:
    return Jar("org.example", artifact, "1.0", len(content), hashlib.sha256(content).hexdigest())


class Repository:
    """Serves one content, in chunks, and breaks off where it is told to."""

    def __init__(self, content: bytes = CONTENT, break_at: Iterable[int] = (), resumes: bool = True) -> None:
        self.content, self.break_at, self.resumes = content, list(break_at), resumes
        self.offsets: list[int] = []

    def __call__(self, jar: Jar, offset: int) -> tuple[int, Iterable[bytes]]:
        self.offsets.append(offset)
        begin = offset if self.resumes else 0
        return begin, self.chunks(begin, self.break_at.pop(0) if self.break_at else len(self.content))

    def chunks(self, begin: int, end: int) -> Iterable[bytes]:
        for at in range(begin, end, 1000):
            yield self.content[at : min(at + 1000, end)]
        if end < len(self.content):
            raise Interrupted("the connection broke")


def silent(there: int, total: int) -> None:
    pass


def ensure(folder: Path, repository: Repository, *jars: Jar) -> list[Path]:
    return ensure_jars(folder, jars or (a_jar(),), repository, silent, pause=lambda seconds: None)


def test_every_pin_is_complete_and_they_are_one_kafka():
    pins = pinned_jars()
    assert kafka_version(pins).startswith("4.")
    assert {pin.version for pin in pins if pin.group == "org.apache.kafka"} == {kafka_version(pins)}
    assert all(len(pin.sha256) == 64 and pin.size > 0 for pin in pins)
    assert len({pin.filename for pin in pins}) == len(pins)


def test_the_embedded_kafka_is_none_that_loses_the_ends_of_transactions():
    """KAFKA-20734: an epoch aborted while a broker starts is left open, and the next one commits its answers."""
    assert not (4, 3) <= tuple(map(int, kafka_version(pinned_jars()).split("."))) <= (4, 4, 0)


def test_a_pin_is_a_coordinate_a_size_and_a_hash():
    assert parse_pin("org.example:thing:1.0 12 ab") == Jar("org.example", "thing", "1.0", 12, "ab")


def test_jars_are_fetched_once_and_progress_ends_at_the_total(tmp_path: Path):
    repository, shown = Repository(), []
    jars = (a_jar(), a_jar(artifact="other"))
    for _ in range(2):
        paths = ensure_jars(tmp_path, jars, repository, lambda there, total: shown.append((there, total)))
    assert [path.read_bytes() for path in paths] == [CONTENT, CONTENT]
    assert repository.offsets == [0, 0]
    assert shown[0] == (0, 2 * len(CONTENT))
    assert shown[-1] == (2 * len(CONTENT), 2 * len(CONTENT))
    assert shown == sorted(shown)


@pytest.mark.parametrize("resumes", [True, False])
def test_an_interrupted_download_is_continued(tmp_path: Path, resumes: bool):
    repository = Repository(break_at=[5000, 9000], resumes=resumes)
    [path] = ensure(tmp_path, repository)
    assert path.read_bytes() == CONTENT
    assert repository.offsets == [0, 5000, 9000]


def test_the_next_start_continues_a_download_that_was_given_up(tmp_path: Path):
    with pytest.raises(Unavailable, match="the next start continues"):
        ensure(tmp_path, Repository(break_at=[3000] * 9))
    repository = Repository()
    [path] = ensure(tmp_path, repository)
    assert path.read_bytes() == CONTENT
    assert repository.offsets == [3000]


def test_a_jar_that_is_not_the_pinned_one_is_refused_and_deleted(tmp_path: Path):
    with pytest.raises(Refused, match=r"thing-1.0.jar: .*sha256"):
        ensure(tmp_path, Repository(CONTENT[::-1]))
    assert not list(tmp_path.glob("thing*"))


def test_a_damaged_jar_is_fetched_again(tmp_path: Path):
    (tmp_path / "thing-1.0.jar").write_bytes(CONTENT[::-1])
    [path] = ensure(tmp_path, Repository())
    assert path.read_bytes() == CONTENT


def test_a_folder_that_cannot_hold_the_jars_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"file/jars: Not a directory"):
        ensure(tmp_path / "file" / "jars", Repository())


def test_the_java_of_the_broker_extra_is_new_enough():
    assert java_version(bundled_java()) >= 17


def test_a_java_that_does_not_say_its_version_is_none():
    assert java_version(shutil.which("true") or "/bin/true") == 0


def test_a_taken_port_is_refused_with_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(Refused, match=f"port {port} is taken: choose another with --port") as refusal:
            require_free(port)
    assert "\n" not in str(refusal.value)
    require_free(port)


def test_a_detached_process_has_its_own_session_and_is_known_by_its_marker(tmp_path: Path):
    code = "import sys; sys.stdin.read(); print('up', flush=True); import time; time.sleep(60)"
    pid = spawn_detached([sys.executable, "-c", code, "marker"], tmp_path / "out.log")
    assert is_running(pid, "marker")
    assert not is_running(pid, "another")
    assert os.getsid(pid) != os.getsid(0)
    assert terminate(pid, "marker", grace_s=10)
    assert not is_running(pid, "marker")


def test_a_detached_process_shows_its_own_command_line_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However long its shell looks for the command."""
    monkeypatch.setenv("PATH", "/nowhere:" * 5_000 + os.environ["PATH"])
    command = ["sleep", "60"]
    for _ in range(20):
        pid = spawn_detached(command, tmp_path / "out.log")
        assert command_line(pid).rstrip("\0").split("\0") == command
        assert terminate(pid, "60", grace_s=10)


@pytest.mark.parametrize("shell", [f"/bin/sh\0-c\0{DETACH}\0out.log\0sleep\0marker\0", ""], ids=["shell", "exec"])
def test_a_detached_process_is_not_known_by_its_shell_or_while_it_execs(tmp_path: Path, monkeypatch, shell: str):
    shown, looks = command_line, [shell] * 3
    monkeypatch.setattr("streamproc.kafka.process.command_line", lambda pid: looks.pop() if looks else shown(pid))
    pid = spawn_detached([sys.executable, "-c", "import time; time.sleep(60)", "marker"], tmp_path / "out.log")
    assert not looks
    assert terminate(pid, "marker", grace_s=10)


def test_a_command_that_does_not_exist_is_gone_at_once(tmp_path: Path):
    out = tmp_path / "out.log"
    assert not is_running(spawn_detached(["/nowhere/at/all", "marker"], out), "marker")
    assert "not found" in out.read_text() or "No such file" in out.read_text()


def test_a_process_that_ignores_the_polite_signal_is_killed(tmp_path: Path):
    out = tmp_path / "out.log"
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    pid = spawn_detached([sys.executable, "-c", code, "marker"], out)
    ready = threading.Event()
    while not ready.wait(0.01):
        if "deaf" in out.read_text():
            ready.set()
    assert not terminate(pid, "marker", grace_s=0.2)
    assert not is_running(pid, "marker")


@pytest.mark.parametrize("state", [{"pid": os.getpid(), "port": 1, "version": "4", "started_s": 0.0}, {"pid": 1}, []])
def test_a_stale_or_damaged_state_file_means_stopped(tmp_path: Path, state: object):
    (tmp_path / "broker.json").write_text(json.dumps(state))
    broker = Broker(tmp_path)
    assert broker.status() is None
    assert broker.stop() is None


def test_a_data_folder_that_cannot_be_written_is_named_in_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="Not a directory; try another --data-dir"):
        Broker(tmp_path / "file" / "data").start()


def test_a_data_folder_with_a_comma_is_refused_before_kafka_splits_it():
    with pytest.raises(Usage, match="no comma"):
        server_properties("127.0.0.1:1", "127.0.0.1:2", Path("/a,b"))


def test_the_server_listens_on_this_machine_only():
    lines = server_properties("127.0.0.1:1", "127.0.0.1:2", Path("/data")).splitlines()
    assert "listeners=PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2" in lines
    assert "log.dirs=/data" in lines


def test_a_folder_name_survives_a_java_properties_file():
    assert escaped("/dé\\ß🙂") == "/d\\u00e9\\\\\\u00df\\ud83d\\ude42"


def test_a_cluster_id_never_looks_like_a_flag():
    assert not any(new_cluster_id().startswith("-") for _ in range(300))


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("Unrecognized VM option 'Nope'\nError: A fatal exception has occurred.", "Unrecognized VM option 'Nope'"),
        (
            "[1] INFO a\njava.io.IOException: outer\n\tat x\nCaused by: a.BindException: in use\n",
            "a.BindException: in use",
        ),
        ("[1] ERROR no space (x)\n[2] INFO bye\n", "[1] ERROR no space (x)"),
        ("[1] INFO starting\n", "[1] INFO starting"),
        ("", "it said nothing"),
    ],
)
def test_the_decisive_line_of_a_log_says_why(log: str, line: str):
    assert decisive_line(log) == line


def test_status_of_a_stopped_broker_exits_3_with_valid_json(tmp_path: Path):
    done = CliRunner().invoke(broker_command, ["status", "--data-dir", str(tmp_path), "--json"])
    assert done.exit_code == 3
    assert json.loads(done.stdout) == {
        "_command": "status",
        "_version": 1,
        "running": False,
        "data_dir": str(tmp_path),
    }


def test_stopping_a_stopped_broker_says_so_and_makes_nothing(tmp_path: Path):
    done = CliRunner().invoke(broker_command, ["stop", "--data-dir", str(tmp_path / "none")])
    assert (done.exit_code, done.stdout) == (0, f"no broker runs in {tmp_path / 'none'}\n")
    assert not (tmp_path / "none").exists()


def test_without_a_terminal_a_download_says_its_size_first_and_then_a_line_every_ten_seconds(
    capsys: pytest.CaptureFixture[str],
):
    now = [0.0]
    report = lines_reporter(clock=lambda: now[0])
    for now[0], there in ((0.0, 0), (4.0, 10), (11.0, 20), (20.0, 30), (20.5, 45)):
        report(there * 10**6, 45 * 10**6)
    assert capsys.readouterr().err.splitlines() == [
        "downloading Apache Kafka, once: 45 MB",
        "downloading Apache Kafka: 20 of 45 MB",
        "downloading Apache Kafka: 45 of 45 MB",
    ]
