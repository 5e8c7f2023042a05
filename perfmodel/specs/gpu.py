"""`GPU`, `Link` and `Machine`: datasheet figures in SI units."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from perfmodel.errors import ConfigError
from perfmodel.specs.labels import Origin

TIMED_VENDOR = "NVIDIA"  # the only one on whose GPUs kernels and steps were timed
_NVIDIA = ("volta", "turing", "ampere", "ada", "hopper", "blackwell", "rubin")


@dataclass(frozen=True, slots=True, kw_only=True)
class GPU:
    """One accelerator, as described by its datasheet.

    FLOP/s are dense. `efficiency` is the catalog folder with the kernel curves for this GPU;
    `efficiency_origin` is "fitted" if they were measured on it and "extrapolated" if they are those
    of the nearest architecture, chosen for `efficiency_reason`. `memory_bytes` is the memory
    visible to a process, `datasheet_memory_bytes` the nominal one. `path` is the file of a GPU that
    is not in the catalog.
    """

    name: str
    architecture: str
    sm_count: int
    peak_flops: float  # dense bf16, FLOP/s
    memory_bytes: float
    hbm_bandwidth: float  # bytes/s
    l2_bytes: float
    efficiency: str
    efficiency_origin: Origin
    source: str
    datasheet_memory_bytes: float | None = None
    efficiency_reason: str = ""
    path: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for key in ("sm_count", "peak_flops", "memory_bytes", "hbm_bandwidth", "l2_bytes"):
            if not 0 < getattr(self, key) < math.inf:
                value = getattr(self, key)
                raise ConfigError(f"{self.name}: {key}={value!r} must be positive and finite")
        if not self.source:
            raise ConfigError(f"{self.name}: source is empty; name the datasheet")

    @property
    def vendor(self) -> str:
        """ "NVIDIA", "AMD", or the architecture if its vendor is not known here."""
        name = self.architecture.lower()
        if name.startswith(_NVIDIA):
            return TIMED_VENDOR
        return "AMD" if name.startswith(("cdna", "rdna")) else self.architecture

    @property
    def reference(self) -> str:
        """What a user gives to select this GPU: its catalog name, or the path of its file."""
        return self.path or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The interconnect between the GPUs of one machine.

    `ring_hop_s` and `ring_bandwidth` are set if the ring all-reduce of the machine is known.
    """

    kind: str  # "nvlink", "pcie" or "infinity-fabric"
    bandwidth: float  # bytes/s per GPU and direction, half the usual figure
    source: str
    ring_hop_s: float | None = None
    ring_bandwidth: float | None = None  # bytes/s of one GPU

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth < math.inf:
            raise ConfigError(f"link bandwidth {self.bandwidth!r} must be positive and finite")
        if (self.ring_hop_s is None) != (self.ring_bandwidth is None):
            raise ConfigError("ring_hop and ring_bandwidth of a link must be given together")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The GPUs of one node and their interconnect."""

    name: str
    gpu: GPU
    link: Link
    gpus_per_node: int
    source: str

    def check_tp(self, tp: int) -> None:
        """Refuse more ranks than the node has GPUs; links between nodes are not modelled."""
        if tp > self.gpus_per_node:
            raise ConfigError(
                f"tp={tp} exceeds the {self.gpus_per_node} GPUs of {self.name}; "
                f"use a tp of at most {self.gpus_per_node}"
            )
