"""`LatentCurve`: attention over a latent KV cache (MLA), from a roofline and a correction.

All query heads read one latent vector per token (DeepSeek-V2, arXiv 2405.04434), so decoding is
multi-query attention with heads x query tokens packed rows: one token of 64 heads and four tokens
of 16 heads do the same work. The form is latency + smooth max(latent bytes, FLOPs), times a
measured correction over (packed rows, batch, KV tokens). Projections are not included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Bools, Floats
from perfmodel.errors import ConfigError
from perfmodel.kernels.attention import smooth_max
from perfmodel.kernels.interpolate import LogTable

# Widths of the measured kernels (DeepSeek-V3): latent vector, rotary key, and prefill's heads.
LATENT, ROTARY, KEY, VALUE = 512, 64, 192, 128
# Least ratio of the corrections of the smallest and largest measured batch at the longest cache by
# which a kernel is taken not to split caches: 41 and 54 on L40S and A100, at most 2.4 elsewhere.
UNSPLIT_RATIO = 8.0
# A time this many times that of a full GPU is not what a kernel that splits caches takes.
UNSPLIT_TIME = 2.0
# So many times that of more rows is a kernel that others may replace by padding.
PADDED_TIME = 1.1


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentCurve:
    """Times of latent attention in one layer on one rank, with one type of KV cache."""

    kv_dtype: str
    kv_bytes_per_element: float
    kernel_latency_s: float
    memory_efficiency: float
    compute_efficiency: float
    prefill_latency_s: float
    prefill_efficiency: float
    source: str
    correction: LogTable = field(repr=False)  # over (packed rows, batch, KV tokens)
    prefill_correction: LogTable = field(repr=False)  # over (batch x heads, prompt tokens)

    def __post_init__(self) -> None:
        for name in ("kernel_latency_s", "memory_efficiency", "compute_efficiency"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"latent: {name}={getattr(self, name)!r} must be positive")

    def seconds(
        self,
        *,
        batch: ArrayLike,
        kv_tokens: ArrayLike,
        query_tokens: ArrayLike = 1,
        heads: int,
        peak_flops: float,
        hbm_bandwidth: float,
    ) -> Floats:
        """Seconds of decode or verify attention over the latent cache, for one layer on one rank.

        Parameters
        ----------
        batch, kv_tokens, query_tokens : float or array, mutually broadcastable
            Sequences; cached tokens per sequence; new tokens per sequence. [1]
        heads : int
            Query heads on this rank.
        peak_flops, hbm_bandwidth : float
            Datasheet peaks. [FLOP/s, bytes/s]

        Returns
        -------
        array of the broadcast shape [s]
            With more packed rows than were measured, the FLOPs grow at the last utilisation. Never
            less than for fewer query tokens: single cells of the tables are slower than their
            neighbours with more rows.
        """
        rows = np.asarray(query_tokens, float) * heads
        fewer = [k for k in (float(heads), *self.correction.knots[0]) if heads <= k < np.max(rows)]
        at = self._at(batch, kv_tokens, peak_flops=peak_flops, hbm_bandwidth=hbm_bandwidth)
        return np.asarray(reduce(np.maximum, (at(np.minimum(k, rows)) for k in fewer), at(rows)))

    def _at(
        self, batch: ArrayLike, kv_tokens: ArrayLike, *, peak_flops: float, hbm_bandwidth: float
    ) -> Callable[[Floats], Floats]:
        """The time as measured, as a function of packed rows."""
        sequences, kv = np.asarray(batch, float), np.asarray(kv_tokens, float)

        def seconds(rows: Floats) -> Floats:
            base = self.base_seconds(
                sequences, kv, rows, peak_flops=peak_flops, hbm_bandwidth=hbm_bandwidth
            )
            return np.asarray(base * self.correction.factor(rows, sequences, kv))

        return seconds

    def padded_ratio(
        self,
        *,
        batch: ArrayLike,
        kv_tokens: ArrayLike,
        query_tokens: ArrayLike,
        heads: int,
        peak_flops: float,
        hbm_bandwidth: float,
    ) -> Floats:
        """`seconds` over the least time of as many or more rows, at least 1.

        Kernels were timed with one query token, and some numbers of heads took longer than larger
        ones: a B200 takes up to 1.4 times as long for 32 heads as for 64. Verification may run in a
        kernel that pads its rows. Arguments as in `seconds`.
        """
        peaks = {"peak_flops": peak_flops, "hbm_bandwidth": hbm_bandwidth}
        rows, at = np.asarray(query_tokens, float) * heads, self._at(batch, kv_tokens, **peaks)
        more = [knot for knot in self.correction.knots[0] if knot > np.min(rows)]
        padded = reduce(np.minimum, (at(np.maximum(knot, rows)) for knot in more), at(rows))
        padded = np.maximum(padded, at(np.asarray(float(heads))))
        seconds = self.seconds(
            batch=batch, kv_tokens=kv_tokens, query_tokens=query_tokens, heads=heads, **peaks
        )
        return np.asarray(np.maximum(seconds / padded, 1.0))

    def unsplit_ratio(
        self,
        *,
        batch: ArrayLike,
        kv_tokens: ArrayLike,
        query_tokens: ArrayLike = 1,
        heads: int,
    ) -> Floats:
        """How often the measured kernel takes the time of one that splits caches among blocks. [1]

        A kernel that does not split them fills a GPU only at large batches; the efficiency of the
        largest batch is taken for one that does. 1 if the measured kernel splits caches. Arguments
        as in `seconds`.
        """
        rows = np.asarray(query_tokens, float) * heads
        batch, kv = np.asarray(batch, float), np.asarray(kv_tokens, float)
        batches, longest = self.correction.knots[1], self.correction.knots[2][-1]
        one = np.asarray(float(heads))
        few, many = (self.correction.factor(one, at, longest) for at in (batches[0], batches[-1]))
        slower = self.correction.factor(rows, batch, kv) / self.correction.factor(
            rows, batches[-1], kv
        )
        return np.where(few >= UNSPLIT_RATIO * many, np.maximum(slower, 1.0), 1.0)

    def base_seconds(
        self, batch: Floats, kv: Floats, rows: Floats, *, peak_flops: float, hbm_bandwidth: float
    ) -> Floats:
        """The form without its correction; `rows` are heads times query tokens. [s]"""
        size = batch * kv * (LATENT + ROTARY) * self.kv_bytes_per_element
        flops = 2.0 * batch * rows * kv * (2 * LATENT + ROTARY)
        body = smooth_max(
            size / (hbm_bandwidth * self.memory_efficiency),
            flops / (peak_flops * self.compute_efficiency),
        )
        return np.asarray(self.kernel_latency_s + body)

    def prefill_seconds(
        self,
        *,
        batch: ArrayLike,
        new_tokens: ArrayLike,
        cached_tokens: ArrayLike = 0,
        heads: int,
        peak_flops: float,
        hbm_bandwidth: float,
    ) -> Floats:
        """Seconds of causal attention with expanded keys and values; arguments as in `seconds`.

        With cached tokens, the efficiency of a prompt with the same number of query-key pairs is
        used.
        """
        batch, new = np.asarray(batch, float), np.asarray(new_tokens, float)
        length = np.sqrt(new**2 + 2.0 * new * np.asarray(cached_tokens, float))
        base = self.prefill_base_seconds(batch * heads, length, peak_flops=peak_flops)
        return np.asarray(base * self.prefill_correction.factor(batch * heads, length))

    def prefill_base_seconds(self, units: Floats, tokens: Floats, *, peak_flops: float) -> Floats:
        """The form of prefill without its correction; `units` are batch x heads. [s]"""
        flops = units * tokens**2 * (KEY + VALUE)
        return np.asarray(self.prefill_latency_s + flops / (peak_flops * self.prefill_efficiency))

    def in_range(
        self,
        *,
        batch: ArrayLike,
        kv_tokens: ArrayLike,
        query_tokens: ArrayLike = 1,
        heads: int,
    ) -> Bools:
        """Whether each point is inside the measured range; arguments as in `seconds`.

        The times of a kernel that does not split caches are outside where it matters.
        """
        points = (np.asarray(query_tokens, float) * heads, batch, kv_tokens)
        inside = [
            (np.asarray(x, float) >= k[0]) & (np.asarray(x, float) <= k[-1])
            for x, k in zip(points, self.correction.knots, strict=True)
        ]
        slower = self.unsplit_ratio(
            batch=batch, kv_tokens=kv_tokens, query_tokens=query_tokens, heads=heads
        )
        return np.asarray(inside[0] & inside[1] & inside[2] & (slower < UNSPLIT_TIME))
