"""A tensor-parallel speculative engine that executes the scenarios that `perfmodel` predicts.

`__init__.pyi` lists the public names, once; each is imported when it is first used, so that
`import runtime` needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
