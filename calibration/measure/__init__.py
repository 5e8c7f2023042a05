"""Time the kernels of a GPU: the grid of cells, the timer, and the run."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
