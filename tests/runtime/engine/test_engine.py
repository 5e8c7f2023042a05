"""The loop's promises: one read a round, plans before steps, finished sequences leave the batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import DRAFTS, Case, build, random_prompts, run

from runtime.attention.base import AttentionPlan, PassLayout
from runtime.engine.clock import PHASES
from runtime.engine.engine import Engine
from runtime.engine.results import FinishedSequence, GenerationResult, RoundRecord
from runtime.errors import InputError, OutOfPages
from runtime.execution.prefill import prompt_pieces

torch.set_num_threads(1)
READS = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")


@contextmanager
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every way in which Python gets a number out of a tensor."""
    seen: list[str] = []
    with monkeypatch.context() as patch:
        for name in READS:
            original = getattr(torch.Tensor, name)

            def spy(self: Any, *args: Any, name: str = name, original: Any = original) -> Any:
                seen.append(name)
                return original(self, *args)

            patch.setattr(torch.Tensor, name, spy)
        yield seen


@pytest.mark.parametrize("draft", ["none", *DRAFTS])
def test_the_host_reads_the_device_once_a_round(
    draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = started(draft)
    with counted_reads(monkeypatch) as reads:
        for _ in range(3):
            engine.round()
    # Without graphs, the host also selects the tables of the next self-draft.
    selects = ["tolist"] if draft.startswith("self") else []
    assert reads == [*selects, "numpy"] * 3


def started(draft: str, gamma: int = 3) -> Engine:
    case = Case(
        family="llama-3.1",
        prompts=random_prompts((40, 70), seed=1),
        new_tokens=(60, 60),
        draft=draft,
        gamma=0 if draft == "none" else gamma,
    )
    engine = build(case)
    engine.start(case.prompts, case.new_tokens)
    return engine


def events_of_a_run(case: Case, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Engine]:
    """The order in which a run launches its passes and reads their verdicts."""
    engine, events = build(case), list[str]()
    engine.start(case.prompts, case.new_tokens)
    for name in ("verify", "_read"):
        original = getattr(engine, name)

        def spy(*arguments: Any, name: str = name, original: Any = original) -> Any:
            events.append(name)
            return original(*arguments)

        monkeypatch.setattr(engine, name, spy)
    engine.run_to_end(ttft_s=0.0)
    return events, engine


def test_a_plain_step_is_launched_before_the_last_one_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = random_prompts((9, 5), seed=2)
    case = Case(family="qwen3", prompts=prompts, new_tokens=(5, 3))
    events, engine = events_of_a_run(case, monkeypatch)
    ahead = ["verify", *["verify", "_read"] * 3, "_read"]  # four rounds, and no pass is wasted
    assert events == ahead and len(engine.rounds) == 4
    assert [len(record.kept_tokens) for record in engine.rounds] == [2, 2, 1, 1]
    tokens = [sequence.generated for sequence in engine.sequences]
    # An end token is met one step late, and what was computed after it is dropped.
    ended = replace(case, eos=frozenset({tokens[0][2]}), new_tokens=(5, 1))
    events, engine = events_of_a_run(ended, monkeypatch)
    assert events == ["verify", *["verify", "_read"] * 2]
    assert engine.sequences[0].generated == tokens[0][:3]
    assert engine.cache.free_pages == engine.cache.pages


def test_a_plain_step_without_pages_waits_for_the_one_before_it() -> None:
    """An end token in it may free some."""
    prompts = random_prompts((9, 5), seed=2)
    case = Case(family="qwen3", prompts=prompts, new_tokens=(6, 6))
    engine = build(case)
    engine.start(case.prompts, case.new_tokens)
    taken = engine.cache.allocate(engine.cache.free_pages)
    with pytest.raises(OutOfPages):
        for _ in range(5):
            engine.round()
    assert 0 < len(engine.rounds) < 5
    assert {len(s.generated) for s in engine.sequences} == {1 + len(engine.rounds)}
    engine.cache.free(taken)
    assert engine.run_to_end(ttft_s=0.0).sequences == run(case).sequences


def test_a_self_draft_begins_before_the_verdict_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = random_prompts((9, 5), seed=3)
    case = Case(
        family="llama-2", prompts=prompts, new_tokens=(9, 4), draft="self-full", gamma=2
    )  # three, then one token of each sequence, and the second one ends
    engine, events = build(case), list[str]()
    engine.start(case.prompts, case.new_tokens)
    for owner, name in ((engine.passes, "draft"), (engine, "_read")):
        original = getattr(owner, name)

        def spy(*arguments: Any, name: str = name, original: Any = original) -> Any:
            events.append(name)
            return original(*arguments)

        monkeypatch.setattr(owner, name, spy)
    result = engine.run_to_end(ttft_s=0.0)
    # The second sequence ends in the first round, and the first one in the third.
    assert events == ["draft", *["draft", "_read"] * 2, "_read"]
    assert result.sequences == run(replace(case, draft="none")).sequences
    assert engine.cache.free_pages == engine.cache.pages


def test_without_pages_for_the_next_draft_a_round_is_committed_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(
        family="llama-3.1",
        prompts=random_prompts((20, 20), seed=1),
        new_tokens=(30, 12),
        draft="self-streamingllm",
        gamma=3,
        page_tokens=4,
    )
    prepared, prepare = list[bool](), Engine._prepare

    def spy(engine: Engine, active: Any) -> Any:
        ending = all(sequence.room <= 4 for sequence in active)  # then nothing is drafted ahead
        found = prepare(engine, active)
        prepared.append(found is not None or ending)
        return found

    monkeypatch.setattr(Engine, "_prepare", spy)
    expected = run(case).sequences
    assert all(prepared)
    assert run(replace(case, extra={"cache_pages": 17})).sequences == expected
    assert not all(prepared)


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_speculative_round_is_read_before_the_next(
    draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = random_prompts((9, 5), seed=3)
    case = Case(family="llama-2", prompts=prompts, new_tokens=(9, 9), draft=draft, gamma=2)
    events, engine = events_of_a_run(case, monkeypatch)
    assert events == ["verify", "_read"] * len(engine.rounds)


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_draft_phase_is_planned_before_its_first_step(
    draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, events = started(draft), list[str]()
    drafter: Any = engine.drafter
    backend = drafter.passes.backend
    plan, forward = backend.plan, drafter.decoder.forward

    def planned(layout: PassLayout) -> AttentionPlan:
        events.append("plan")
        found: AttentionPlan = plan(layout)
        return found

    def stepped(*arguments: Any) -> torch.Tensor:
        events.append("step")
        found: torch.Tensor = forward(*arguments)
        return found

    monkeypatch.setattr(backend, "plan", planned)
    monkeypatch.setattr(drafter.decoder, "forward", stepped)
    drafter.propose(engine.active, 3)
    assert events == ["plan"] * 3 + ["step"] * 3


def test_a_finished_sequence_leaves_the_batch_and_its_pages() -> None:
    case = Case(
        family="qwen2.5",
        prompts=random_prompts((30, 30, 30), seed=4),
        new_tokens=(5, 40, 20),
        draft="self-streamingllm",
        gamma=2,
    )
    engine = build(case)
    engine.start(case.prompts, case.new_tokens)
    sizes, free = [], []
    while engine.active:
        engine.round()
        sizes.append(len(engine.rounds[-1].accepted))
        free.append(engine.cache.free_pages)
    assert sizes[0] == 3 and sizes[-1] == 1 and sizes == sorted(sizes, reverse=True)
    assert free[-1] == engine.cache.pages
    assert [len(s.generated) for s in engine.sequences] == [5, 40, 20]


def test_one_new_token_needs_no_round() -> None:
    case = Case(family="qwen3", prompts=[[1, 2]], new_tokens=[1], draft="self-full", gamma=2)
    result = run(case)
    assert result.rounds == () and result.generated_tokens == 1
    assert result.summary()["tpot_s"] is None


def test_progress_ends_at_the_whole_prompt_and_phases_are_timed() -> None:
    case = Case(
        family="llama-2",
        prompts=random_prompts((90, 50), seed=1),
        new_tokens=(4, 4),
        chunk_tokens=32,
    )
    seen: list[tuple[int, int]] = []
    result = build(case).generate(
        case.prompts, case.new_tokens, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(32, 140), (64, 140), (96, 140), (128, 140), (140, 140)]
    assert set(result.phases) == {*PHASES, "round"} - {"draft"}
    assert len(result.phases["verify"]) == len(result.rounds) == len(result.phases["round"]) == 3
    passes = [sum(times) for name, times in result.phases.items() if name != "round"]
    assert sum(passes) <= result.ttft_s + result.decode_s


def test_short_prompts_share_a_pass_and_long_ones_take_several() -> None:
    passes = prompt_pieces([3, 10, 2], 8)
    sizes = [[piece.stop - piece.start for piece in pieces] for pieces in passes]
    assert sizes == [[3, 5], [5, 2]]


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        ([[1], []], [1, 1], "prompt 1 is empty"),
        ([[1, 101]], [1], "outside the vocabulary of 101"),
        ([[-1]], [1], "outside the vocabulary"),
        ([[1]], [0], "nothing to generate"),
    ],
)
def test_prompts_that_cannot_be_run_are_refused(
    prompts: list[list[int]], new: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(Case(family="llama-2", prompts=prompts, new_tokens=new))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draft": "self-snapkv", "budget": 11}, "too small for SnapKV"),
        ({"draft": "self-streamingllm", "budget": 7}, "use 8 or more"),
        ({"draft": "small-snapkv"}, "for self-speculation"),
        ({"draft": "self-other"}, "unknown draft policy"),
        ({"draft": "self-full", "extra": {"rates": (0.5,)}}, "1 acceptance rates for gamma=2"),
        ({"draft": "self-full", "extra": {"rates": (0.5, 1.5)}}, "must be between 0 and 1"),
        ({"draft": "self-snapkv", "extra": {"snapkv_pool": 4}}, "odd number"),
    ],
)
def test_plans_that_do_not_hold_are_refused(changes: dict[str, Any], message: str) -> None:
    case = Case(family="llama-2", prompts=[[1, 2]], new_tokens=[3], **{"gamma": 2, **changes})
    with pytest.raises(InputError, match=message):
        build(case)


def test_a_summary_gives_the_middle_and_the_tail_of_each_phase() -> None:
    """One slow first occurrence moves the mean, not the median."""
    result = GenerationResult(
        sequences=(FinishedSequence(3, (1, 2), "length"),),
        rounds=(RoundRecord(1, (0,), (1,), 3),),
        phases={"verify": [9.0, *[1.0] * 8, 2.0]},
        ttft_s=0.0,
        decode_s=1.0,
    )
    found = result.summary()["phase_s"]["verify"]
    assert (found["median"], found["p90"]) == (1.0, 2.0)
    assert found["mean"] == pytest.approx(1.9)


def test_time_between_passes_is_that_of_a_mean_round_outside_them() -> None:
    """Plain steps are launched in the round before theirs: two in the first, none in the last."""
    verify, host = [5.0, 5.0, 1.0, 1.0, 5.0], 0.1
    rounds = [seconds + host for seconds in (sum(verify[:2]), *verify[2:], 0.0)]
    result = GenerationResult(
        sequences=(FinishedSequence(3, (1,) * 6, "length"),),
        rounds=(RoundRecord(0, (0,), (1,), 3),) * 5,
        phases={"verify": verify, "round": rounds},
        ttft_s=0.0,
        decode_s=sum(rounds),
    )
    assert result.between_passes_s == pytest.approx(host)


@pytest.mark.parametrize("draft", ["none", "self-full"])
def test_all_passes_lie_within_the_decoding_time(draft: str) -> None:
    gamma = 0 if draft == "none" else 2
    case = Case(family="llama-2", prompts=[[1, 2]], new_tokens=[7], draft=draft, gamma=gamma)
    between_s = build(case).generate(case.prompts, case.new_tokens).between_passes_s
    assert between_s is not None and between_s > 0.0
