"""Times of kernels: GEMMs, attention, experts and collectives."""

from perfmodel.kernels.attention import AttentionCurve, PrefillTable
from perfmodel.kernels.attention_library import DecodeTable, LibraryAttention, TallBlocks
from perfmodel.kernels.attention_scheduled import BlockTable, ScheduledAttention
from perfmodel.kernels.attention_split import (
    BLOCKS_PER_SM,
    TILE_ROWS,
    AttentionCall,
    SplitKV,
    tile_index,
)
from perfmodel.kernels.attention_tail import carried_share, saturating_share, tail_ratio
from perfmodel.kernels.collectives import Exchange, MeasuredTimes
from perfmodel.kernels.curves import Efficiency
from perfmodel.kernels.experts import ExpertsCurve
from perfmodel.kernels.gemm import GemmCurve, MeasuredRatios, Waves, roofline_seconds
from perfmodel.kernels.interpolate import LogTable
from perfmodel.kernels.latent import LatentCurve

__all__ = [
    "BLOCKS_PER_SM",
    "TILE_ROWS",
    "AttentionCall",
    "AttentionCurve",
    "BlockTable",
    "DecodeTable",
    "Efficiency",
    "Exchange",
    "ExpertsCurve",
    "GemmCurve",
    "LatentCurve",
    "LibraryAttention",
    "LogTable",
    "MeasuredRatios",
    "MeasuredTimes",
    "PrefillTable",
    "ScheduledAttention",
    "SplitKV",
    "TallBlocks",
    "Waves",
    "carried_share",
    "roofline_seconds",
    "saturating_share",
    "tail_ratio",
    "tile_index",
]
