"""The time of a pass between ranks: all-reduces, and the gather of the best tokens."""

from __future__ import annotations

import numpy as np

from perfmodel._typing import Floats
from perfmodel.kernels.collectives import ring_seconds
from perfmodel.passes.experts import all_to_all
from perfmodel.passes.parts import Part
from perfmodel.passes.rank import ACTIVATION_BYTES, Rank
from perfmodel.specs.labels import Bound, Origin
from perfmodel.units import Z90


def comm_parts(rank: Rank, rows: Floats, *, head_rows: Floats, all_rows: Floats) -> list[Part]:
    """Two all-reduces per layer, and the gather of a split head's logits or best tokens.

    With expert parallelism, a layer has one all-reduce, split into a reduce-scatter before the
    experts and an all-gather after them, and two all-to-alls that move tokens between the ranks.
    `rows` and `head_rows` are those of one group of ranks, and `all_rows` those of all groups.
    """
    if rank.tp == 1:
        return all_to_all(rank, all_rows)
    message = _message(rank, rows)
    passes = 2 * rank.spec.layers + (rank.exchange is not None)  # and one after the embedding
    if rank.spec.experts is not None and rank.ep > 1:
        passes -= rank.spec.experts.layers
    traffic = 2.0 * (rank.tp - 1) / rank.tp * message
    seconds = passes * (_sum_seconds(rank, message) + np.maximum(_sum_gap(rank, rows), 0.0))
    parts = [_link_part(rank, "all_reduce", seconds, passes * traffic), *all_to_all(rank, all_rows)]
    if rank.engine.vocab_parallel:
        parts.append(_gather(rank, head_rows))
    return parts


def loaded_during_sum(rank: Rank, rows: Floats | float) -> Floats:
    """Seconds by which the GEMM after an all-reduce is shorter, as it loads weights meanwhile.

    Only the runtime's all-reduce inside the norm kernel lets it, and for no longer than it takes.
    """
    if rank.tp == 1 or rank.exchange is None:
        return np.zeros(())
    longest = _sum_seconds(rank, _message(rank, rows))
    return np.clip(-_sum_gap(rank, rows), 0.0, longest)


def _sum_gap(rank: Rank, rows: Floats | float) -> Floats:
    """Seconds that an all-reduce and the GEMM after it take longer in a step than in a chain.

    Where it is negative, the GEMM is shorter, not the all-reduce: kernels timed in plain steps of
    8 and 32 sequences on one of two ranks (the variants "base" and "new" of
    pass-kernels-h200.jsonl) show 0.5 to 0.7 us less for either GEMM after an all-reduce, which
    itself takes as long.
    """
    engine = rank.engine
    return np.asarray(engine.sum_gap_s + engine.sum_wait_s * np.log(np.maximum(rows, 1.0)))


def _gather(rank: Rank, rows: Floats) -> Part:
    """Each rank receives the best token of the others (a value and an index), or all logits.

    Logits of the ranks arrive one after the other, so another kernel joins those of each row.
    """
    curve, link, engine = rank.curves.collectives, rank.machine.link, rank.engine
    row_bytes, joined_s, received = 8.0 * rank.tp, np.zeros(()), 1.0
    if engine.gathers_logits:
        received = (rank.tp - 1) / rank.tp  # a rank has its own
        row_bytes = float(ACTIVATION_BYTES * rank.tp * rank.spec.padded_vocab_per_rank(rank.tp))
        joined_s = 2.0 * row_bytes * rows / rank.machine.gpu.hbm_bandwidth
    gathered = row_bytes * rows
    seconds = curve.all_gather_seconds(
        message_bytes=gathered, ranks=rank.tp, link_bandwidth=link.bandwidth
    )
    if rank.exchange is not None:
        seconds = np.asarray(rank.exchange.gather_s)
    return _link_part(rank, "gather", seconds + joined_s, received * gathered)


def _sum_seconds(rank: Rank, message: Floats) -> Floats:
    """One all-reduce, with the ring of the machine if it has one, otherwise with the curves."""
    link = rank.machine.link
    if link.ring_hop_s is not None and link.ring_bandwidth is not None:
        return ring_seconds(message, rank.tp, hop_s=link.ring_hop_s, rate=link.ring_bandwidth)
    chosen = rank.engine.all_reduce
    if chosen == "exchange" and rank.exchange is None:
        chosen = "best"
    return rank.curves.collectives.all_reduce_seconds(
        message_bytes=message,
        ranks=rank.tp,
        algorithm=chosen,
        link_bandwidth=link.bandwidth,
        row_bytes=ACTIVATION_BYTES * rank.spec.hidden,
    )


def sum_error(rank: Rank, rows: Floats) -> Floats:
    """Standard error of ln(time of an all-reduce) of each number of rows; 0 if it was measured.

    On PCIe machines whose wiring is not known, also those of a measured GPU, the time lies between
    that of the measured node and that of a ring at the rate of two cards. An exchange is
    extrapolated to numbers of ranks that were not measured.
    """
    curve, link = rank.curves.collectives, rank.machine.link
    if rank.tp == 1 or link.ring_hop_s is not None:
        return np.zeros(())
    message = _message(rank, rows)
    if link.kind == "pcie" and rank.tp > 2:
        ring = curve.all_reduce_seconds(
            message_bytes=message, ranks=rank.tp, algorithm="ring", link_bandwidth=link.bandwidth
        )
        return np.abs(np.log(_sum_seconds(rank, message) / ring)) / Z90
    return np.asarray(0.0 if rank.exchange is None else rank.exchange.error_at(rank.tp))


def _message(rank: Rank, rows: Floats | float) -> Floats:
    return np.asarray(ACTIVATION_BYTES * rank.spec.hidden * rows)


def _link_part(rank: Rank, name: str, seconds: Floats, traffic_bytes: Floats) -> Part:
    return Part(
        name,
        rank.engine.comm_factor * seconds,
        np.zeros(()),
        traffic_bytes / rank.machine.link.bandwidth,
        Bound.LINK,
        Origin.EXTRAPOLATED if sum_error(rank, np.ones(())) else rank.origin,
    )
