"""Whether the CUDA graphs of the engine that ran hold a round."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Bools
from perfmodel.scenario import Scenario
from perfmodel.specs.cuda_graphs import DEFAULT_GRAPH_TOKENS, replays_full_graph
from perfmodel.specs.engine import has_v2_runner
from perfmodel.specs.engine_support import VERSIONS, EngineVersion, profile_version
from perfmodel.speculation.host import method_of

if TYPE_CHECKING:
    from perfmodel.speculation.diagnosis.terms import Measured


def lacks_graph(scenario: Scenario, measured: Measured, gamma: ArrayLike) -> Bools:
    """Whether vLLM's graphs, of default size unless known, do not hold a round; by γ."""
    version, batch, drafts = (
        known_version(scenario, measured),
        scenario.workload.batch,
        np.asarray(gamma),
    )
    if version is None or version.engine != "vllm" or measured.exported_graphs:
        return np.zeros(drafts.shape, bool)
    most = largest_graph(measured)
    lacks = batch * (drafts + 1) > most
    if method_of(scenario) in version.mixed_graphs and has_v2_runner(scenario.target):
        lacks = lacks | ~replays_full_graph(batch, drafts, most=most)
    return np.asarray(lacks)


def launches_drafts(scenario: Scenario, measured: Measured) -> bool:
    """Whether the version that ran launches the layers of drafts, and the prediction does not."""
    known, method = known_version(scenario, measured), method_of(scenario)
    if known is None or known == profile_version(scenario.engine.name):
        return False
    return method in known.eager_drafts | known.piecewise_drafts


def largest_graph(measured: Measured) -> int:
    """Tokens of the largest CUDA graph, vLLM's default unless known."""
    return measured.graph_tokens or DEFAULT_GRAPH_TOKENS


def known_version(scenario: Scenario, measured: Measured) -> EngineVersion | None:
    """What ran: the version that was stated or reported, or else that of the engine profile."""
    profile = profile_version(scenario.engine.name)
    if profile and not measured.version and measured.engine in ("", profile.engine):
        return profile
    versions = [one for one in VERSIONS if one.engine == measured.engine]
    return next((v for v in versions if measured.version.startswith(v.version)), None)
