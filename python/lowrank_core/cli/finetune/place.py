"""Where a pretrained model lies. Needs neither torch nor transformers: a wrong path is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lowrank_core.cli.defaults import listed
from lowrank_core.cli.errors import CliError


class Place(NamedTuple):
    """A folder, and the name of the GGUF file in it, if it is one."""

    folder: Path
    gguf: str | None = None

    def __str__(self) -> str:
        return str(self.folder / self.gguf if self.gguf else self.folder)


def find(model: str) -> Place:
    """The model that the path names.

    Raises:
      CliError: there is none.
    """
    path = Path(model)
    if not path.exists():
        raise CliError(f"`--model` must name a folder or a GGUF file, got '{model}', which does not exist; correct it")
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise CliError(f"`--model` must name a folder or a GGUF file, got the file '{model}'; name its folder")
        return Place(path.parent, path.name)
    if (path / "config.json").is_file():
        return Place(path)
    packed = tuple(sorted(file.name for file in path.iterdir() if file.suffix.lower() == ".gguf"))
    if len(packed) > 1:
        raise CliError(f"`--model` must name one model, but '{model}' has {listed(packed)}; name the file")
    if not packed:
        raise CliError(
            f"`--model` must name a folder with config.json or a GGUF file, got '{model}' without; name the folder of "
            "a pretrained model"
        )
    return Place(path, packed[0])
