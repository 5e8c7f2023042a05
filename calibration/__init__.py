"""Measure kernels and acceptance, fit the curves of predictions, and validate the predictions.

The public names of each folder are listed in its `__init__.pyi`. Modules are imported when a name
is first used, so that commands which do not need torch, scipy or pandas run without them.
"""
