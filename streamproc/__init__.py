"""streamproc: a Kafka-native stream processor whose operator state is a transformer's KV cache."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamproc.client import Client
    from streamproc.config import Config
    from streamproc.messages import Query

__all__ = ["Client", "Config", "Query"]

HOMES = {"Client": "streamproc.client", "Config": "streamproc.config", "Query": "streamproc.messages"}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
