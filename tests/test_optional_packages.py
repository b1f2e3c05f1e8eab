"""A package that is not installed takes its tests with it, and no others: pytest run where imports of it fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def collect(folder: Path, packages: set[str], *where: str, ci: bool = False) -> tuple[int, str]:
    """pytest's exit status and its summary, without `packages`."""
    (folder / "blocked.py").write_text(PLUGIN.format(packages=packages))
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | {"PYTHONPATH": paths}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", "blocked"]
    # Hypothesis' plugin is not there either where Hypothesis is not.
    done = subprocess.run(
        [*command, "-p", "no:hypothesispytest", *where],
        cwd=ROOT, env=environment | ({"CI": "true"} if ci else {}), capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_without_torch_all_but_its_folders_is_collected(tmp_path: Path) -> None:
    """Folders by name, whose conftest.py are then read before anything is collected."""
    folders = ("tests/adapters", "tests/cli", "tests/ops", "tests/optim")
    files = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("test_*.py"))
    status, said = collect(tmp_path, {"torch"}, *folders, *(file for file in files if "optional" not in file))
    assert status == 0 and "Traceback" not in said, said
    for folder in ("tests/adapters", "tests/ops", "tests/optim"):
        skipped = re.findall(rf"SKIPPED \[(\d+)\] {folder}(?:/\w+)?:0: torch is not installed", said)
        needing = [path for path in (ROOT / folder).rglob("test_*.py") if "\nimport torch\n" in path.read_text()]
        assert sum(map(int, skipped)) >= len(needing) > 0, said
    assert "tests/test_house.py::test_importing_the_package_imports_numpy_alone" in said


def test_without_the_tests_own_packages_the_rest_is_collected(tmp_path: Path) -> None:
    needing = {
        "hypothesis": "tests/adapters/test_cotangents.py",
        "scipy": "tests/ops/dct_select/test_dct_select_transform.py",
        "safetensors": "tests/optim/test_contract_state.py",
    }
    others = ("tests/adapters/test_sizes.py", "tests/ops/test_index_strides.py", "tests/optim/test_contract.py")
    status, said = collect(tmp_path, set(needing), *needing.values(), *others)
    assert status == 0, said
    for package in ("hypothesis", "safetensors"):
        assert f"SKIPPED [1] {Path(needing[package]).parent}:0: {package} is not installed" in said
    assert re.search(r"SKIPPED \[1\] tests/ops/dct_select:0: (scipy|hypothesis) is not installed", said)
    assert all(f"{path}::" in said for path in others)


def test_in_ci_a_missing_package_is_an_error(tmp_path: Path) -> None:
    status, said = collect(tmp_path, {"torch"}, "tests/optim/test_fused.py", ci=True)
    assert status == 2 and "No module named 'torch'" in said


def test_another_module_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """One of our own that was renamed, say, is no optional package."""
    status, said = collect(tmp_path, {"lowrank_core"}, "tests/optim/test_seeds.py")
    assert status == 2 and "No module named 'lowrank_core'" in said
