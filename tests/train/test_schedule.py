"""The schedule: intervals follow the length of a run where they are not given."""

import math

import pytest

from eagle.train.schedule import Schedule
from eagle.train.settings import Settings


def of(steps: int, **changes: object) -> Schedule:
    return Schedule.of(Settings(max_steps=steps, **changes), 7)


@pytest.mark.parametrize(
    ("steps", "warmup", "save", "measure"),
    [
        (1, 1, 1, 1),
        (10, 1, 1, 2),
        (100, 4, 10, 20),
        (976, 40, 98, 196),
        (5000, 200, 500, 500),
        (100_000, 500, 500, 500),
    ],
)
def test_intervals_are_parts_of_the_length_up_to_a_most(steps, warmup, save, measure):
    made = of(steps)
    assert (made.warmup, made.save_every, made.eval_every) == (warmup, save, measure)


def test_what_is_given_is_taken():
    made = of(1000, warmup_steps=0, save_every=7, eval_every=9)
    assert (made.warmup, made.save_every, made.eval_every) == (0, 7, 9)


def test_short_runs_have_several_checkpoints_and_measurements_and_all_have_one_at_their_end():
    for steps in (5, 23, 1001):
        made = of(steps)
        saves, measures = ([s for s in range(1, steps + 1) if f(s)] for f in (made.saves_after, made.measures_after))
        assert len(saves) >= 3 and len(measures) >= 3 and saves[-1] == measures[-1] == steps
    assert not of(5).measures_after(0)


def test_epochs_are_steps_where_none_are_given():
    assert Schedule.of(Settings(epochs=1.5), 7).steps == 11
    assert Schedule.of(Settings(epochs=1e-6), 7).steps == 1


def test_a_longer_run_has_the_rate_of_its_new_length_at_once():
    short, longer = of(50, lr=0.1, warmup_steps=0), of(100, lr=0.1, warmup_steps=0)
    assert math.isclose(longer.rate(50), short.rate(25)) and longer.rate(50) > short.rate(50)
