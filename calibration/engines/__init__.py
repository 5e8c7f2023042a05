"""Measure a serving engine, fit its profile, and validate it on points that were held back."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
