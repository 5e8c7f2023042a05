"""Serve traffic with an engine, and compare with the simulation of the same requests."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
