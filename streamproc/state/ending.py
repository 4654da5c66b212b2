"""When an answer is complete, and what its text is: a pure function of its token ids."""

from collections.abc import Sequence
from typing import Protocol


class Decoder(Protocol):
    """Token ids -> text; the renderer's, or a fake."""

    @property
    def eos_ids(self) -> frozenset[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


def finished_text(decoder: Decoder, ids: Sequence[int], stop: tuple[str, ...], max_tokens: int) -> str | None:
    """The text of an answer that has come this far, or None while it goes on.

    An answer ends before an end-of-sequence token or before the first stop string, or at `max_tokens` tokens.
    """
    if ids[-1] in decoder.eos_ids:
        return decoder.decode(ids[:-1]).strip()
    if not stop and len(ids) < max_tokens:
        return None
    text = decoder.decode(ids)
    cuts = [place for place in (text.find(word) for word in stop) if place >= 0]
    if cuts:
        return text[: min(cuts)].strip()
    return text.strip() if len(ids) >= max_tokens else None
