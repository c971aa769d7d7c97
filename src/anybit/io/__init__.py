"""Files: safetensors, Hugging Face directories, anybit checkpoints, and saves that happen wholly or not at all."""

from __future__ import annotations

from anybit.io.checkpoint import QuantizedEntry, save_checkpoint
from anybit.io.hf import Source, open_model
from anybit.io.inspect import Inspection, inspect_model
from anybit.io.manifest import verify_directory
from anybit.io.quantization import PartInfo, Quantization, StoredLayer
from anybit.io.safetensors import SafeFile, TensorInfo
from anybit.io.safetensors_writer import write_safetensors
from anybit.io.save import atomic_directory, atomic_file

__all__ = [
    "Inspection",
    "PartInfo",
    "Quantization",
    "QuantizedEntry",
    "SafeFile",
    "Source",
    "StoredLayer",
    "TensorInfo",
    "atomic_directory",
    "atomic_file",
    "inspect_model",
    "open_model",
    "save_checkpoint",
    "verify_directory",
    "write_safetensors",
]
