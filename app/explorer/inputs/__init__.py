"""Inputs of the page: the sidebar, and readers of what a user uploads or pastes."""
