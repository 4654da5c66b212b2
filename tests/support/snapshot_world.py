"""What the tests of snapshots share: an identity, blocks whose bytes follow from their names, and stores that fail."""

import hashlib
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace

from streamproc.errors import Unavailable
from streamproc.snapshots.contract import Found
from streamproc.snapshots.manifest import Identity, SessionPart
from streamproc.snapshots.restore import SnapshotReader
from streamproc.snapshots.writer import SnapshotWriter

BLOCK_BYTES = 4096
IDENTITY = Identity(fingerprint="f" * 64, group="desk", topic="ticks", topic_id="Zk9", partition=3)
PATIENT_S = 30
HOST = "127.0.0.1"


def name(number):
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def data(block_name, num_bytes=BLOCK_BYTES):
    """The bytes of a block: half of them noise, so that compression does something, but not much."""
    noise = hashlib.shake_128(block_name).digest(num_bytes // 2)
    return bytes(num_bytes - len(noise)) + noise


def blocks(*numbers, num_bytes=BLOCK_BYTES):
    return [(name(number), data(name(number), num_bytes)) for number in numbers]


def session(*numbers, key="BTC"):
    return SessionPart(key, 7, 3, len(numbers) * 16 + 5, tuple(name(number) for number in numbers))


def other(**changes):
    return replace(IDENTITY, **changes)


class Said(list):
    """Collects lines that are said."""

    def __call__(self, line):
        assert "\n" not in line
        self.append(line)


def written(store, offset=100, numbers=range(10), identity=IDENTITY, **given):
    """Store these blocks with a manifest through a writer of its own."""
    said = Said()
    writer = SnapshotWriter(store, said, **given)
    writer.add(identity, blocks(*numbers))
    writer.publish(identity, offset, [session(*numbers)])
    assert writer.wait(PATIENT_S)
    writer.close()
    assert said == []


def restored(store, numbers=range(10), max_offset=10**9, identity=IDENTITY):
    """-> (numbers of the blocks that came back, what was said); whatever comes back is right."""
    said = Said()
    reader = SnapshotReader(store, said)
    manifest = reader.find(identity, max_offset)
    found = reader.open(manifest).fetch(name(number) for number in numbers) if manifest else {}
    reader.close()
    assert all(bytes(content) == data(block_name) for block_name, content in found.items())
    return [number for number in numbers if name(number) in found], said


class Wrapped:
    """A store in front of another."""

    def __init__(self, store):
        self.store = store
        self.url = store.url
        self.is_remote = store.is_remote

    def step(self, deed, path):
        """Called before each method does its work."""

    def put(self, path, parts):
        self.step("put", path)
        self.store.put(path, parts)

    def put_if_absent(self, path, parts):
        self.step("put", path)
        return self.store.put_if_absent(path, parts)

    def get(self, path):
        self.step("get", path)
        return self.store.get(path)

    def get_range(self, path, start, num_bytes):
        self.step("get", path)
        return self.store.get_range(path, start, num_bytes)

    def list(self, folder):
        self.step("list", folder)
        return self.store.list(folder)

    def delete(self, path):
        self.step("delete", path)
        self.store.delete(path)

    def sweep(self, folder):
        self.store.sweep(folder)


class Failing(Wrapped):
    """Refuses these deeds while it is told to; counts them."""

    def __init__(self, store, deeds=("put",)):
        super().__init__(store)
        self.deeds = deeds
        self.is_failing = True
        self.num_refused = 0

    def step(self, deed, path):
        if self.is_failing and deed in self.deeds:
            self.num_refused += 1
            raise Unavailable(f"snapshots: cannot {deed} {path}: no network")


class DictStore:
    """Files in a dict, with a clock of its own."""

    is_remote = False
    url = "dict"

    def __init__(self, clock=time.time):
        self.clock = clock
        self.files = {}

    def put(self, path, parts):
        self.files[path] = (b"".join(parts), self.clock())

    def put_if_absent(self, path, parts):
        if path in self.files:
            return False
        self.put(path, parts)
        return True

    def get(self, path):
        return memoryview(self.files[path][0]) if path in self.files else None

    def get_range(self, path, start, num_bytes):
        content = self.get(path)
        return None if content is None else content[start : start + num_bytes]

    def list(self, folder):
        return sorted(
            Found(path, len(content), modified_s)
            for path, (content, modified_s) in self.files.items()
            if path.startswith(f"{folder}/")
        )

    def delete(self, path):
        self.files.pop(path, None)

    def sweep(self, folder):
        """Nothing is ever half written."""


class S3Server:
    """An S3 that answers on loopback: moto's server, a process of its own."""

    def __init__(self):
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.address = f"{HOST}:{probe.getsockname()[1]}"
        self.process = None

    def start(self):
        port = self.address.rpartition(":")[2]
        command = [sys.executable, "-P", "-m", "moto.server", "-H", HOST, "-p", port]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline_s = time.monotonic() + PATIENT_S
        while time.monotonic() < deadline_s:
            try:
                socket.create_connection((HOST, int(port)), 1).close()
                return self
            except OSError:
                time.sleep(0.05)
        raise TimeoutError("no S3 server came up")

    def stop(self):
        self.process.kill()
        self.process.wait()

    def bucket(self, bucket):
        """Make a bucket -> the URL of a folder in it."""
        request = urllib.request.Request(f"http://{self.address}/{bucket}", method="PUT")
        urllib.request.urlopen(request).close()
        return f"s3://{bucket}/in/here?endpoint=http://{self.address}&region=us-east-1"


class Far(Wrapped):
    """A store that is so many seconds away; `read`: of which segments parts were asked for."""

    def __init__(self, store, seconds):
        super().__init__(store)
        self.seconds = seconds
        self.read: list[str] = []
        self._lock = threading.Lock()

    @property
    def num_read(self):
        return len(self.read)

    def step(self, deed, path):
        if deed == "get" and "/segments/" in path:
            with self._lock:
                self.read.append(path)
        time.sleep(self.seconds)
