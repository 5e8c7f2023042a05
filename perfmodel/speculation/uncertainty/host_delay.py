"""How much longer a round and a plain step take with a slower host, as far as the GPU waits."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats
from perfmodel.scenario import Scenario
from perfmodel.specs.workload import fullest_group
from perfmodel.speculation.host import host_wait_s, method_of
from perfmodel.speculation.round import RoundEstimate, estimate

# ln(time / predicted) of a round, or of the plain step without a draft; of a plain step
Delays = tuple[Floats, Floats]
_NONE = np.zeros(())


def host_delays(
    scenario: Scenario,
    slowdown: float,
    point: RoundEstimate | None = None,
    batch: ArrayLike | None = None,
    prompt_tokens: ArrayLike | None = None,
) -> Delays:
    """The delays if the host takes `slowdown` times as long, unless GPU time hides it.

    `point` is the estimate of the scenario, if it is known; then its batch and prompt tokens must
    be given, too.
    """
    work = scenario.workload
    if slowdown == 1.0:
        return _NONE, _NONE
    point = point or estimate(scenario)
    prompt = np.asarray(work.prompt_tokens if prompt_tokens is None else prompt_tokens, float)
    rows = np.asarray(work.batch if batch is None else batch, float)
    of_host = fullest_group(rows, scenario.dp)

    def late(method: str, gamma: Floats, passes_s: Floats, total_s: Floats) -> Floats:
        args = (scenario, method, of_host, prompt, gamma, passes_s)
        more_s = host_wait_s(*args, slowdown=slowdown) - host_wait_s(*args)
        return np.asarray(np.log1p(more_s / total_s))

    plain = late("plain", _NONE, point.target_step.total_s, point.plain_tpot_s)
    passes_s = point.draft_total_s + point.verify.total_s
    of_round = late(method_of(scenario), point.gamma, passes_s, point.round_s)
    return np.where(point.gamma > 0, of_round, plain), plain
