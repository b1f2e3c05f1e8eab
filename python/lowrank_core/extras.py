"""How what is missing is installed, in one sentence for every part of the package."""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """A command that installs the optional packages of `extra` ("torch", "train", "cupy" or "integrations")."""
    return f"install what is missing with `pip install '.[{extra}]'` in the folder of lowrank_core's source"


def require_torch(package: str) -> None:
    """Raises ModuleNotFoundError with the way out where the package `package` of ours finds no torch."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as missing:
        if missing.name != "torch":  # torch is there, and misses something itself
            raise
        sentence = f"{package}: needs torch, which is not installed; `pip install torch`, or {how_to_install('torch')}"
        raise ModuleNotFoundError(sentence, name="torch") from None
