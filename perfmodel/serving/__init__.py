"""Simulation of requests over time: traffic, batching and round times."""

from perfmodel.serving.acceptance import AcceptanceProcess, scenario_acceptance
from perfmodel.serving.choose_gamma import LEAST_GOOD, choose_for_traffic
from perfmodel.serving.fixed_batch import simulate_batch
from perfmodel.serving.replicas import enough_in_simulation
from perfmodel.serving.round_times import RoundTimes
from perfmodel.serving.scheduler import Serving, Simulation
from perfmodel.serving.simulate import (
    SCHEDULE_GAMMAS,
    ServingRun,
    compared_gammas,
    simulate_requests,
)
from perfmodel.serving.traces import (
    assumed_unit,
    first_rows,
    mean_lengths,
    recorded_acceptance,
    trace_rows,
)
from perfmodel.serving.traffic import RequestChunk, Traffic, TrafficShape, lengths

__all__ = [
    "LEAST_GOOD",
    "SCHEDULE_GAMMAS",
    "AcceptanceProcess",
    "RequestChunk",
    "RoundTimes",
    "Serving",
    "ServingRun",
    "Simulation",
    "Traffic",
    "TrafficShape",
    "assumed_unit",
    "choose_for_traffic",
    "compared_gammas",
    "enough_in_simulation",
    "first_rows",
    "lengths",
    "mean_lengths",
    "recorded_acceptance",
    "scenario_acceptance",
    "simulate_batch",
    "simulate_requests",
    "trace_rows",
]
