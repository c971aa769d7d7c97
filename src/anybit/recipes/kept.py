"""An allocation's choice in the work folder: a run that goes on takes it from there, as measuring again takes long and times differ."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from anybit.calibrate.work import refuse_unfinished
from anybit.errors import AnybitError, FileFormatError, UsageError
from anybit.formats import Spec
from anybit.io import strict_json
from anybit.io.save import atomic_file
from anybit.recipes.mixed import Mixed

CHOICE = "choice.json"


class Kept:
    """The file `choice.json` of a work folder. `about`: recipe, model and text, whose choice it is; `resume`: whether a run goes on.

    Raises: UsageError: a run that was killed left its state there, and this one does not go on with it.
    """

    def __init__(self, folder: Path, about: str, resume: bool) -> None:
        self._path, self._digest, self._resume = folder / CHOICE, hashlib.sha256(about.encode()).hexdigest(), resume
        if not resume:
            refuse_unfinished(folder)

    def read(self) -> Mixed | None:
        """What was chosen; None: nothing yet. UsageError: for another recipe, model or text. FileFormatError: the file is damaged."""
        if not self._resume or not self._path.exists():
            return None
        held = strict_json.read(self._path)
        try:
            if held["version"] != 1 or held["digest"] != self._digest:
                raise UsageError(f"{self._path} holds another run's formats: give its recipe, model and text, or another folder")
            formats = {str(name): Spec.parse(text) for name, text in held["formats"].items()}
            kl, bits = ({str(key): float(each) for key, each in held[part].items()} for part in ("kl", "bits"))
            costs = {str(name): {str(key): float(each) for key, each in row.items()} for name, row in held["costs"].items()}
            return Mixed(formats, costs, kl, bits, str(held["taken"]))
        except UsageError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, AnybitError) as error:
            raise FileFormatError(f"{self._path}: no choice of formats ({error}); remove the folder and begin anew") from None

    def write(self, mixed: Mixed) -> None:
        """Keeps it, in one step."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._path) as file:
            file.write(json.dumps({"version": 1, "digest": self._digest, **mixed.as_json()}).encode())
