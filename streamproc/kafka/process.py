"""Processes that outlive the command that starts them, known by their pid and by a word of their command line.

A pid alone proves nothing: it may belong to somebody else by now. So a process is ours only while its command line
holds the marker that we started it with.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# The shell leaves at once, so the process is nobody's child here: it survives us, and we need not wait for it.
DETACH = '"$@" </dev/null >>"$0" 2>&1 & echo $!'

HAS_PROC = Path("/proc/self").exists()  # macOS has not: there `ps` tells
POLL_S = 0.05
EXEC_S, EXEC_POLL_S = 5.0, 0.001  # how long a command may take to replace the shell


def spawn_detached(command: Sequence[str], output: Path) -> int:
    """Start a command in a session of its own, in the folder of its output file -> its pid.

    By then its command line is its own, so it can be told by its marker, or it is gone already.
    """
    shell = subprocess.run(
        ["/bin/sh", "-c", DETACH, str(output), *command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=output.parent,
        env=os.environ | {"LC_ALL": "C.UTF-8"},  # Java reads file names by the locale
        start_new_session=True,
    )
    pid = int(shell.stdout)
    wait_until(lambda: has_left_shell(pid), EXEC_S, EXEC_POLL_S)
    return pid


def has_left_shell(pid: int) -> bool:
    """Whether a process that the shell started has a command line of its own, or none any more.

    Before exec it has the shell's, which names the marker too; while exec is under way it has none.
    """
    shown = command_line(pid)
    return is_gone(pid) if not shown else DETACH.replace(" ", "\0") not in shown.replace(" ", "\0")


def is_gone(pid: int) -> bool:
    """Whether there is no such process, or only what is left of it for its parent to see."""
    if not HAS_PROC:
        return ps(pid, "stat=")[:1] in ("", "Z")
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def is_running(pid: int, marker: str) -> bool:
    """Whether the process lives, is no zombie, and has the marker among its arguments."""
    return marker in command_line(pid).split("\0")


def command_line(pid: int) -> str:
    """The arguments of a process, each ended by a NUL; empty where there is none."""
    if not HAS_PROC:
        shown = ps(pid, "args=")
        return "" if shown.startswith("(") else shown.replace(" ", "\0")  # "(name)": it has none to show
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def ps(pid: int, column: str) -> str:
    """What `ps` says of a process; empty where there is none."""
    shown = subprocess.run(["ps", "-ww", "-o", column, "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()


def terminate(pid: int, marker: str, grace_s: float) -> bool:
    """SIGTERM, and SIGKILL after `grace_s` seconds -> whether it left by itself."""
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        if not is_running(pid, marker):
            return True
        os.kill(pid, number)
        if wait_until(lambda: not is_running(pid, marker), wait_s):
            return number == signal.SIGTERM
    return False


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = POLL_S) -> bool:
    """Whether the condition came true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(poll_s)
    return True
