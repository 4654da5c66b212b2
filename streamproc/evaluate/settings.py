"""What an evaluation is asked to do."""

from dataclasses import dataclass

SYNTHETIC, SAMPLE = "synthetic", "sample"
KEY, PARTITION = "key", "partition"


@dataclass(frozen=True, slots=True)
class Settings:
    """`feed`: synthetic, sample, or a file that `streamproc produce` reads."""

    feed: str = SYNTHETIC
    session_by: str = ""        # key or partition; empty: as the settings say, else as the feed has it
    asks: int = 1_000
    per_point: int = 8          # most questions at one offset of one session
    seed: int = 0

    @property
    def own_session_by(self) -> str:
        """What owns a session where nobody has said: synthetic feeds mix their symbols in one, as in training."""
        return PARTITION if self.feed == SYNTHETIC else KEY
