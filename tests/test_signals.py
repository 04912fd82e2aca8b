from __future__ import annotations

import os
import pty
import signal
import sys
import threading

import pytest
from runs import ROOT

from pfseg.signals import collected_signals, handled


def test_signals_are_handled_and_then_as_before():
    before, heard = signal.getsignal(signal.SIGTERM), []
    with handled([signal.SIGTERM], heard.append):
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM] * 2 and signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_does_what_it_always_does():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with collected_signals() as signals, pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
            assert signals == [signal.SIGINT]
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_handles_none():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def look() -> None:
        with handled([signal.SIGTERM], print):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("ignored", [False, True])
def test_a_lost_terminal_is_a_request_to_stop_unless_it_is_ignored(ignored: bool):
    """In a terminal of its own, which goes away; `nohup` has the signal ignored."""
    code = (
        "import os, signal, sys, time\n"
        "from pfseg.signals import collected_signals\n"
        f"{'signal.signal(signal.SIGHUP, signal.SIG_IGN)' if ignored else ''}\n"
        "with collected_signals() as signals:\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(0.5)\n"
        "    if signals: print('gone', flush=True)\n"
        "os.write(int(sys.argv[1]), str([*map(int, signals)]).encode())\n"
    )
    result, told = os.pipe()
    pid, line = pty.fork()
    if pid == 0:
        os.set_inheritable(told, True)
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", code, str(told)])
    os.close(told)
    said = b""
    while b"\n" not in said:  # two writes where Python buffers nothing
        said += os.read(line, 100)
    os.close(line)
    assert os.read(result, 100) == (b"[]" if ignored else b"[1]")
    os.close(result)
    assert os.waitpid(pid, 0)[1] == 0
