from pathlib import Path

from anybit.methods.describe import KINDS, page
from anybit.methods.step import STEPS


def test_the_page_is_current() -> None:
    path = Path(__file__).parents[2] / "docs" / "methods.md"
    assert path.read_text() == page(), "python -m anybit.methods.describe > docs/methods.md"


def test_every_step_has_a_source_and_a_kind() -> None:
    for name in STEPS:
        step = STEPS[name]
        assert step.source and step.__doc__ and any(issubclass(step, kind) for kind, _, _ in KINDS), name
