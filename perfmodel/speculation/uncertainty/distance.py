"""How far a prediction is from what was measured: where its engine and its kernels were timed."""

from __future__ import annotations

from enum import IntEnum

from perfmodel import catalog
from perfmodel.scenario import Scenario
from perfmodel.specs.gpu import GPU, TIMED_VENDOR
from perfmodel.specs.labels import Origin


class Distance(IntEnum):
    """Where engine or kernels were timed, relative to the GPU of a prediction."""

    SAME_GPU = 0
    SISTER = 1  # another GPU of the same architecture
    ARCHITECTURE = 2  # a GPU of another architecture, or none; or other targets on this GPU
    VENDOR = 3  # a GPU of another vendor


def engine_distance(scenario: Scenario) -> Distance:
    """Where the engine was timed; a profile without overheads needs no timing.

    A profile that was fitted to the steps of few targets is as far from others as from another
    architecture: MagicDec's GPUs could only be left out together with their targets.
    """
    engine, gpu = scenario.engine, scenario.machine.gpu
    if engine.measured_on:
        distance = _between(engine.measured_on, gpu)
        fitted = not engine.timed_targets or scenario.target.name in engine.timed_targets
        return distance if fitted else max(distance, Distance.ARCHITECTURE)
    if engine.origin in (Origin.FITTED, Origin.MEASURED, Origin.DATASHEET):
        return Distance.SAME_GPU
    return Distance.ARCHITECTURE if gpu.vendor == TIMED_VENDOR else Distance.VENDOR


def kernel_distance(scenario: Scenario) -> Distance:
    """Where the kernels were timed, with the engine if they are its own."""
    engine, gpu = scenario.engine, scenario.machine.gpu
    own = engine.measured_on if engine.has_own_kernels else ""
    return _between(own or gpu.efficiency, gpu)


def _between(measured: str, gpu: GPU) -> Distance:
    if measured == gpu.name:
        return Distance.SAME_GPU
    other = catalog.gpu(measured)
    if other.architecture == gpu.architecture:
        return Distance.SISTER
    return Distance.ARCHITECTURE if other.vendor == gpu.vendor else Distance.VENDOR
