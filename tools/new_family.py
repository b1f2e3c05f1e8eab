"""Creates the files of a new kernel family in every layer, and prints the lines that the shared files need.

    python tools/new_family.py STEM "what the family is"

The files are those under tools/family, with a kernel that doubles every element, so that all layers build and are
tested from the first minute: put the family's mathematics, contract and invariants in its place. CONTRIBUTING.md has
the order of the work.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from report import ROOT

TEMPLATES = ROOT / "tools" / "family"
STEM, TITLE = "newfamily", "what the family is"  # what stands in the templates
SHARED_LINES = """\
cpp/bindings/register.h                    void register_newfamily(pybind11::module_& module);
cpp/bindings/module.cpp                    lowrank::register_newfamily(module);   then `make stubs`
python/lowrank_core/ops/__init__.py        from lowrank_core.ops.newfamily import newfamily   and in __all__
python/lowrank_core/__init__.py            newfamily, in the import and in __all__
tests/cuda/host_device.cu                  a kernel that calls every LRC_HD function of the header
tools/check_families.py                    "newfamily" in FAMILIES, and in WITHOUT_CUDA until its .cu is there
docs/numerics.md, README.md, CHANGELOG.md  a row and a line each"""


def filled(text: str, stem: str, title: str) -> str:
    """A template's text, or path, for one family."""
    text = text.replace(TITLE, title).replace(TITLE.capitalize(), title[:1].upper() + title[1:])
    return text.replace(STEM, stem).replace(STEM.upper(), stem.upper())


def create(root: Path, stem: str, title: str) -> list[Path]:
    """Writes the files of all layers and returns their paths; none if one of them is there already."""
    files = {}
    for template in sorted(path for path in TEMPLATES.rglob("*.*") if path.suffix != ".pyc"):
        path = root / filled(str(template.relative_to(TEMPLATES)), stem, title)
        files[path] = filled(template.read_text(encoding="utf-8"), stem, title)
        if path.exists():
            sys.exit(f"new_family: `stem` must be new, got {stem!r}; {path.relative_to(root)} exists")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stem", help="lower case, words joined by _: the name in every layer")
    parser.add_argument("title", help="what the family is, in a few words")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree to write to")
    options = parser.parse_args()
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", options.stem):
        sys.exit(f"new_family: `stem` must be lower case words joined by _, got {options.stem!r}")
    for path in create(options.root, options.stem, options.title.rstrip(".")):
        print(f"wrote {path.relative_to(options.root)}")
    print("\nNow add to\n" + filled(SHARED_LINES, options.stem, options.title))


if __name__ == "__main__":
    main()
