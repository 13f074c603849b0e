"""The step size over a run: when its decay begins, and that it ends with the run."""

from __future__ import annotations

import pytest

from pyro_coupling.training.schedule import Schedule


def decayed(schedule, step, seconds):
    """Where the factor lies between the end of the decay, 0, and its beginning, 1."""
    return (schedule.factor(step, seconds) - 0.01) / 0.99


def test_the_decay_begins_when_as_much_of_the_budget_is_left_as_it_takes():
    schedule = Schedule(max_steps=10_000, max_seconds=60.0, decay_fraction=0.5)
    assert schedule.factor(1000, 29.0) == 1.0
    schedule.factor(1000, 30.0)
    assert schedule.decay_began == (1000, 30.0)


def test_a_decay_that_the_clock_began_lasts_until_the_budget_is_used_up():
    schedule = Schedule(max_steps=10_000, max_seconds=60.0)
    schedule.factor(100, 30.0)
    # steps are three times as fast from here on
    assert decayed(schedule, 250, 45.0) == pytest.approx(0.5, abs=1e-12)
    assert not schedule.over(400, 59.9)
    assert schedule.over(400, 60.0)


def test_a_decay_that_was_asked_for_is_as_long_as_a_part_of_what_went_before():
    schedule = Schedule(max_steps=10_000, max_seconds=1e9, decay_fraction=0.5, min_decay=10)
    schedule.begin_decay(1000, 1.0)
    assert decayed(schedule, 1500, 2.0) == pytest.approx(0.5, abs=1e-6)
    assert schedule.over(2000, 2.0)
