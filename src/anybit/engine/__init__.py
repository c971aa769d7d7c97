"""Generation: the engine, its state, sampling, streamed text."""

from __future__ import annotations

from anybit.engine.engine import Engine
from anybit.engine.generate import Piece, generate
from anybit.engine.sampling import Sampling
from anybit.engine.state import State
from anybit.engine.text import Detokenizer, StopFilter

__all__ = ["Detokenizer", "Engine", "Piece", "Sampling", "State", "StopFilter", "generate"]
