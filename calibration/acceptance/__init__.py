"""Measure the acceptance of drafts on text, fit and report it, and import it from engines."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
