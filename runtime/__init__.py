"""Tensor-parallel speculative decoding engine, which runs the scenarios that `perfmodel` predicts.

The public names are listed in `__init__.pyi` and imported on first use, so that `import runtime`
does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
