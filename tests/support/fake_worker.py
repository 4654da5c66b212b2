"""A worker on fakes as a process of its own, to be killed: `python fake_worker.py streamproc.toml`."""

import sys
import threading
from pathlib import Path

from workers import ThreadWorker

from streamproc.settings import load_config

if __name__ == "__main__":
    with ThreadWorker(load_config(file=Path(sys.argv[1]))):
        print("in group", file=sys.stderr, flush=True)
        threading.Event().wait()
