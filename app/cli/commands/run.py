"""`specroof run`: the engine over a folder of weights, a catalog shape or a scenario."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from app.cli.overrides import stated_values
from perfmodel import ConfigError, DoesNotFit, SpecroofError, catalog, parse_scenario
from runtime import DraftChoice, EngineError, download_model, hf_config, launch_ranks, parse_options

_OUTCOMES = {2: ConfigError, 3: DoesNotFit}


def run_mode(mode: str, arguments: Sequence[str], scenario: str | None) -> int:
    """Launch the ranks of one run and wait; flags override the scenario's values.

    Raises
    ------
    SpecroofError
        For bad input, a cache that is too small, or a rank that failed; its message in one line.
    """
    stated = [*_scenario_words(mode, scenario), *arguments]
    try:
        options = parse_options([mode, *stated])
        with TemporaryDirectory(prefix="specroof-models-") as folder:
            for flag, model in (("--model", options.model), ("--draft", options.draft)):
                if model is not None and not model.is_dir():
                    if not options.random_weights:
                        raise ConfigError(
                            f"{flag} {model} is no folder of weights; name one, or add "
                            f"--random-weights to run a catalog model's shape"
                        )
                    stated += [flag, _write_config(str(model), Path(folder))]
            launch_ranks([sys.executable, "-m", "runtime.bench", mode, *stated], options.tp)
    except EngineError as error:
        raise _outcome(error) from error
    return 0


def run_bench(models: Sequence[str], *, tp: int, repeats: int, output: Path | None) -> int:
    """Print the table of step times of these models, random weights, on this machine's GPUs.

    Raises
    ------
    SpecroofError
        Without a GPU, for an unknown model, or when a rank failed; in one line.
    """
    with TemporaryDirectory(prefix="specroof-models-") as folder:
        folders = [
            model if Path(model).is_dir() else _write_config(model, Path(folder))
            for model in models
        ]
        words = ["--model", *folders, "--tp", str(tp), "--repeats", str(repeats)]
        if output is not None:
            words += ["--output", str(output)]
        try:
            launch_ranks([sys.executable, "-m", "runtime.bench.table", *words], tp)
        except EngineError as error:
            raise _outcome(error) from error
    return 0


def run_download(model: str, output: Path, *, token_variable: str, revision: str | None) -> None:
    """Fetch a model from the hub.

    Raises
    ------
    ConfigError
        If it cannot be fetched, in one line.
    """
    try:
        download_model(model, output, token_variable=token_variable, revision=revision)
    except EngineError as error:
        raise _outcome(error) from error
    print(f"{model}: {output}")


def _outcome(error: EngineError) -> SpecroofError:
    """The engine's outcome as the command line's, with its exit code."""
    outcome = _OUTCOMES.get(error.exit_code, SpecroofError)(str(error))
    outcome.exit_code = error.exit_code
    return outcome


def _write_config(model: str, folder: Path) -> str:
    """A folder with the config.json of a catalog model, hub id or config file."""
    spec = catalog.model(model)
    own = folder / spec.name
    own.mkdir(exist_ok=True)
    (own / "config.json").write_text(json.dumps(hf_config(spec)), encoding="utf-8")
    return str(own)


def _scenario_words(mode: str, scenario: str | None) -> list[str]:
    """The flags that a scenario stands for: the object that was predicted is the one that runs."""
    if scenario is None:
        return []
    stated = parse_scenario(stated_values(scenario, {}), origin=scenario)
    plan = stated.plan()
    words = ["--model", stated.target, "--tp", str(stated.tp), "--batch", str(stated.batch)]
    words += ["--prefix-tokens", str(stated.prompt_tokens)]
    words += ["--gen-tokens", str(stated.output_tokens)]
    if mode == "baseline":
        return words
    drafts = {"none": "baseline", "self": "selfspec"}.get(plan.draft, "standalone")
    if drafts != mode:
        raise ConfigError(
            f"{scenario}: its draft is {plan.draft!r}; run it as `specroof run {drafts}`"
        )
    acceptance = stated.given_acceptance(plan.gamma)
    if acceptance is not None:
        known = acceptance.per_position  # the last one holds for every position after it
        rates = [known[min(i, len(known) - 1)] for i in range(plan.gamma)]
        words += ["--acceptance", ",".join(f"{rate:.6g}" for rate in rates)]
    return [*words, *_draft_words(plan)]


def _draft_words(plan: DraftChoice) -> list[str]:
    words = ["--gamma", str(plan.gamma), "--draft-policy", plan.policy]
    words += ["--sink", str(plan.sink_tokens)]
    if plan.kv_budget_tokens is not None:
        words += ["--kv-budget", str(plan.kv_budget_tokens)]
    if plan.draft_tp is not None:
        words += ["--draft-tp", str(plan.draft_tp)]
    if plan.draft != "self":
        words += ["--draft", plan.draft]
    return words
