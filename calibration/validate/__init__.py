"""Compare predicted with measured steps: sample cases, time them, and report the errors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
