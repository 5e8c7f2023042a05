"""Collective time tables from aiconfigurator's measurements, as catalog files.

`message_size` in both source tables counts elements, not bytes: NCCL's half rows at n elements
take as long as its int8 rows at 2n (H100, two ranks, all-gather: 37.0 us at 2,097,152 half, 37.0 at
... int8 twice as many), and half all-reduce at 2^27 elements matches nccl-tests' 2^28 bytes on 8xH200
(1.05 against 1.08 ms). An all-gather's size is the gathered tensor: read as one rank's share,
eight A100s would move 1.6 TB/s over 0.3 TB/s links.
"""
