"""`Workload` and `SLO`: the requests, and the limits on time and memory."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from perfmodel._typing import Floats
from perfmodel.errors import ConfigError, either, shown


class Prefill(StrEnum):
    """Where prompts are computed."""

    SHARED = "shared"  # chunked, in the passes that decode
    DISAGGREGATED = "disaggregated"  # on other GPUs, which are not counted

    @classmethod
    def of(cls, name: str) -> Prefill:
        """The value with that name; `ConfigError` if there is none."""
        if name not in list(cls):
            raise ConfigError(f"unknown prefill {name!r}; use {either(cls)}")
        return cls(name)


def fullest_group(batch: Floats, groups: int) -> Floats:
    """Sequences of the fullest group if `batch` sequences are divided as evenly as possible."""
    return batch if groups == 1 else np.ceil(batch / groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Concurrent requests with equally long prompts and outputs.

    `prefix_hit_rate` is the share of a prompt that is already in the prefix cache.
    """

    batch: int
    prompt_tokens: int
    output_tokens: int = 256
    prefill: Prefill = Prefill.SHARED
    prefix_hit_rate: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.prefix_hit_rate < 1.0:
            raise ConfigError(
                f"prefix_hit_rate={self.prefix_hit_rate!r} is not valid; use 0 to below 1"
            )
        for field in ("batch", "prompt_tokens", "output_tokens"):
            value = getattr(self, field)
            if isinstance(value, bool) or not math.isfinite(value) or value < 1 or value % 1:
                raise ConfigError(f"{field}={value!r} must be a whole number of at least 1")


def check_decodes(output_tokens: int) -> None:
    """Raise `ConfigError` if requests have no token after the first."""
    if output_tokens == 1:
        raise ConfigError(
            "output_tokens=1 leaves nothing to decode, as a prompt's prefill yields the first "
            "token; use at least 2"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SLO:
    """Upper limits, None if not stated; `memory_fraction` is relative to the GPU's memory."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    memory_fraction: float | None = None

    @property
    def limits_times(self) -> bool:
        """Whether it limits TTFT or TPOT."""
        return self.ttft_s is not None or self.tpot_s is not None


_LIMIT = re.compile(r"^(ttft|tpot|memory)\s*<=?\s*([0-9.]+(?:e-?[0-9]+)?)\s*(us|ms|s|%)$", re.I)


def parse_slo(text: str) -> SLO:
    """Parse limits such as `"ttft<2s; tpot<25ms; memory<90%"`.

    Raises `ConfigError` if a term is empty or not a name, `<`, a positive number and a unit.
    """
    limits: dict[str, float] = {}
    terms = [part.strip() for part in text.replace(",", ";").split(";")] if text.strip() else []
    for term in terms:
        if not term:
            raise ConfigError(f"SLO {shown(text)} has an empty term; remove the extra separator")
        match = _LIMIT.match(term)
        if match is None:
            raise ConfigError(
                f"SLO term {term!r} is not valid; write ttft<2s, tpot<25ms or memory<90%"
            )
        what, value = match[1].lower(), _positive(match[2], term)
        unit = match[3].lower()
        if (unit == "%") != (what == "memory"):
            raise ConfigError(
                f"SLO term {term!r} has the wrong unit; use % for memory, s, ms or us for times"
            )
        key = "memory_fraction" if what == "memory" else f"{what}_s"
        if key in limits:
            raise ConfigError(f"SLO term {term!r} limits {what} a second time; give one limit")
        if unit == "%" and value > 100:
            raise ConfigError(f"SLO term {term!r} is not valid; use at most 100%")
        limits[key] = value * {"s": 1.0, "ms": 1e-3, "us": 1e-6, "%": 0.01}[unit]
    return SLO(**limits)


def _positive(text: str, term: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"SLO term {term!r} is not valid: {text!r} is not a positive number")
    return value
