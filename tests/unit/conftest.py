import uuid

import pytest
from snapshot_world import S3Server


@pytest.fixture(scope="session")
def s3_server():
    server = S3Server().start()
    yield server
    server.stop()


@pytest.fixture
def s3_url(s3_server, monkeypatch):
    """The URL of a fresh bucket on a real S3 server; this machine's own account stays out of it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-test")
    return s3_server.bucket(f"b{uuid.uuid4().hex[:20]}")


@pytest.fixture(params=["file", "memory", "s3"])
def store(request, tmp_path):
    """A store of each kind."""
    from streamproc.snapshots.store import open_store

    urls = {"file": lambda: f"file://{tmp_path}/kept", "memory": lambda: "memory://"}
    return open_store(urls.get(request.param, lambda: request.getfixturevalue("s3_url"))())
