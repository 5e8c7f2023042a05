"""Drafters: self-speculation with its draft policies, and standalone draft models."""

from runtime.drafting.snapkv import WindowQueries
from runtime.drafting.views import FullView, SinkWindowView, SnapView, View, ViewPolicy

__all__ = ["FullView", "SinkWindowView", "SnapView", "View", "ViewPolicy", "WindowQueries"]
