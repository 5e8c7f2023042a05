"""Scenarios of rounds on an H200, and what measured times say of them."""

from perfmodel import parse_scenario
from perfmodel.scenario import Scenario
from perfmodel.speculation.diagnosis import Diagnosis, Measured, diagnose


def ran(batch: int = 24, context: int = 4096, **values: object) -> Scenario:
    stated = {"draft": "llama-3.2-1b", "draft_policy": "full", "gamma": 3, "gpu": "h200"}
    stated |= {"batch": batch, "prompt_tokens": context, "engine": "kernels"}
    return parse_scenario(stated | values).scenario()


def explained(scenario: Scenario, version: str = "", **measured: object) -> Diagnosis:
    engine = "vllm" if version else ""
    return diagnose(scenario, Measured(engine=engine, version=version, **measured))  # type: ignore[arg-type]
