"""Watches the processes of the ranks from their launcher, through /proc.

A rank is at fault if it is suspended, or if its main thread, outside a wait for other ranks, has
used no CPU time and read nothing for a stated time; and so are all if all of them wait. Loading,
prefilling, compiling and capturing use CPU time or read, a wait for the GPU spins, and a rank that
waits for a disk, or whose compiler, or a peer's, runs in another process, is not judged. So no
phase needs a time limit, and a rank need not have joined. Systems without /proc are not watched.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
FAILURE_FILE = "TORCHELASTIC_ERROR_FILE"  # the agent names one for every rank
POSITION_FILE = "position"  # beside it: what the rank is doing
FINISHED = "finished"
WAITS, EXEMPT = "~", "!"  # first character of a position: waits for other ranks; is not judged
_SUSPENDED = "T"
_BUSY = "RD"  # runs, or waits for a disk
_STATE, _SESSION, _FAULTS, _USER, _SYSTEM = 0, 3, 9, 11, 12  # in `stat`, after the name


def is_suspended(process: int) -> bool | None:
    """Whether a process is stopped, as by SIGSTOP; None where this cannot be read."""
    fields = _stat(PROC / str(process))
    return fields[_STATE] == _SUSPENDED if fields else None


def last_positions(folder: Path, ranks: int) -> str:
    """What each rank was doing, from the files in one folder per rank."""
    texts = dict.fromkeys(range(ranks), "starting")
    for path in folder.rglob(POSITION_FILE):
        texts[int(path.parent.name)] = _text(path)[1:].strip()
    return "; ".join(f"rank {rank}: {text}" for rank, text in texts.items())


@dataclass(frozen=True, slots=True)
class RankProcess:
    """A rank's process and the file with its position."""

    process: int
    position: Path

    def signs(self) -> tuple[str, ...] | None:
        """State of the main thread, and what changes while the rank works; None if it has ended.

        These are the main thread's CPU time and page faults, the bytes that the process has read,
        its position, and while it is suspended how often it was continued, as by cpulimit.
        """
        folder = PROC / str(self.process)
        fields = _stat(folder / "task" / str(self.process))
        if not fields or fields[_STATE] in "ZX":
            return None
        read = _text(folder / "io").partition("\n")[0]
        numbers = (fields[index] for index in (_FAULTS, _USER, _SYSTEM))
        ran = _text(folder / "task" / str(self.process) / "schedstat").split()[2:]
        runs = ran if fields[_STATE] == _SUSPENDED else ()
        return (fields[_STATE], _text(self.position), read, *numbers, *runs)

    def continue_to_end(self) -> None:
        """If SIGTERM was sent to this suspended process, let it receive it."""
        for line in _text(PROC / str(self.process) / "status").splitlines():
            name, _, mask = line.partition(":")
            if name in ("SigPnd", "ShdPnd") and int(mask, 16) >> (signal.SIGTERM - 1) & 1:
                _send(self.process, signal.SIGCONT)


def rank_processes() -> dict[int, RankProcess]:
    """The ranks that torch's agent has started in this process."""
    ranks = {}
    for listed in PROC.glob("self/task/*/children"):
        for process in _text(listed).split():
            pairs = _text(PROC / process / "environ").split("\0")
            names = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            if "RANK" in names and FAILURE_FILE in names:
                position = Path(names[FAILURE_FILE]).with_name(POSITION_FILE)
                ranks[int(names["RANK"])] = RankProcess(int(process), position)
    return ranks


class RankMonitor:
    """Kills each of `count` ranks that is suspended or makes no progress for `looks` looks.

    It looks every `every_s` seconds.

    All are killed if all of them wait for a third longer. `verdict` then says which ranks were at
    fault; until then it is empty. `ended_first` are the ranks that ended first, without finishing,
    if this is known; several if they ended at almost the same time.
    """

    def __init__(
        self,
        count: int,
        *,
        looks: int,
        every_s: float,
        ranks: Callable[[], Mapping[int, RankProcess]] = rank_processes,
    ) -> None:
        self.count, self.looks, self.every_s, self.ranks = count, looks, every_s, ranks
        self.verdict = ""
        self.ended_first: list[int] = []
        self._last: dict[int, tuple[str, ...]] = {}
        self._same: dict[int, int] = {}  # looks without progress
        self._helpers: dict[str, tuple[str, str]] = {}
        self._waits = False  # for the first rank to end
        self._stop = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look regularly within the body."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            self.look()

    def _wait_for_first(self, ranks: Mapping[int, RankProcess]) -> None:
        with contextlib.suppress(OSError, AttributeError), contextlib.ExitStack() as stack:
            files, poll = {}, select.poll()
            for rank, process in ranks.items():
                file = os.pidfd_open(process.process)  # Linux only
                stack.callback(os.close, file)
                poll.register(file, select.POLLIN)
                files[file] = rank
            ended = [files[file] for file, _ in poll.poll()]
            texts = {rank: _text(ranks[rank].position)[1:].strip() for rank in ended}
            self.ended_first = [rank for rank in ended if texts[rank] != FINISHED]

    def look(self) -> None:
        """Look at every rank once."""
        ranks, before, counts = self.ranks(), self._last, self._same
        if len(ranks) == self.count and not self._waits:
            self._waits = True
            threading.Thread(target=self._wait_for_first, args=(ranks,), daemon=True).start()
        self._last, self._same = {}, {}
        for rank, process in ranks.items():
            if (signs := process.signs()) is None:
                continue
            state, position, *_ = self._last[rank] = signs
            if state == _SUSPENDED:
                process.continue_to_end()
            judged = state == _SUSPENDED or (state not in _BUSY and position[:1] != EXEMPT)
            same = judged and signs == before.get(rank)
            self._same[rank] = counts.get(rank, 0) + 1 if same else 0
        if 2 * max(self._same.values(), default=0) >= self.looks:
            self._judge(ranks)

    def _helpers_work(self, ranks: Collection[int]) -> bool:
        """Whether processes that ranks have started, such as compilers, have used CPU time."""
        before, self._helpers = self._helpers, {}
        for folder in PROC.glob("[0-9]*"):
            fields = _stat(folder)
            if fields and int(fields[_SESSION]) in ranks and int(folder.name) not in ranks:
                self._helpers[folder.name] = fields[_USER], fields[_SYSTEM]
        return self._helpers != before

    def _judge(self, ranks: Mapping[int, RankProcess]) -> None:
        """Kill the ranks at fault; those that are suspended if there are any."""
        seen, late = self._last, {rank for rank, n in self._same.items() if n >= self.looks}
        suspended = {rank for rank, signs in seen.items() if signs[0] == _SUSPENDED}
        waiting = {rank for rank, signs in seen.items() if signs[1].startswith(WAITS)} - suspended
        if self._helpers_work({process.process for process in ranks.values()}):
            self._same |= dict.fromkeys(self._same.keys() - suspended, 0)
            late &= suspended
        looks, fault = self.looks, "suspended (SIGSTOP)"
        if not (at_fault := late & suspended):
            fault, at_fault = "hung, without computing or reading,", late - waiting
        if not at_fault and waiting == seen.keys() and 3 * min(self._same.values()) >= 4 * looks:
            looks, fault, at_fault = 4 * looks // 3, "waiting for others in vain", waiting
        if at_fault and not self.verdict:
            who = " and ".join(f"rank {rank}" for rank in sorted(at_fault))
            was = "were" if len(at_fault) > 1 else "was"
            self.verdict = f"{who} {was} {fault} for {looks * self.every_s:.0f} s"
            for rank in at_fault:
                _send(ranks[rank].process, signal.SIGKILL)


def _send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def _stat(folder: Path) -> list[str]:
    """The fields after the name, which may contain spaces; empty if it has ended."""
    return _text(folder / "stat").rpartition(")")[2].split()


def _text(path: Path) -> str:
    """A file's text; empty if it cannot be read."""
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
