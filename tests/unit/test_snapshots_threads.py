import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from streamproc.snapshots.threads import Threads

PATIENT_S = 30


def test_calls_go_on_at_once_up_to_so_many():
    threads, both = Threads(2, "test"), threading.Barrier(2)
    futures = [threads.submit(both.wait, PATIENT_S) for _ in range(4)]
    assert sorted(future.result(PATIENT_S) for future in futures) == [0, 0, 1, 1]
    assert list(threads.map(str, range(5))) == ["0", "1", "2", "3", "4"]
    threads.close()


def test_a_fault_is_for_whoever_waits():
    threads = Threads(1, "test")
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 1, 0).result(PATIENT_S)
    assert threads.submit(divmod, 7, 2).result(PATIENT_S) == (3, 1)
    threads.close()


def test_what_waits_when_it_is_closed_is_cancelled():
    threads, go = Threads(1, "test"), threading.Event()
    first, second = threads.submit(go.wait, PATIENT_S), threads.submit(go.wait, PATIENT_S)
    threads.close()
    threads.close()
    go.set()
    assert first.result(PATIENT_S)
    for future in (second, threads.submit(go.wait, PATIENT_S)):
        with pytest.raises(CancelledError):
            future.result(PATIENT_S)


def test_a_process_ends_while_a_store_does_not_answer():
    code = (
        "import threading; from streamproc.snapshots.threads import Threads\n"
        "Threads(1, 'test').submit(threading.Event().wait); print('done')"
    )
    ended = subprocess.run([sys.executable, "-P", "-c", code], timeout=PATIENT_S, capture_output=True, check=True)
    assert ended.stdout == b"done\n"
