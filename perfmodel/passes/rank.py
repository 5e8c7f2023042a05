"""The shard of a model on one rank, with the time curves of its kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from perfmodel.kernels.collectives import Exchange
from perfmodel.kernels.curves import Efficiency
from perfmodel.kernels.latent import LatentCurve
from perfmodel.scenario import Scenario
from perfmodel.specs.dtypes import UNQUANTISED, StoredTypes
from perfmodel.specs.engine import EngineProfile
from perfmodel.specs.gpu import Machine
from perfmodel.specs.labels import Origin
from perfmodel.specs.model import ModelSpec

ACTIVATION_BYTES = 2.0  # bf16


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """The shard of a model on one rank of a machine, with an engine and its kernel curves.

    `dp` groups of `tp` ranks each divide the sequences; each group has all layers but the routed
    experts, which all ranks divide.
    """

    machine: Machine
    spec: ModelSpec
    engine: EngineProfile
    curves: Efficiency
    tp: int = 1
    ep: int = 1
    dp: int = 1
    weight_dtype: str = "bf16"
    expert_dtype: str = "bf16"
    kv_dtype: str = "bf16"
    part_dtypes: tuple[tuple[str, str], ...] = ()
    is_draft: bool = False

    @classmethod
    def of_scenario(cls, scenario: Scenario, spec: ModelSpec, *, tp: int, is_draft: bool) -> Self:
        """The shard of a scenario's target or draft."""
        types = scenario.draft_types if is_draft else scenario.target_types
        dp = scenario.dp if tp == scenario.tp else 1
        return cls(
            machine=scenario.machine,
            spec=spec,
            engine=scenario.engine,
            curves=scenario.kernels,
            tp=tp // dp,
            dp=dp,
            ep=scenario.ep if spec.experts is not None and tp == scenario.tp else 1,
            weight_dtype=types.weights,
            expert_dtype=types.experts,
            kv_dtype=types.kv,
            part_dtypes=types.parts,
            is_draft=is_draft,
        )

    @property
    def gpus(self) -> int:
        """All ranks, which divide the routed experts."""
        return self.tp * self.dp

    @property
    def origin(self) -> Origin:
        """Whether kernel times were "fitted" on this GPU and with as many ranks."""
        return self._on_as_many_ranks(self.engine.kernel_origin(self.machine.gpu))

    @property
    def overhead_origin(self) -> Origin:
        """The origin of the overheads of the engine with as many ranks."""
        return self._on_as_many_ranks(self.engine.origin)

    def _on_as_many_ranks(self, origin: Origin) -> Origin:
        timed = self.engine.is_timed_at(self.gpus)
        return Origin.EXTRAPOLATED if origin == Origin.FITTED and not timed else origin

    @property
    def assumes_layers(self) -> bool:
        """Whether a kind of layer was not measured with these types."""
        return bool(self._unmeasured)

    @property
    def types(self) -> StoredTypes:
        """The storage types of all parts."""
        return StoredTypes(self.weight_dtype, self.expert_dtype, self.kv_dtype, self.part_dtypes)

    @property
    def _unmeasured(self) -> tuple[str, ...]:
        return self.curves.unmeasured_layers(self.spec, self.types)

    def layer_origin(self, layer: str) -> Origin:
        """The origin of a kind of layer that has a curve, which may be that of another type."""
        return Origin.EXTRAPOLATED if layer in self._unmeasured else self.origin

    @property
    def latent_curve(self) -> LatentCurve | None:
        """Times of latent attention; None for other widths than the measured one."""
        return self.curves.latent_curve(self.spec, self.kv_dtype)

    @property
    def assumes_types(self) -> bool:
        """Whether weights or KV are in a type whose kernels were not measured on this GPU."""
        unquantised_kv = self.kv_dtype in UNQUANTISED
        library = self.engine.linear_kernels == "library"
        measured = all(
            dtype in UNQUANTISED or (library and self.curves.quantised[dtype].measured)
            for dtype in self.types.of_weights
        )
        return not (measured and (unquantised_kv or self.has_kv_curve))

    @property
    def has_kv_curve(self) -> bool:
        """Whether attention was measured with the rank's KV type."""
        return self.curves.measures_cache(self.spec, self.kv_dtype)

    @property
    def exchange(self) -> Exchange | None:
        """The all-reduce inside norm kernels; None if the engine has none on this machine."""
        kind = self.machine.link.kind
        return self.curves.collectives.exchange_over(kind, self.engine.all_reduce)
