"""Which all-reduce takes which message, and what happens where memory cannot be shared."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from runtime.errors import InputError
from runtime.parallel.all_reduce import AllReduceLimits, limits_from_environment
from runtime.parallel.groups import NO_MULTICAST, Group, connect

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
BYTES = st.integers(0, 2**30)


BF16 = torch.bfloat16
TYPES = st.sampled_from((torch.bfloat16, torch.float16, torch.float32, torch.float64))


@given(BYTES, BYTES, BYTES, TYPES, st.integers(2, 16))
def test_a_chosen_kernel_can_hold_and_sum_its_message(
    one_shot: int, two_shot: int, message: int, dtype: torch.dtype, ranks: int
) -> None:
    limits = AllReduceLimits(one_shot_bytes=one_shot, two_shot_bytes=two_shot)
    chosen = limits.choose(message, dtype, ranks)
    if chosen != "nccl":
        assert message <= limits.workspace_bytes and message % 4 == 0 and message > 0
        assert dtype in (torch.bfloat16, torch.float32)
        assert chosen == "one_shot" or ranks in (2, 4, 8)


@given(BYTES, BYTES)
def test_a_larger_message_never_goes_back_to_an_earlier_algorithm(one: int, other: int) -> None:
    small, large = sorted((4 * one, 4 * other + 4))
    limits = AllReduceLimits()
    algorithms = ("one_shot", "two_shot", "nccl")
    order = [algorithms.index(limits.choose(size, BF16, 2)) for size in (small or 4, large)]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("size", "algorithm"),
    [(8 * 1024, "one_shot"), (256 * 1024, "one_shot"), (2**20, "two_shot"), (2**30, "nccl")],
)
def test_the_measured_sizes_go_where_they_were_fastest(size: int, algorithm: str) -> None:
    assert AllReduceLimits().choose(size, BF16, 2) == algorithm


def test_limits_can_be_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECROOF_ALL_REDUCE", "0:0")
    assert limits_from_environment().choose(8, BF16, 2) == "nccl"
    monkeypatch.setenv("SPECROOF_ALL_REDUCE", "64:1024")
    assert limits_from_environment() == AllReduceLimits(one_shot_bytes=64, two_shot_bytes=1024)
    for wrong in ("64", "a:b", "1:-2"):
        monkeypatch.setenv("SPECROOF_ALL_REDUCE", wrong)
        with pytest.raises(InputError, match="262144:67108864"):
            limits_from_environment()


@dataclass
class Recorder:
    """Stands for a shared workspace, and notes what it is asked to sum."""

    limits: AllReduceLimits = field(default_factory=AllReduceLimits)
    asked: list[str] = field(default_factory=list)

    def choose(self, message_bytes: int, dtype: torch.dtype) -> str:
        return self.limits.choose(message_bytes, dtype, 2)

    def all_reduce(self, partial: Tensor, algorithm: str) -> Tensor:
        self.asked.append(algorithm)
        return 2 * partial


def test_a_group_chooses_the_algorithm_by_size() -> None:
    recorder: Any = Recorder()
    group = Group(rank=0, size=2, workspace=recorder)
    small, large = torch.ones(4, 64), torch.ones(2**18)
    assert torch.equal(group.all_reduce(small), 2 * small)
    group.all_reduce(large)
    assert recorder.asked == ["one_shot", "two_shot"]


def test_a_group_of_one_gives_back_what_it_was_given() -> None:
    alone, partial = Group(rank=0, size=1), torch.ones(3)
    assert alone.all_reduce(partial) is partial and alone.gather_columns(partial) is partial
    assert alone.partial_buffer((3,), torch.float32) is None


WITHOUT = """
import os, sys, torch
import torch.distributed as dist
from runtime.parallel.groups import connect
from runtime.parallel.launch import run_rank
from runtime.parallel.all_reduce import AllReduceLimits, shared_workspace
def body():
    with connect(tp=2, draft_tp=1) as ranks:
        for local in (1, 2):
            found = shared_workspace(
                ranks.target.handle, 2, ranks.device, AllReduceLimits(), local_ranks=local
            )
            assert found is None
        total = ranks.target.all_reduce(torch.full((3,), 1.0 + ranks.target.rank))
        assert total.tolist() == [3.0] * 3
        columns = ranks.target.gather_columns(torch.full((2, 1), float(ranks.target.rank)))
        assert columns.tolist() == [[0.0, 1.0]] * 2
sys.exit(run_rank(body))
"""


def test_ranks_that_cannot_share_memory_say_so_once_and_go_on() -> None:
    code = f"from runtime import launch_ranks; launch_ranks({[sys.executable, '-c', WITHOUT]!r}, 2)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2  # two groups were asked for
    assert (
        notes[0] == "note: 2 ranks use only NCCL for all-reduce: only 1 of 2 ranks are on this host"
    )


def test_a_gpu_that_is_not_there_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    with pytest.raises(InputError, match="needs GPU"), connect(tp=1, draft_tp=1, device="cuda"):
        pass


JOINS = """
import os, sys, torch
from runtime.parallel.groups import NO_MULTICAST, connect, exchange_words
from runtime.parallel.launch import run_rank
def body():
    for joining in range(6):
        os.environ.update(NCCL_NVLS_ENABLE="1", TORCH_SYMM_MEM_DISABLE_MULTICAST="0")
        with connect(tp=2, draft_tp=1 + joining % 2) as ranks:
            total = ranks.target.all_reduce(torch.full((3,), 1.0 + ranks.target.rank + joining))
            assert total.tolist() == [3.0 + 2 * joining] * 3
            assert all(os.environ[name] == value for name, value in NO_MULTICAST.items())
        words = exchange_words(f"{joining} of {os.environ['RANK']}")
        assert words == [f"{joining} of {rank}" for rank in range(2)], words
sys.exit(run_rank(body))
"""


@pytest.mark.parametrize("torchrun", [False, True])
def test_a_process_joins_as_often_as_it_likes_and_never_with_multicast(torchrun: bool) -> None:
    script = [sys.executable, "-c", JOINS]
    code = f"from runtime import launch_ranks; launch_ranks({script!r}, 2)"
    command = [sys.executable, "-c", code]
    if torchrun:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node=2", "--no_python", *script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr


def test_the_variables_that_turn_multicast_off() -> None:
    assert NO_MULTICAST["NCCL_NVLS_ENABLE"] == "0"
    assert NO_MULTICAST["TORCH_SYMM_MEM_DISABLE_MULTICAST"] == "1"
