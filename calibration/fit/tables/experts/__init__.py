"""The curves of experts, from the tables of fused kernels for mixtures."""
