"""How well predicted instances agree with the truth: matching, scores, tables of them."""

from __future__ import annotations
