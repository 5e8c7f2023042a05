"""What a recommendation does not cover: its search, its times, and the engine that will run it."""

from __future__ import annotations

from collections.abc import Collection

from perfmodel.planning.candidate import Candidate
from perfmodel.specs.draft_methods import METHODS
from perfmodel.specs.engine_support import EngineVersion, profile_version
from perfmodel.specs.workload import SLO, Prefill
from perfmodel.speculation import (
    BreakEven,
    estimate,
    most_sequences_in_graph,
    waiting_notes,
    without_speculation,
)


def caveats(
    best: Candidate,
    *,
    studied: Candidate | None,
    batch: BreakEven | None,
    limits: SLO,
    version: EngineVersion | None,
    drafts: Collection[str],
) -> tuple[str, ...]:
    """Caveats of the best plan, of the search, and of an engine that was not measured."""
    engine = best.scenario.engine.name
    notes = (
        *_not_searched(best, version, drafts),
        *_first_token(best, limits),
        *best.scenario.notes,
        *waiting_notes(estimate(best.scenario)),
    )
    notes = (*notes, *_steps(studied, batch))
    method = best.scenario.plan.method
    if version is None and method is not None:
        notes = (
            f"`specroof run` has no {method.label} drafts: state the engine that will run the "
            f"plan with --runs-on, and measure its acceptance",
            *notes,
        )
    if version is not None and best.scenario.ep > 1:
        notes = (
            "export does not write expert or data parallelism yet: set it in the engine",
            *notes,
        )
    if version is None or version == profile_version(engine):
        return notes
    return (
        f"{version.label} runs the plan, but the times are those of engine {engine}: measure "
        f"yours with `specroof calibrate engine` and give its profile as --engine",
        *notes,
    )


def _steps(studied: Candidate | None, batch: BreakEven | None) -> list[str]:
    """Notes on ranges of batches that end where passes with prompts exceed CUDA graphs."""
    if batch is None or studied is None:
        return []
    notes = []
    ends = {end for first, last in batch.ranges for end in (first - 1, last)}
    for scenario, passes in (
        (without_speculation(studied.scenario), "plain"),
        (studied.scenario, "draft"),
    ):
        most = most_sequences_in_graph(scenario)
        if most is None or not any(abs(end - most) <= 0.02 * most for end in ends):
            continue
        prompt, limit = scenario.workload.prompt_tokens, int(scenario.engine.graph_tokens)
        kind = "" if passes == "plain" else " that verify drafts"
        notes.append(
            f"a range of batches ends at {most} because larger passes{kind} with a prompt of "
            f"{prompt:,} tokens exceed the {limit} tokens of the engine's largest CUDA graph; "
            f"this step was not measured, and prompts of different lengths spread it"
        )
    return notes


def _first_token(best: Candidate, limits: SLO) -> list[str]:
    """What a limit on the first token counts if other GPUs process the prompts."""
    is_shared = best.scenario.workload.prefill is Prefill.SHARED
    if limits.ttft_s is None or is_shared:
        return []
    return [
        "the limit on ttft is compared with the time of a prompt alone on a machine like this "
        "one; `simulate` leaves out the prompt, and counts the wait for a place in the decode "
        "batch"
    ]


def _not_searched(
    best: Candidate, version: EngineVersion | None, drafts: Collection[str]
) -> list[str]:
    """A note on draft heads that the engine runs and that were not searched.

    MTP counts if the target has such a head, and EAGLE-3 beside it or if no draft pays.
    """
    target = best.scenario.target
    runs = {"mtp", "eagle3"} if version is None else set(version.methods)
    mtp = bool(target.mtp_layers) and "mtp" in runs and "mtp" not in drafts
    heads = ["mtp"] if mtp else []
    if "eagle3" in runs and "eagle3" not in drafts and (mtp or not best.scenario.plan.speculates):
        heads.append("eagle3")
    if not heads:
        return []
    labels = " and ".join(METHODS[name].label for name in heads)
    has = f"{target.name} has an MTP head, but " if mtp else ""
    choices = ",".join([*heads, *drafts])
    return [f"{has}{labels} drafts were not searched: give --draft {choices}"]
