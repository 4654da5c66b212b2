"""What is learned of a question's answers, and what follows for those that go on unseen."""

from concurrent.futures import Future

import pytest
from planning import Planning

from streamproc.answertypes import AnswerType
from streamproc.messages import Query
from streamproc.schedule.habits import ENDS, MAX_QUESTIONS, Habit, Habits
from streamproc.schedule.steptime import Load
from streamproc.schedule.unseen import GAP_S
from streamproc.state.fork import NOWHERE, Call, Fork, Question
from streamproc.state.generation import Generation
from streamproc.state.session import Session, Shape

QUERY = Query("q", "how?", max_tokens=40, stop=("!",))


def test_the_chance_of_an_end_is_that_of_the_answers_before_which_came_so_far() -> None:
    habit = Habit()
    assert habit.ends_at(1) == habit.ends_at(30) == ENDS
    for _ in range(20):
        habit.ended(3)
    assert habit.ends_at(3) > 0.9
    assert habit.ends_at(2) < 0.02
    assert habit.ends_at(4) == ENDS     # none has come so far
    for length in (5, 3) * 20:
        habit.ended(length)
    assert habit.ends_at(3) == pytest.approx(0.5, abs=0.1)
    assert habit.ends_at(5) > 0.8
    for _ in range(60):
        habit.ended(9)
    assert len(habit._lengths) == 1     # what was long ago is forgotten


def fork_of(question: str, session: bool = True) -> Fork:
    source = Query("q", question) if session else Call(question, 4, (), AnswerType(), Future())
    asked = Question(source, "S", question, (1,), 4, (), NOWHERE)
    of = Session("S", Shape((), 10, 5), 0, 0, 1) if session else None
    return Fork(1, asked, of, Generation(0, (), 0, 0), 0, 0.0)


def test_habits_are_of_the_questions_of_late_and_prompts_share_one() -> None:
    habits = Habits()
    for number in range(MAX_QUESTIONS + 5):
        habits.kept(fork_of(f"question {number}")).sampled(0)
        habits.kept(fork_of(f"prompt {number}" * 1_000, session=False)).sampled(0)
    assert len(habits._habits) == MAX_QUESTIONS
    assert habits.of(fork_of("question 0")).forced == 1.0
    assert habits.of(fork_of(f"question {MAX_QUESTIONS}")).forced == 0.9
    assert habits.of(fork_of("any", session=False)).forced < 1e-9


def planning(step_s: float) -> Planning:
    """A device that takes as long for every step, and knows it."""
    world = Planning(2_000, 4, 2_000, Shape(tuple(range(1, 9)), 400, 200))
    world.seconds_of = lambda plan: step_s  # type: ignore[method-assign]
    for number in range(12):
        world.scheduler.times.observe(Load(rows=number % 3 + 1.0), step_s)
    return world


def running(world: Planning, count: int) -> list[Fork]:
    """Of a session that has caught up."""
    session = world.session()
    question = Question(QUERY, session.key, "how?", (7, 8), QUERY.max_tokens, (), NOWHERE)
    return [Fork(i, question, session, session.current, 3, 0.0) for i in range(count)]


@pytest.mark.parametrize("step_s", [0.004, 0.03])
def test_no_step_is_made_of_rows_that_are_likely_all_in_vain(step_s: float) -> None:
    """Answers of three tokens, which only those before them tell."""
    world = planning(step_s)
    unseen, forks = world.scheduler._unseen, running(world, 2)
    for _ in range(20):
        world.scheduler.speculation._habits.kept(forks[0]).ended(3)
    vain = []
    for _ in range(3):
        vain.append(unseen._is_in_vain(forks, has_more=False))
        for fork in forks:
            fork.extend(5)
    assert vain == [False, False, True]
    assert not unseen._is_in_vain(forks, has_more=True)     # beside other work they cost next to nothing


def test_rows_in_vain_may_cost_more_than_the_gap() -> None:
    world = planning(0.004)
    unseen, forks = world.scheduler._unseen, running(world, 4)
    times = world.scheduler.times
    for row_s, expected in ((0.5 * GAP_S / 4 / ENDS, False), (2 * GAP_S / 4 / ENDS, True)):
        times._costs = [0.004, row_s, 0.0, 0.0, 0.0]
        assert unseen._is_in_vain(forks, has_more=True) is expected
    times._costs = [0.004, 0.0, 0.0, 0.0, 0.0]
    assert not unseen._is_in_vain(forks, has_more=False)    # hardly all of them end
    times._costs[0] = GAP_S / ENDS**4
    assert unseen._is_in_vain(forks, has_more=False)
    world.record(world.sessions[0], (4,))
    assert not unseen._is_in_vain(forks, has_more=False)    # there is something else to do
