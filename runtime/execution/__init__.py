"""Forward passes: prefill, decode steps in CUDA graphs or eagerly, sampling."""
