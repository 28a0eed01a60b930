"""Batch instance segmentation of cells in microscopy folders."""

__version__ = "0.1.0"
