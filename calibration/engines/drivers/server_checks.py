"""Refuse a running server that does not run what the records of its times would state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from calibration.engines.observed import check_step
from calibration.engines.plan import MODEL_ENGINE, point_scenario
from calibration.engines.records import Point, Setup
from perfmodel import ConfigError, catalog
from perfmodel.catalog.checkpoint_ids import checkpoint_id
from perfmodel.errors import printable
from perfmodel.specs import METHODS, MethodKind

_SHAPE = (
    *("layers", "hidden", "query_heads", "kv_heads", "head_dim", "ffn_hidden", "vocab"),
    *("experts", "latent", "linear", "local"),
)


class OtherServer(ConfigError):
    """A server that does not run the configuration that the records would state."""


def check_model(url: str, names: Sequence[str], target: str) -> list[str]:
    """Notes on a model that is served under `names`: one if the catalog knows none of them.

    Raises `OtherServer` if it has other layers than `target`, or weights of another type.
    """
    wanted = catalog.model(target)
    for name in names:
        try:
            found = checkpoint_id(name)
        except ConfigError:
            continue
        served, spec = f"{url} serves {printable(name[:80])}", catalog.model(found.model)
        weights = found.weight_dtype or spec.weight_dtype or "bf16"
        if any(getattr(spec, key) != getattr(wanted, key) for key in _SHAPE):
            raise OtherServer(
                f"{served}, which is {spec.name}, not {wanted.name}; give --target {spec.name}, or "
                f"start the server with {wanted.name}"
            )
        if weights != (wanted.weight_dtype or "bf16"):
            raise OtherServer(
                f"{served} with {weights} weights, and {wanted.name} has "
                f"{wanted.weight_dtype or 'bf16'}; give the folder of the served checkpoint as "
                f"--target, or start the server with {wanted.name}"
            )
        return []
    return [
        f"{url} serves {printable(names[0][:80])}, which the catalog does not know, so it was not "
        f"checked that this is {wanted.name}"
    ]


def check_drafts(url: str, setup: Setup, counted: Mapping[str, float]) -> None:
    """Raise `OtherServer` if the counters show other drafts per round than the setup's."""
    drafts, served = counted.get("drafts", 0.0), counted.get("positions", 0.0)
    if not setup.gamma and (drafts or served or counted.get("accept_length", 0.0) > 1.0):
        raise OtherServer(
            f"{url} speculates, so its steps are not plain ones; start it without speculation, or "
            f"give its --method and --gamma"
        )
    if not served and drafts:
        served = counted.get("draft_tokens", setup.gamma * drafts) / drafts
        if setup.method in METHODS and METHODS[setup.method].kind is MethodKind.LOOKUP:
            served = max(served, float(setup.gamma))  # it may find fewer
    if served and round(served) != setup.gamma:
        raise OtherServer(
            f"{url} drafts {served:.3g} tokens per round, not {setup.gamma}; give --gamma "
            f"{served:.0f}, or start it with {setup.gamma} speculative tokens"
        )


def check_counters(url: str, pages: Sequence[Mapping[str, float]], names: Iterable[str]) -> None:
    """Raise `OtherServer` if a counter falls from one page to the next."""
    for name in names:
        values = [page.get(name, 0.0) for page in pages]
        if values != sorted(values):
            raise OtherServer(
                f"{url} counts less than before (in {name}), as after a restart; keep the server "
                f"running, and measure again"
            )


def check_queue(runs: Sequence[Mapping[str, float]], point: Point) -> None:
    """Raise `ConfigError` if requests of a point waited and never all ran together."""
    running, waiting = (max(run[name] for run in runs) for name in ("running", "waiting"))
    if waiting and running < point.batch:
        raise ConfigError(
            f"the server ran at most {running:.0f} of {point.batch} sequences at once, and "
            f"{waiting:.0f} waited; start it with a larger --max-num-seqs or more memory for KV, "
            f"or give --batch 1:{max(1.0, running):.0f}"
        )


def check_time(url: str, point: Point, seconds: float, *, gpu: str) -> None:
    """Raise `ConfigError` if a step is shorter than its reads of weights and KV, as `explain`."""
    scenario = point_scenario(
        point.setup,
        gpu=gpu,
        engine=MODEL_ENGINE,
        batch=point.batch,
        prompt=point.prompt_tokens,
    )
    try:
        check_step(seconds, url, scenario, drafts=point.setup.gamma)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; or the server runs fewer sequences at once (--max-num-seqs)"
        ) from error
