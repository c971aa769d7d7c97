"""Networks given operator by operator (`models.Graph`): float and integer-only execution, and what leads from one to the other."""

from anybit.graphs.correct import correct_bias
from anybit.graphs.equalization import equalize
from anybit.graphs.floats import execute
from anybit.graphs.fold import fold_batch_norm
from anybit.graphs.lower import quantize
from anybit.graphs.network import IntegerNetwork
from anybit.graphs.ranges import calibrate
from anybit.graphs.sensitivity import bit_operations, hessian_traces, omega, weight_bits

__all__ = [
    "IntegerNetwork",
    "bit_operations",
    "calibrate",
    "correct_bias",
    "equalize",
    "execute",
    "fold_batch_norm",
    "hessian_traces",
    "omega",
    "quantize",
    "weight_bits",
]
