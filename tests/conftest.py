"""Settings of every test, and the order of files.

Properties are drawn without a deadline, since a machine may be busy. Files of slow tests run first,
so that two processes end at about the same time. A shell starts background jobs with Ctrl-C
ignored, nohup with hang-ups ignored, and the commands under test would inherit that. Threads of
several processes would compete for the cores, so each process and what it starts has one.
pytest-xdist states the width of the terminal, to which the commands would fit their tables. The
commands under test read the compiled modules that the first process wrote.
"""

import os
import signal
import sys

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy are imported

for name in ("COLUMNS", "LINES", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(name, None)
sys.dont_write_bytecode = False
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
