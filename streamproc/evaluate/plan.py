"""Which questions are asked where: drawn from a seed before the first record is played.

Places are chosen so that contexts of every size, before and after hops, get about equally many questions, and at each
place those kinds of question that have had the fewest. What the oracle cannot tell is never asked.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamproc.evaluate.settings import Settings
from streamproc.evaluate.stretch import Place, Stretch
from streamproc.market.levels import draw_level
from streamproc.market.questions import Kind
from streamproc.market.tape import Tapes

SMALLEST_CONTEXT = 256
CANDIDATES = 6  # places compared, each of another stretch

Size = tuple[int, bool]  # of a context: its upper bound, and whether the session has hopped
Option = tuple[Kind, str]  # a kind of question, and the symbol that it is about


@dataclass(frozen=True, slots=True)
class Inquiry:
    """One question at one place. `sym` is what it is about; the words may leave it out."""

    id: str
    place: Place
    kind: Kind
    sym: str
    level: str
    words: str


@dataclass(frozen=True, slots=True)
class Point:
    """All questions at one place: none of the partition's later records comes before their answers."""

    place: Place
    inquiries: tuple[Inquiry, ...]


def bounds_of(context_tokens: int) -> tuple[int, ...]:
    """Upper ends of the context sizes told apart: 256, 512 and so on, until one holds the whole context."""
    bounds = [SMALLEST_CONTEXT]
    while bounds[-1] < context_tokens:
        bounds.append(bounds[-1] * 2)
    return tuple(bounds)


def bound_of(num_tokens: int) -> int:
    """The size that a context of so many tokens belongs to."""
    return bounds_of(num_tokens)[-1]


def size_of(place: Place) -> Size:
    return bound_of(place.num_tokens), place.has_hopped


def draw_points(settings: Settings, kinds: Mapping[str, Kind], stretches: Sequence[Stretch]) -> list[Point]:
    """Points until all questions are drawn, or no place is left; those of a partition in the order of its log."""
    planner = _Planner(settings, tuple(kinds.values()), stretches)
    points = []
    while planner.num_drawn < settings.asks and (point := planner.draw()):
        points.append(point)
    return sorted(points, key=lambda point: (point.place.partition, point.place.offset))


class _Planner:
    """Counts what has been drawn, and draws what is missing."""

    def __init__(self, settings: Settings, kinds: Sequence[Kind], stretches: Sequence[Stretch]) -> None:
        self.rng = random.Random(f"eval-{settings.seed}")
        self.settings, self.kinds = settings, kinds
        self.stretches = {stretch.partition: stretch for stretch in stretches}
        self.num_drawn = 0
        self._of_kind: Counter[tuple[int, str]] = Counter()  # questions, by context size
        self._of_size: Counter[Size] = Counter()  # questions
        self._of_stretch: Counter[tuple[int, int]] = Counter()  # points, by context size
        self._left: dict[Size, dict[int, list[Place]]] = {}  # places not used yet, by partition
        for place in [place for stretch in stretches for place in stretch.places]:
            self._left.setdefault(size_of(place), {}).setdefault(place.partition, []).append(place)

    def draw(self) -> Point | None:
        """The next point; None where no place is left at which anything can be asked."""
        while self._left:
            drafts = [(place, self._pick(place)) for place in self._candidates(self._rarest())]
            place, picked = min(drafts, key=lambda draft: self._count(*draft))
            self._use(place)
            if picked:
                return self._point(place, picked)
        return None

    def _rarest(self) -> Size:
        """The size with the fewest questions so far, and of it what comes before hops, or after."""
        nums = Counter[int]()
        for (bound, _), num in self._of_size.items():
            nums[bound] += num
        return min(self._left, key=lambda size: (nums[size[0]], self._of_size[size], size))

    def _candidates(self, size: Size) -> list[Place]:
        left = self._left[size]
        numbers = self.rng.sample(sorted(left), min(CANDIDATES, len(left)))
        return [self.rng.choice(left[number]) for number in numbers]

    def _use(self, place: Place) -> None:
        """This place is not drawn again."""
        size = size_of(place)
        self._left[size][place.partition].remove(place)
        if not self._left[size][place.partition]:
            del self._left[size][place.partition]
        if not self._left[size]:
            del self._left[size]

    def _pick(self, place: Place) -> list[Option]:
        """What to ask here: the kinds that have had the fewest questions in contexts of this size."""
        options = self._options(place)
        self.rng.shuffle(options)
        bound, most = size_of(place)[0], min(self.settings.per_point, self.settings.asks - self.num_drawn)
        nums = Counter({kind.name: self._of_kind[bound, kind.name] for kind in self.kinds})
        picked: list[Option] = []
        while options and len(picked) < most:
            picked.append(min(options, key=lambda option: nums[option[0].name]))
            options.remove(picked[-1])
            nums[picked[-1][0].name] += 1
        return picked

    def _options(self, place: Place) -> list[Option]:
        """Every kind of question about every symbol to which there is an answer here."""
        tapes = self._tapes(place)
        return [(kind, sym) for sym, tape in tapes.items() for kind in self.kinds if kind.oracle(tape, "0") is not None]

    def _tapes(self, place: Place) -> Tapes:
        return self.stretches[place.partition].tapes(place.session, place.from_offset, place.offset)

    def _count(self, place: Place, picked: Sequence[Option]) -> float:
        """How often such questions have been drawn: small where a point is welcome."""
        bound = size_of(place)[0]
        nums = [self._of_kind[bound, kind.name] for kind, _ in picked]
        return sum(nums) / len(nums) + self._of_stretch[place.partition, bound] if nums else math.inf

    def _point(self, place: Place, picked: Sequence[Option]) -> Point:
        tapes, (bound, _) = self._tapes(place), size_of(place)
        inquiries = []
        for number, (kind, sym) in enumerate(picked):
            level = draw_level(self.rng, tapes[sym]) if kind.needs_level else ""
            named = sym if len(tapes) > 1 or self.rng.random() < 0.5 else ""
            words = kind.question(named, level)
            inquiries.append(Inquiry(f"{place.partition}-{place.offset}-{number}", place, kind, sym, level, words))
            self._of_kind[bound, kind.name] += 1
        self.num_drawn += len(picked)
        self._of_size[size_of(place)] += len(picked)
        self._of_stretch[place.partition, bound] += 1
        return Point(place, tuple(inquiries))
