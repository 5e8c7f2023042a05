"""Acceptance of drafts: measured on text, fitted, reported, imported from engines."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
