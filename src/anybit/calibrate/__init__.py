"""Calibration: one pass over a model, layer by layer, that gathers what the methods ask for and applies them."""

from anybit.calibrate.block import Assignment, Block, RoundedBlock
from anybit.calibrate.run import Event, Finished, FloatModel, Plan, calibrate
from anybit.calibrate.text import CalibrationText, calibration_text

__all__ = [
    "Assignment", "Block", "CalibrationText", "Event", "Finished", "FloatModel", "Plan", "RoundedBlock", "calibrate", "calibration_text",
]  # fmt: skip
