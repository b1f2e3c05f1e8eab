"""What users read is true: the code of README, CONTRIBUTING and the guides runs as it stands."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")  # `lowrank-core train`, which the pages show, needs both
pytest.importorskip("matplotlib")

import torch
from testing import commands, pages

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
DOCUMENTS = [*PAGES, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "adr").glob("*.md"))]
SHELL = ("sh", "bash", "shell")
FOREIGN = {  # pages about other packages
    "adapters": ("transformers", "peft"),
    "finetuning": ("transformers", "peft"),
    "integrations": ("transformers", "accelerate", "peft", "lightning"),
}
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.fixture(autouse=True)
def own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def run(page: Path) -> None:
    """Runs a page in the current folder; its Python blocks share their names.

    Nothing may warn, but for what other packages say of their own future on a page about them.
    """
    for package in FOREIGN.get(page.stem, ()):
        if not os.environ.get("CI"):  # where all of them are to be there
            pytest.importorskip(package)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in pages.blocks(page):
        if block.reason:
            continue
        if block.language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore" if page.stem in FOREIGN else "error")
                pages.run_python(block, names)
        else:
            assert block.language in SHELL, (
                f"{block.where} is neither Python nor shell; mark it `<!-- not run: why -->`"
            )
            for command in commands.commands(block.code):
                commands.run(command)


def check_spans(page: Path) -> None:
    """Asserts that commands, options and files within the text are there."""
    for span in pages.inline(page):
        commands.check_span(span)


@by_page
def test_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page)


@by_page
def test_every_fence_of_a_page_is_read(page: Path) -> None:
    assert pages.unread(page) == []


def test_hardly_a_block_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    left_out = [block for page in PAGES for block in pages.blocks(page) if block.reason]
    with capsys.disabled():
        for block in left_out:
            print(f"\n{block.where} is not run: {block.reason}", end="")  # noqa: T201  (a marker hides nothing)
    assert len(left_out) <= 1


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.stem)
def test_commands_within_the_text_name_what_is_there(page: Path) -> None:
    check_spans(page)


@by_page
def test_tiers_are_explained_where_they_first_stand(page: Path) -> None:
    assert pages.unexplained_tiers(page.read_text(encoding="utf-8")) == set()


FAULTY_BLOCKS = {
    "```python\nx = 1\n```\n\n```python\nassert x == 2, f'x is {x}'\n```\n": "x is 1",
    "```python\nimport warnings\nwarnings.warn('old')\n```\n": "old",
    "```\nmake train\n```\n": "neither Python nor shell",
    "```sh\ncurl x\n```\n": "nothing is known of `curl`",
    "```sh\nmake nothing\n```\n": "no target `nothing`",
    "```sh\nmake train NOTHING=1\n```\n": "knows no `NOTHING`",
    "```sh\nmake train ARGS='--nothing 1'\n```\n": "does not take",
    "```sh\nmake test ARGS=tests/nothing\n```\n": "there is no `tests/nothing`",
    "```sh\npip install '.[nothing]'\n```\n": "no extra `nothing`",
    "```sh\nlowrank-core estimate --dim 0\n```\n": "ended with 2",
    "```sh\nlowrank-core estimate --dim 64  # takes 7.7 GB\n```\n": "does not print 7.7",
    "```sh\npython bench/bench_rsvd.py --nothing\n```\n": "no option `--nothing`",
}


@pytest.mark.parametrize("text", FAULTY_BLOCKS)
def test_a_faulty_block_is_seen(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, UserWarning), match=FAULTY_BLOCKS[text]):
        run(page)


@pytest.mark.parametrize(
    "text",
    [
        "--nothing",
        "make nothing",
        "OMP_NUM_THREADS=1 python bench/nothing.py",
        "lowrank-core nothing",
        "lowrank-core train --nothing",
        "docs/no.md",
    ],
)
def test_a_faulty_span_is_seen(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"See `{text}`.")
    with pytest.raises(AssertionError):
        check_spans(page)


def test_what_a_page_hides_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("~~~\nx\n~~~\n\n- a list\n\n  ```python\n  y\n  ```\n\n<!-- not run: -->\n```sh\nrm\n```\n")
    assert len(pages.unread(page)) == 4
    assert [block.reason for block in pages.blocks(page)] == [None]
    assert pages.unexplained_tiers("D1 (same bits), D2, D1, D0 () and D2 (a bound)") == {"D2", "D0"}
