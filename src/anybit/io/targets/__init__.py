"""Formats of other tools that models are written in: one file each, found by name (`--to`)."""

from __future__ import annotations

from anybit.io.targets.target import TARGETS, Held, Plan, Source, Step, Target

__all__ = ["TARGETS", "Held", "Plan", "Source", "Step", "Target"]
