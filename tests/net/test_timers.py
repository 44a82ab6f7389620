from twisted.internet.task import Clock

from wcfrelay.net.timers import Timers


def test_a_deadline_is_never_early_and_at_most_two_ticks_late() -> None:
    clock = Clock()
    timers = Timers(clock, tick=0.1)
    seen: list[float] = []
    for seconds in (0.05, 1.0, 2.34, 60.0):
        timers.after(seconds, lambda: seen.append(clock.seconds()))
    for _ in range(6200):
        clock.advance(0.01)
    assert len(seen) == 4
    for due, came in zip((0.05, 1.0, 2.34, 60.0), seen, strict=True):
        assert due <= came <= due + 0.2


def test_cancelled_deadlines_do_not_come_and_one_timer_serves_all() -> None:
    clock = Clock()
    timers = Timers(clock)
    seen: list[int] = []
    deadlines = [timers.after(5 + i / 1000, lambda i=i: seen.append(i)) for i in range(1000)]  # type: ignore[misc]
    assert len(clock.getDelayedCalls()) == 1
    for deadline in deadlines[1:]:
        deadline.cancel()
        deadline.cancel()
    clock.advance(10)
    assert seen == [0]
    assert clock.getDelayedCalls() == []


def test_an_earlier_deadline_moves_the_timer_and_one_may_add_another() -> None:
    clock = Clock()
    timers = Timers(clock)
    seen: list[str] = []
    timers.after(3600, lambda: seen.append("late"))
    timers.after(1, lambda: timers.after(1, lambda: seen.append("second")) and None)
    clock.advance(1.2)
    clock.advance(1.3)
    assert seen == ["second"]
    assert len(clock.getDelayedCalls()) == 1
    timers.stop()
    assert clock.getDelayedCalls() == []
