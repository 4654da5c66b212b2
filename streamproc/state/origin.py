"""What an owner processes a partition with: part of the metadata of its committed offset, beside the stamp (stamp.py).

It says nothing of deaths. It tells the next owner whether contexts and answers before it came from the same model, and
from a topic that gave each key the same partition.
"""

from dataclasses import dataclass

import orjson

from streamproc.state.stamp import Stamp, whole

DIGEST = 16  # characters


@dataclass(frozen=True, slots=True)
class Origin:
    """Empty, or 0: not known; offsets that older versions have committed say nothing of it."""

    model: str = ""  # digest of weights, dtype and configuration
    num_partitions: int = 0  # of the records topic

    def sign(self, stamp: Stamp) -> str:
        """The metadata of an offset."""
        doc = orjson.loads(stamp.encode())
        doc |= {"model": self.model[:DIGEST]} if self.model else {}
        doc |= {"partitions": self.num_partitions} if self.num_partitions else {}
        return orjson.dumps(doc).decode()


UNKNOWN = Origin()


def decode_origin(metadata: str) -> Origin:
    """The inverse of `sign`; what somebody else wrote says nothing."""
    try:
        doc = orjson.loads(metadata)
        model = doc.get("model", "")
        return Origin(model, whole(doc.get("partitions", 0))) if isinstance(model, str) else UNKNOWN
    except (orjson.JSONDecodeError, TypeError, ValueError, AttributeError):
        return UNKNOWN
