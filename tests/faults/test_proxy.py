"""The proxy does to a connection what its weather says, and nothing else."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from harness.proxy import DROPPED, FAIR, HALF_OPEN, HELD, HOST, REFUSED, Lane, Proxy, Weather

from streamproc.kafka.broker import free_port

MOMENT_S = 0.3


class Echo:
    """Sends back what it gets, and remembers it."""

    def __init__(self) -> None:
        self._server = socket.create_server((HOST, 0))
        self.port = self._server.getsockname()[1]
        self.got = bytearray()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    self.got += data
                    connection.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    found = Proxy([Lane(free_port(), echo.port)]).start()
    yield found
    found.close()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, proxy.lanes[0].port), timeout=5) as connection:
        assert say(connection, b"hello") == b"hello"
        yield connection


def say(connection: socket.socket, data: bytes, timeout_s: float = 5.0) -> bytes:
    """Send, and read as much back; less where nothing comes any more."""
    connection.sendall(data)
    connection.settimeout(timeout_s)
    found = b""
    try:
        while len(found) < len(data):
            more = connection.recv(65536)
            if not more:
                break
            found += more
    except TimeoutError:
        pass
    return found


def connect_and_read(port: int) -> bytes:
    with socket.create_connection((HOST, port), timeout=5) as connection:
        return connection.recv(1)


def test_fair_weather_carries_everything_unchanged(client: socket.socket) -> None:
    data = bytes(range(256)) * 4_000
    threading.Thread(target=client.sendall, args=(data,), daemon=True).start()
    found = b""
    while len(found) < len(data):
        found += client.recv(65536)
    assert found == data


def test_latency_delays_both_ways(proxy: Proxy, client: socket.socket) -> None:
    proxy.lanes[0].weather = Weather(latency_s=0.2)
    started = time.monotonic()
    assert say(client, b"slow") == b"slow"
    assert time.monotonic() - started > 0.35


def test_bandwidth_is_limited(proxy: Proxy, client: socket.socket) -> None:
    proxy.lanes[0].weather = Weather(bytes_per_s=50_000)
    started = time.monotonic()
    assert say(client, b"x" * 20_000) == b"x" * 20_000
    assert time.monotonic() - started > 0.5


def test_what_is_held_comes_whole_once_it_is_let_go(proxy: Proxy, client: socket.socket) -> None:
    proxy.lanes[0].weather = HELD
    assert say(client, b"held", MOMENT_S) == b""
    proxy.clear()
    assert client.recv(100) == b"held"


def test_what_is_dropped_is_gone_and_its_connection_stays_dead(proxy: Proxy, client: socket.socket, echo: Echo) -> None:
    proxy.lanes[0].weather = DROPPED
    assert say(client, b"lost", MOMENT_S) == b""
    proxy.clear()
    assert say(client, b"more", MOMENT_S) == b""
    assert bytes(echo.got) == b"hello"
    with socket.create_connection((HOST, proxy.lanes[0].port), timeout=5) as fresh:
        assert say(fresh, b"again") == b"again"


def test_half_open_carries_requests_but_no_answers(proxy: Proxy, client: socket.socket, echo: Echo) -> None:
    proxy.lanes[0].weather = HALF_OPEN
    assert say(client, b"asked", MOMENT_S) == b""
    assert bytes(echo.got) == b"helloasked"


def test_reset_ends_connections_at_once(proxy: Proxy, client: socket.socket) -> None:
    proxy.reset(proxy.lanes[0])
    client.settimeout(5)
    with pytest.raises(ConnectionResetError):
        client.recv(100)


def test_refused_connections_are_reset_and_others_go_on(proxy: Proxy, client: socket.socket) -> None:
    proxy.lanes[0].weather = REFUSED
    with pytest.raises(ConnectionResetError):
        connect_and_read(proxy.lanes[0].port)
    assert say(client, b"still here") == b"still here"


def test_slow_close_tells_the_end_late(proxy: Proxy, client: socket.socket) -> None:
    proxy.lanes[0].weather = Weather(slow_close_s=0.4)
    client.shutdown(socket.SHUT_WR)
    started = time.monotonic()
    assert client.recv(100) == b""
    assert time.monotonic() - started > 0.35
    proxy.lanes[0].weather = FAIR
