"""S4 through llama.cpp: the same sessions and questions in one context of its own, everything batched over sessions.

A round gives every session its next records in one batch and then asks one question after the other, each of all
sessions at once: one batch of the tails, one a token for the answers. That is llama.cpp at its best here. Each session
has a stream of cells of its own (`kv_unified` off), so that a row reads its own context only and nothing is copied: the
question is taken off the end again. With one unified cache and copied sequences every row looks at all sessions' cells.
"""

import time
from pathlib import Path

import numpy as np

from peers.llama import Library, Setting
from peers.standing import PREFIX, RECORD, Stream
from peers.subject import ANSWER, QUESTION, Ids

BATCH = 2048


class Sessions:
    """The stream's sessions as sequences of llama.cpp."""

    def __init__(self, path: Path, stream: Stream, threads: int, setting: Setting, more_tokens: int) -> None:
        per_session = stream.context + more_tokens + QUESTION + ANSWER
        per_session += -per_session % 256
        self.stream = stream
        self.library = Library(path, threads, setting, n_batch=BATCH, kv_unified=False, n_seq_max=stream.sessions,
                               n_ctx=per_session * stream.sessions)  # fmt: skip
        self.num_records = 0
        self.size = PREFIX
        self._step([stream.prefix()] * stream.sessions, 0, 0)
        while self.num_records < stream.first_records:
            self._records(min(BATCH // RECORD // stream.sessions, stream.first_records - self.num_records) or 1)

    def round(self, drafts: list[list[Ids]] | None) -> list[list[Ids]]:
        """The next records of all sessions, then all their questions -> answers by query and session."""
        self._records(self.stream.every)
        return [self._ask(self.stream.tail(query), drafts[query] if drafts else None)
                for query in range(self.stream.queries)]  # fmt: skip

    def _records(self, count: int) -> None:
        numbers = range(self.num_records, self.num_records + count)
        parts = [sum((self.stream.record(session, number) for number in numbers), ())
                 for session in range(self.stream.sessions)]  # fmt: skip
        self._step(parts, self.size, 0)
        self.num_records += count
        self.size += count * RECORD

    def _ask(self, tail: Ids, drafts: list[Ids] | None) -> list[Ids]:
        """One question of every session; a draft that holds needs no steps, and if all do there is none."""
        count = self.stream.sessions
        parts = [(*tail, *drafts[i][:-1]) for i in range(count)] if drafts else [tail] * count
        num_samples = ANSWER if drafts else 1
        found = self._step(parts, self.size, num_samples).reshape(count, num_samples)
        answers = [self._kept(found[i], drafts[i] if drafts else ()) for i in range(count)]
        for i, answer in enumerate(answers):
            self.library.remove(i, self.size + len(tail) + len(answer) - 1)
        while open_ones := [i for i, answer in enumerate(answers) if len(answer) < ANSWER]:
            ids = np.array([answers[i][-1] for i in open_ones])
            places = np.array([self.size + len(tail) + len(answers[i]) - 1 for i in open_ones])
            tokens = self.library.decode(ids, places, np.array(open_ones), np.ones(len(ids)))
            for i, token in zip(open_ones, tokens, strict=True):
                answers[i].append(int(token))
        for i in range(count):
            self.library.remove(i, self.size)
        return [tuple(answer) for answer in answers]

    @staticmethod
    def _kept(found: np.ndarray, draft: Ids) -> list[int]:
        """The sampled tokens up to the first that the draft did not foresee."""
        for i, token in enumerate(draft[:-1]):
            if found[i] != token:
                return [int(token) for token in found[: i + 1]]
        return [int(token) for token in found]

    def _step(self, parts: list[Ids], start: int, num_samples: int) -> np.ndarray:
        """These tokens of all sessions, from position `start` on; sessions side by side in batches that fit."""
        length, found = len(parts[0]), []
        at_once = max(BATCH // length, 1)
        for first in range(0, len(parts), at_once):
            some = parts[first : first + at_once]
            positions = np.tile(start + np.arange(length), len(some))
            seqs = np.repeat(np.arange(first, first + len(some)), length)
            wanted = np.tile(np.arange(length) >= length - num_samples, len(some))
            found.append(self.library.decode(np.concatenate(some), positions, seqs, wanted))
        return np.concatenate(found)

    def close(self) -> None:
        self.library.close()


def agreement(answers: list[list[Ids]], ours: dict[bytes, str]) -> float:
    """Share of a first round's answers that begin with the token of ours: both saw the same stream."""
    pairs = [(answer[0], ours[f"q{query}/s{session}".encode()].split()[0])
             for query, of in enumerate(answers) for session, answer in enumerate(of)]  # fmt: skip
    return sum(str(theirs) == mine for theirs, mine in pairs) / len(pairs)


def sustained(sessions: Sessions, rounds: int, before: list[list[Ids]],
              drafts: bool) -> tuple[dict[str, float], list[list[Ids]]]:  # fmt: skip
    """Rounds one after the other, after one that gave the answers `before` -> figures, the last answers."""
    stream, num_same, started = sessions.stream, 0, time.perf_counter()
    for _ in range(rounds):
        answers = sessions.round(before if drafts else None)
        num_same += sum(one == other for query, old in zip(answers, before, strict=True)
                        for one, other in zip(query, old, strict=True))  # fmt: skip
        before = answers
    taken = time.perf_counter() - started
    records = rounds * stream.sessions * stream.every
    figures = {"records_per_s": records / taken, "fresh": 1.0, "seconds": taken,
               "answer_as_before": num_same / (rounds * stream.sessions * stream.queries)}  # fmt: skip
    return figures, before
