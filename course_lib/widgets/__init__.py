"""Explorers: a pure `compute` and a pure `draw` bound to controls, one explorer a file."""
