"""A measured window agrees with the engine's drafter on the same text."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_folder import VOCAB, write_model
from torch import Tensor

from calibration.acceptance.run import load_model
from calibration.acceptance.window import CachedText, Task, measure_window, probability_rows
from calibration.records.acceptance import DraftView, Record, Window
from runtime import Decoder, InputError
from runtime.attention import PassLayout
from runtime.drafting import SinkWindowView, SnapView
from runtime.drafting.base import SelfDrafter
from runtime.execution import SequenceState
from runtime.execution.eager import EagerPasses
from runtime.kernels.rotary import rotate

PREFIX = 150  # not a whole number of pages
TASK = Task(gamma=4, scored_tokens=12, chunk_tokens=64)
FULL = DraftView(policy="full", page_tokens=4)
SINKS = DraftView(policy="streamingllm", kv_budget=48, sink=8, page_tokens=4)
SNAP = DraftView(policy="snapkv", kv_budget=40, snapkv_window=8, snapkv_pool=5, page_tokens=4)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = write_model(tmp_path_factory.mktemp("model"))
    return load_model(folder, dtype=torch.float64, device=torch.device("cpu")).decoder


def text(seed: int = 3) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(VOCAB) for _ in range(TASK.window_tokens(PREFIX))]


def reader(decoder: Decoder, task: Task = TASK) -> CachedText:
    return CachedText(decoder, task, most_tokens=task.window_tokens(PREFIX), page_tokens=4)


def measure(decoder: Decoder, *views: DraftView, task: Task = TASK) -> list[Record]:
    window = Window(text="t", context_tokens=PREFIX, index=0, start=0)
    return list(measure_window(reader(decoder, task), None, window, text(), views))


def test_with_the_full_cache_a_self_draft_is_always_accepted(decoder: Decoder) -> None:
    (record,) = measure(decoder, FULL)
    assert record.overlap == pytest.approx([3.0] * 4, abs=1e-9)
    assert record.passed == pytest.approx([3.0] * 4, abs=1e-9)
    assert record.agree == (3, 3, 3, 3) and record.agree_chain == (3, 3, 3, 3)


class Forced:
    """Drafts the text's own tokens, and keeps the distributions that it was offered."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = list(tokens)
        self.draft_streams = ()
        self.greedy = False

    def draft(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([self.tokens.pop(0)]), logits.softmax(-1)

    def verify_tokens(self, drafts: Tensor, proposed: Tensor | None, rows: Tensor) -> Tensor:
        raise AssertionError("nothing is verified here")


@pytest.mark.parametrize("view", [SINKS, SNAP])
@torch.inference_mode()
def test_a_round_sees_what_the_engines_drafter_sees(decoder: Decoder, view: DraftView) -> None:
    tokens, own = text(), reader(decoder)
    own.prefill(tokens, context_tokens=PREFIX, window_queries=8)
    hidden, _ = own.draft_hidden(view)
    rows = probability_rows(decoder, hidden, 1.0).view(TASK.rounds, TASK.gamma, -1)
    policy = (
        SinkWindowView(budget_tokens=48, sink_tokens=8, page_tokens=4)
        if view is SINKS
        else SnapView(own.cache, budget_tokens=40, window_queries=8, pool_tokens=5)
    )
    sequence = SequenceState(0, tokens[: PREFIX + 1], PREFIX, 99)
    sequence.table.pages, sequence.table.tokens = own.table.pages, PREFIX
    policy.admit(sequence, own.queries(8))
    # Later rounds first: the drafter writes into the target's slots from its round on.
    for number in reversed(range(TASK.rounds)):
        start = PREFIX + number * TASK.gamma
        sequence.tokens, sequence.table.tokens = tokens[: start + 1], start
        sampler = Forced(tokens[start + 1 : start + TASK.gamma + 1])
        drafter = SelfDrafter(
            decoder, own.cache, EagerPasses(decoder, own.backend), policy, sampler
        )
        proposal = drafter.propose([sequence], TASK.gamma)
        assert proposal.probabilities is not None
        assert torch.allclose(proposal.probabilities[0], rows[number], atol=1e-10)


def test_rounds_do_not_depend_on_how_many_share_a_pass(decoder: Decoder) -> None:
    together = measure(decoder, SINKS, SNAP)
    alone = measure(decoder, SINKS, SNAP, task=replace(TASK, read_bytes=1.0))
    for one, other in zip(together, alone, strict=True):
        assert one.overlap == pytest.approx(other.overlap, abs=2e-5)


def test_views_do_not_change_the_targets_pages(decoder: Decoder) -> None:
    relative = replace(SINKS, positions="relative")
    in_order = measure(decoder, SINKS, relative, SNAP, FULL)
    turned = measure(decoder, FULL, SNAP, relative, SINKS)
    assert in_order == turned[::-1]


def test_all_pages_are_released(decoder: Decoder) -> None:
    own = reader(decoder)
    with torch.inference_mode():
        own.prefill(text(), context_tokens=PREFIX, window_queries=8)
        free = own.cache.free_pages
        for view in (FULL, SINKS, SNAP, replace(SINKS, positions="relative")):
            own.draft_hidden(view)
    assert own.cache.free_pages == free


@torch.inference_mode()
def test_moving_the_sinks_is_equivalent_to_moving_the_window(decoder: Decoder) -> None:
    """Cache-relative positions by their definition: window keys turned back, positions counted in
    the cache."""
    task = replace(TASK, scored_tokens=4)
    tokens, own = text(), reader(decoder, task)
    own.prefill(tokens, context_tokens=PREFIX, window_queries=0)
    found, _ = own.draft_hidden(replace(SINKS, positions="relative"))
    page, sink_pages = 4, 2
    tail = -(-(PREFIX - (48 - sink_pages * page)) // page)
    gap = (tail - sink_pages) * page
    kept = own.table.pages[tail : PREFIX // page + 1]
    moved = own.cache.allocate(len(kept) + 1)
    at = (torch.tensor(kept)[:, None] * page + torch.arange(page)).flatten()
    to = (torch.tensor(moved)[: len(kept), None] * page + torch.arange(page)).flatten()
    angles = decoder.rotary.tables(torch.tensor(-gap))
    for layer in range(decoder.config.layers):
        keys, values = own.cache.slots(layer)
        keys[to], values[to] = rotate(keys[at], *angles), values[at]
    layout = PassLayout(
        page_tables=[[*own.table.pages[:sink_pages], *moved]],
        kv_tokens=[PREFIX - gap + 4],
        query_tokens=[4],
    )
    fed, plan = torch.tensor(tokens[PREFIX : PREFIX + 4]), own.backend.plan(layout)
    assert plan.positions.tolist() == list(range(PREFIX - gap, PREFIX - gap + 4))
    expected = decoder.forward(fed, plan.positions, plan)
    assert torch.allclose(found, expected, atol=1e-9)
    absolute, _ = own.draft_hidden(SINKS)
    assert not torch.allclose(found, absolute, atol=1e-3)


def test_a_standalone_draft_that_is_the_target_is_always_accepted(decoder: Decoder) -> None:
    window = Window(text="t", context_tokens=PREFIX, index=0, start=0)
    (record,) = measure_window(reader(decoder), reader(decoder), window, text(), [FULL])
    assert record.overlap == pytest.approx([3.0] * 4, abs=1e-9)


def test_another_draft_is_sometimes_rejected(decoder: Decoder, tmp_path: Path) -> None:
    other = load_model(
        write_model(tmp_path, seed=9), dtype=torch.float64, device=torch.device("cpu")
    )
    window = Window(text="t", context_tokens=PREFIX, index=0, start=0)
    (record,) = measure_window(reader(decoder), reader(other.decoder), window, text(), [FULL])
    assert 0 < sum(record.overlap) / (record.rounds * len(record.overlap)) < 0.9


@pytest.mark.parametrize("wrong", [{"scored_tokens": 10}, {"gamma": 0}, {"temperature": 0.0}])
def test_a_task_that_cannot_be_measured_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Task(**{"gamma": 4, "scored_tokens": 12, **wrong})  # type: ignore[arg-type]
