"""A TCP proxy on loopback that spoils what passes through it: what a network does to Kafka's clients.

Every lane is a port of its own that leads to one port of the broker, so that one client can be cut off while the others
go on. Faults can be set and lifted at any time:

    latency      every piece of data comes later by so much
    bandwidth    no more than so many bytes a second, each way
    hold         nothing passes; it all comes once this is lifted: late, and side by side with newer connections
    drop         what passes is gone for good, so connections that were used meanwhile are dead and do not know it
    half-open    the same, one way only: requests arrive, answers do not
    slow close   the end of a connection is told late
    refuse       new connections are reset
    forget       whoever asks for the cluster's brokers is told that there are none, and is reset: so ends the last one
    reset        all connections are reset, once
"""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from harness.metadata import Requests, Responses

HOST = "127.0.0.1"
CHUNK_BYTES = 64 * 1024
LOOK_S = 0.01  # how often a held piece looks whether it may go on
NOW = struct.pack("ii", 1, 0)  # SO_LINGER: close by RST, at once

UP, DOWN = "up", "down"  # to the broker, to the client


@dataclass(frozen=True, slots=True)
class Weather:
    """What a lane does to what passes; the default is nothing."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0  # 0: no limit
    hold: bool = False
    drop: frozenset[str] = frozenset()  # directions
    slow_close_s: float = 0.0
    refuse: bool = False
    forget: bool = False


FAIR = Weather()
HELD = Weather(hold=True)
DROPPED = Weather(drop=frozenset({UP, DOWN}))
HALF_OPEN = Weather(drop=frozenset({DOWN}))
REFUSED = Weather(refuse=True)
SLOW = Weather(latency_s=0.15, jitter_s=0.1)
NARROW = Weather(bytes_per_s=30_000)
SLOW_CLOSE = Weather(slow_close_s=2.0)
FORGETFUL = Weather(forget=True)


@dataclass(eq=False)
class Connection:
    """One client's connection and its other half to the broker."""

    writers: dict[str, asyncio.StreamWriter]
    dead: set[str] = field(default_factory=set)  # directions in which something was lost

    def __post_init__(self) -> None:
        self.requests = Requests()
        self.responses = Responses(self.requests)

    def reset(self) -> None:
        for writer in self.writers.values():
            abort(writer)


def abort(writer: asyncio.StreamWriter) -> None:
    """Close with RST."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOW)
    writer.transport.abort()


class Lane:
    """One port in, one port out. `weather` may be set from any thread."""

    def __init__(self, port: int, target: int, seed: int = 0) -> None:
        self.port, self.target = port, target
        self.weather = FAIR
        self.num_bytes = {UP: 0, DOWN: 0}
        self.connections: set[Connection] = set()
        self._rng = random.Random(seed)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until both sides have ended it."""
        if self.weather.refuse:
            abort(writer)
            return
        try:
            to_reader, to_writer = await asyncio.open_connection(HOST, self.target)
        except OSError:
            abort(writer)
            return
        connection = Connection({UP: to_writer, DOWN: writer})
        self.connections.add(connection)
        try:
            await asyncio.gather(
                self._pump(connection, UP, reader), self._pump(connection, DOWN, to_reader), return_exceptions=False
            )
        except (OSError, asyncio.CancelledError):  # broken, or the proxy is closed
            connection.reset()
        finally:
            self.connections.discard(connection)
            for each in connection.writers.values():
                each.close()

    async def _pump(self, connection: Connection, way: str, reader: asyncio.StreamReader) -> None:
        writer = connection.writers[way]
        while data := await reader.read(CHUNK_BYTES):
            if way == UP:
                connection.requests.note(data)
            else:
                data = connection.responses.through(data, self.weather.forget)
            await self._wait(len(data))
            if way in self.weather.drop:
                connection.dead.add(way)
            if way not in connection.dead:
                writer.write(data)
                await writer.drain()
                self.num_bytes[way] += len(data)
            if connection.responses.has_forgotten:
                connection.reset()
        await self._wait(0)
        while way in self.weather.drop:
            await asyncio.sleep(LOOK_S)
        await asyncio.sleep(self.weather.slow_close_s)
        writer.close()

    async def _wait(self, num_bytes: int) -> None:
        weather = self.weather
        await asyncio.sleep(weather.latency_s + self._rng.random() * weather.jitter_s)
        if weather.bytes_per_s:
            await asyncio.sleep(num_bytes / weather.bytes_per_s)
        while self.weather.hold:
            await asyncio.sleep(LOOK_S)

    def reset_all(self) -> None:
        for connection in list(self.connections):
            connection.reset()


class Proxy:
    """Lanes in a thread of their own, from `start` to `close`."""

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self.lanes = list(lanes)
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._ready = threading.Event()

    def start(self) -> "Proxy":
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        assert self._ready.wait(10), "the proxy does not start"
        return self

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        servers = [
            self._loop.run_until_complete(asyncio.start_server(lane.serve, HOST, lane.port)) for lane in self.lanes
        ]
        self._ready.set()
        self._loop.run_forever()
        for server in servers:
            server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def reset(self, lane: Lane) -> None:
        """Reset all connections of a lane, now."""
        self._loop.call_soon_threadsafe(lane.reset_all)

    def clear(self) -> None:
        """Fair weather everywhere."""
        for lane in self.lanes:
            lane.weather = FAIR

    def close(self) -> None:
        self.clear()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the proxy does not stop"
