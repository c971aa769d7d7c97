"""A run with an allocation that was killed goes on with the formats that it had chosen, though times measured again would choose others."""

import json
from pathlib import Path

import pytest

from anybit.calibrate import Event
from anybit.errors import FileFormatError, UsageError
from anybit.recipes import mixed
from anybit.recipes.quantize import quantize_recipe
from anybit.recipes.schema import Recipe, parse_recipe


def recipe(limit: float = 12.0) -> Recipe:
    return parse_recipe({
        "version": 1, "name": "r", "calibration": {"sequences": 2, "length": 32},
        "rules": [{"match": r"layers\.[01]\..*(q|k|up)_proj", "format": "int4@64", "rounding": {"nearest": {"importance": True}}}],
        "allocation": {"latency_ms": limit, "formats": ["int2@64+scale=mse", "int4@64+scale=mse"], "cost": "hawq"},
    }, "r")  # fmt: skip


class Killed(Exception):
    pass


def test_a_killed_run_keeps_its_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def times(most: float) -> None:
        monkeypatch.setattr(mixed, "latency_ms", lambda linear: most if linear.weight.format.element.bits == 4 else 1.0)

    def kill(event: Event) -> None:
        if event.what == "layer 2" and event.loss is None:
            raise Killed

    times(3.0)
    whole = quantize_recipe("pycoder-5m", tmp_path / "whole", recipe())
    assert whole.mixed is not None and "int4@64+scale=mse" in map(str, whole.mixed.formats.values())
    with pytest.raises(Killed):
        quantize_recipe("pycoder-5m", tmp_path / "out", recipe(), work=tmp_path / "work", progress=kill)
    times(100.0)  # now nothing but 2 bits fits
    with pytest.raises(UsageError, match=r"work holds an unfinished run: give --resume"):
        quantize_recipe("pycoder-5m", tmp_path / "out", recipe(), work=tmp_path / "work")
    with pytest.raises(UsageError, match=r"choice.json holds another run's formats: give its recipe, model and text"):
        quantize_recipe("pycoder-5m", tmp_path / "out", recipe(13.0), work=tmp_path / "work", resume=True)
    again = quantize_recipe("pycoder-5m", tmp_path / "out", recipe(), work=tmp_path / "work", resume=True)
    assert again.mixed == whole.mixed
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


@pytest.mark.parametrize("damage", ["{}", "[1]", '{"version": 1, "digest": 5}', "nonsense", "kl"])
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    from anybit.recipes.kept import CHOICE, Kept

    kept = Kept(tmp_path, "about", resume=True)
    assert kept.read() is None
    kept.write(mixed.Mixed({}, {"w": {"int4@64": 1.0}}, {"mixed": 0.5}, {"mixed": 4.25}, "mixed"))
    found = kept.read()
    assert found is not None and found.kl == {"mixed": 0.5}
    text = json.dumps({**json.loads((tmp_path / CHOICE).read_text()), "kl": 3}) if damage == "kl" else damage
    (tmp_path / CHOICE).write_text(text)
    with pytest.raises((FileFormatError, UsageError), match=r"choice.json"):
        kept.read()
