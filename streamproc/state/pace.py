"""When an epoch is due: after a time, so many bytes of records taken in, or so many answers finished."""

from dataclasses import dataclass

MEMORY = 0.9  # weight of what was known of how long a commit takes


@dataclass(slots=True)
class Pace:
    """`interval_s`, `most_bytes` and `most_answers` bound what a crash has to do again, and what readers wait for."""

    interval_s: float
    most_bytes: int
    most_answers: int
    committed_at: float  # clock, seconds
    num_bytes: int = 0  # of records, since then
    num_answers: int = 0
    commit_s: float = 0.0  # of a transaction, by the newest ones

    def took(self, seconds: float) -> None:
        """A transaction took so long."""
        self.commit_s = MEMORY * self.commit_s + (1 - MEMORY) * seconds if self.commit_s else seconds

    def take(self, num_bytes: int) -> None:
        """So many bytes of records have come in."""
        self.num_bytes += num_bytes

    def answer(self) -> None:
        """One more answer is finished."""
        self.num_answers += 1

    def is_due(self, now: float) -> bool:
        return (
            now - self.committed_at >= self.interval_s
            or self.num_bytes >= self.most_bytes
            or self.num_answers >= self.most_answers
        )

    def start_over(self, now: float) -> None:
        """An epoch has been committed, or was tried to."""
        self.committed_at, self.num_bytes, self.num_answers = now, 0, 0
