"""How fast a training is said to be."""

import pytest

from lstmx.training.progress import Throughput


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr("lstmx.training.progress.time.perf_counter", lambda: Clock.now)
    return Clock


def test_what_is_left_out_does_not_slow_it(clock):
    throughput = Throughput()
    throughput.tick()
    throughput.exclude(5.0)
    assert throughput.steps_per_second == 0
    throughput.restart()
    clock.now += 7.0
    throughput.exclude(5.0)
    throughput.tick()
    throughput.tick()
    assert throughput.steps_per_second == pytest.approx(1.0)


def test_it_is_settled_after_ten_steps_and_two_seconds(clock):
    throughput = Throughput()
    throughput.restart()
    settled = []
    for _ in range(25):
        clock.now += 0.125
        throughput.tick()
        settled.append(throughput.is_settled)
    assert settled == [False] * 15 + [True] * 10
    throughput.restart()
    for _ in range(9):
        clock.now += 1.0
        throughput.tick()
        assert not throughput.is_settled
