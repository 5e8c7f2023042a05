"""Measures, fits, compares predicted with measured, and publishes the error.

Each folder lists its public names in `__init__.pyi`; a name is imported when it is first used, so
that a command that needs neither torch nor scipy nor pandas runs where they are absent.
"""
