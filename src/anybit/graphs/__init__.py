"""Networks given operator by operator (`models.Graph`): float execution, folding, calibration, and integer-only execution."""
