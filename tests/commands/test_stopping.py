"""Signals: what is in work may end, but not for ever."""

import os
import signal
import time

import pytest

from compressor.commands import stopping
from compressor.commands.stopping import Stop, Stopped


def test_a_block_of_work_may_end(capfd: pytest.CaptureFixture[str]) -> None:
    stop = Stop()
    ended = False
    with stop.listening(), pytest.raises(Stopped) as stopped, stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        ended = True
    assert ended and stopped.value.exit_status == 143
    assert capfd.readouterr().err == "stopping after this block of work, in at most 20 s; once more stops at once\n"


def test_a_timer_of_the_caller_goes_on() -> None:
    signal.setitimer(signal.ITIMER_REAL, 600)
    try:
        with Stop().deferred():
            pass
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_a_block_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE", 0.1)
    stop = Stop()
    ended = False
    with stop.listening(), pytest.raises(Stopped), stop.deferred():
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(30)
        ended = True
    assert not ended
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_outside_of_such_work_a_signal_interrupts_at_once() -> None:
    stop = Stop()
    with stop.listening(), pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)


def test_handlers_are_those_of_before() -> None:
    before = [signal.getsignal(signum) for signum in (*stopping.SIGNALS, signal.SIGALRM)]
    with Stop().listening():
        pass
    assert [signal.getsignal(signum) for signum in (*stopping.SIGNALS, signal.SIGALRM)] == before
