"""librdkafka's own mock cluster, with errors, slowness and outages on order, through ctypes on the bundled library.

Good for how the client library reports each error and what we make of it, in milliseconds and without a JVM. It is no
Kafka: it keeps no transactional offsets and fences nobody, so it says nothing about exactly-once.
"""

import ctypes
from pathlib import Path
from types import TracebackType

import confluent_kafka

POINTER = ctypes.c_void_p
SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "rd_kafka_conf_new": (POINTER, []),
    "rd_kafka_conf_set": (
        ctypes.c_int,
        [POINTER, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t],
    ),
    "rd_kafka_new": (POINTER, [ctypes.c_int, POINTER, ctypes.c_char_p, ctypes.c_size_t]),
    "rd_kafka_destroy": (None, [POINTER]),
    "rd_kafka_mock_cluster_new": (POINTER, [POINTER, ctypes.c_int]),
    "rd_kafka_mock_cluster_destroy": (None, [POINTER]),
    "rd_kafka_mock_cluster_bootstraps": (ctypes.c_char_p, [POINTER]),
    "rd_kafka_mock_topic_create": (ctypes.c_int, [POINTER, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]),
    "rd_kafka_mock_broker_set_down": (ctypes.c_int, [POINTER, ctypes.c_int32]),
    "rd_kafka_mock_broker_set_up": (ctypes.c_int, [POINTER, ctypes.c_int32]),
    "rd_kafka_mock_broker_set_rtt": (ctypes.c_int, [POINTER, ctypes.c_int32, ctypes.c_int]),
    "rd_kafka_mock_clear_request_errors": (None, [POINTER, ctypes.c_int16]),
}
API = {
    "Produce": 0,
    "InitProducerId": 22,
    "AddPartitionsToTxn": 24,
    "AddOffsetsToTxn": 25,
    "EndTxn": 26,
    "TxnOffsetCommit": 28,
}


def bundled_librdkafka() -> ctypes.CDLL:
    """The shared library inside the installed confluent_kafka wheel."""
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    library = ctypes.CDLL(str(next(folder.glob("librdkafka-*.so*"))))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class MockCluster:
    """`num_brokers` brokers in this process, numbered from 1. A context manager."""

    def __init__(self, num_brokers: int = 1) -> None:
        self._library = bundled_librdkafka()
        error = ctypes.create_string_buffer(256)
        settings = self._library.rd_kafka_conf_new()
        self._library.rd_kafka_conf_set(settings, b"log_level", b"0", error, 256)
        self._client = self._library.rd_kafka_new(0, settings, error, 256)
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, num_brokers)
        self.num_brokers = num_brokers
        self.address = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create_topic(self, name: str, num_partitions: int) -> None:
        self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), num_partitions, 1)

    def push_errors(self, api: str, *codes: int) -> None:
        """The next requests of this API get these error codes, one each."""
        self._library.rd_kafka_mock_push_request_errors(
            POINTER(self._cluster),
            ctypes.c_int16(API[api]),
            ctypes.c_size_t(len(codes)),
            *[ctypes.c_int(code) for code in codes],
        )

    def clear_errors(self, api: str) -> None:
        self._library.rd_kafka_mock_clear_request_errors(self._cluster, API[api])

    def set_rtt(self, ms: int) -> None:
        """Every reply takes so long from now on."""
        for number in range(1, self.num_brokers + 1):
            self._library.rd_kafka_mock_broker_set_rtt(self._cluster, number, ms)

    def set_down(self) -> None:
        for number in range(1, self.num_brokers + 1):
            self._library.rd_kafka_mock_broker_set_down(self._cluster, number)

    def set_up(self) -> None:
        for number in range(1, self.num_brokers + 1):
            self._library.rd_kafka_mock_broker_set_up(self._cluster, number)

    def __enter__(self) -> "MockCluster":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, where: TracebackType | None
    ) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)
