"""Running from maps: what they are made for, and the session's weights mapped from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from popxl import Variable

from config import BloomConfig
from modelling.program import InferenceSession
from utils import distributed
from utils.checkpoints.memmap.manifest import MANIFEST, map_settings
from utils.checkpoints.memmap.parts import part_files, variables_of
from utils.checkpoints.memmap.tensor_file import map_tensors
from utils.checkpoints.memmap.verification import open_manifest, refuse, verify
from utils.our_runtime import tell_bus_errors
from utils.setup import UserError


class MemoryMaps:
    """The maps of a folder, for a configuration that they fit.

    Sizes and headers of all files are checked, and with `verify_memmap` their checksums.

    Attributes:
        config: the configuration given, with what the maps' checkpoint decides.
        held: what must live as long as these maps: an open folder and its lock, or None.

    Raises:
        UserError: where there are none, they are made for other settings, or a file is missing
            or altered.
    """

    held: object = None

    def __init__(self, config: BloomConfig):
        self.path = Path(str(config.execution.memmap_dir)).expanduser()
        self._manifest = open_manifest(self.path)
        settings = self._manifest.settings
        self.config = config.changed(
            hf_model=self._manifest.hf_model,
            tie_word_embeddings=bool(settings.get("tie_word_embeddings")),
            residual_after_norm=bool(settings.get("residual_after_norm")),
        )
        self._check_settings()
        if config.execution.verify_memmap and distributed.first_here():
            verify(self.path)
        else:
            self._check_files()

    def write(self, session: InferenceSession) -> None:
        """Make the maps the session's weights: nothing of them is read."""
        tell_bus_errors()
        for file, part in part_files(session).items():
            session.write_variables_data(_fitting(self.path / file, variables_of(session, part)))

    def _check_settings(self) -> None:
        wanted = dataclasses.replace(self._manifest, settings=map_settings(self.config))
        if differences := wanted.differences(self._manifest):
            raise UserError(
                f"{self.path / MANIFEST} is of maps for other settings: {'; '.join(differences)}; "
                "change the settings, or give a --memmap_dir that is made for them"
            )

    def _check_files(self) -> None:
        faults = {name: e.fault(self.path / name) for name, e in self._manifest.files.items()}
        refuse(self.path, [f"{name} ({fault})" for name, fault in faults.items() if fault])


def _fitting(path: Path, variables: dict[str, Variable]) -> dict[Variable, np.ndarray]:
    arrays = map_tensors(path)
    for name, variable in variables.items():
        array = arrays.get(name)
        expected = (variable.shape_on_host, variable.dtype.as_numpy())
        if array is None or (array.shape, array.dtype) != expected:
            found = "missing" if array is None else f"{array.dtype} {array.shape}"
            raise UserError(f"{path}: {name} is {found}, not {expected[1]} {expected[0]}")
    return {variable: arrays[name] for name, variable in variables.items()}
