"""How a question is put to a kept context, whoever computes it."""

from collections.abc import Sequence

Ids = tuple[int, ...]


class Asking:
    """For whoever can compute a step. `size`: tokens of the context."""

    size: int

    def _step(self, start: int, ids: Sequence[int], num_samples: int) -> Ids:
        """Compute these tokens from this position on -> the greedy ones after the last so many of them."""
        raise NotImplementedError

    def _crop(self) -> None:
        """Forget what lies behind the context, where it would not be written over anyway."""

    def ask(self, ids: Sequence[int], num_answer: int) -> Ids:
        answer, at = list(self._step(self.size, ids, 1)), self.size + len(ids)
        while len(answer) < num_answer:
            answer += self._step(at, answer[-1:], 1)
            at += 1
        self._crop()
        return tuple(answer)

    def verify(self, ids: Sequence[int], draft: Sequence[int]) -> Ids:
        found = self._step(self.size, (*ids, *draft), len(draft) + 1)
        self._crop()
        return found
