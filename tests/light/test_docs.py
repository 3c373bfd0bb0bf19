"""README and docs say what is so: commands run and print what is shown, options exist, links lead somewhere, and the notebook runs."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """recipes/docs_blocks.py, which is no package."""
    monkeypatch.syspath_prepend(ROOT / "recipes")
    return importlib.import_module("docs_blocks")


def page_of(recipe: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> list[str]:
    """What is wrong with the blocks of a page of this text."""
    monkeypatch.setattr(recipe, "ROOT", folder)
    for name in ("Makefile", "pyproject.toml", "examples"):
        (folder / name).symlink_to(ROOT / name)
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    session = recipe.Session(folder / "run")
    return [fault for block in recipe.blocks(page) for fault in recipe.faults(block, session, {})]


def test_every_block_holds(recipe: Any, tmp_path: Path) -> None:
    changes: dict[Any, Any] = {}
    session = recipe.Session(tmp_path)
    blocks = [block for page in recipe.pages() for block in recipe.blocks(page)]
    assert len(blocks) > 40
    assert [fault for block in blocks for fault in recipe.faults(block, session, changes)] == []
    assert [*recipe.notebook_faults(recipe.NOTEBOOK, session)] == []


def test_every_command_is_run_or_says_what_it_needs(recipe: Any) -> None:
    """No block of a page is of a language that nothing checks, and none of the log's pages hides one."""
    languages = {"", "text", "json", *recipe.RUN}
    assert {block.language for page in recipe.pages() for block in recipe.blocks(page)} <= languages


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "recipes/smollm2/README.md", "benchmarks/gpu/README.md"])
def test_other_pages_name_what_exists(recipe: Any, name: str) -> None:
    assert [fault for block in recipe.blocks(ROOT / name) for fault in recipe.check_named(block)] == []


@pytest.mark.parametrize(
    ("block", "fault"),
    [
        ('```bash title="needs a GPU"\nforedraft plan MODEL/ --devicez 2 | head\n```', "--devicez"),
        (
            '```bash title="needs a GPU"\nTARGET=x foredraft deploy DRAFT/ --target M/ --out o && foredraft no-verb\n```',
            "no-verb",
        ),
        ('```bash title="needs a GPU"\nmake nothing\n```', "no target nothing of make"),
        ('```bash title="needs a GPU"\npip install "foredraft[none]"\n```', "no extra"),
        ("```bash\ncurl localhost\n```", "say what it needs"),
        ("```bash\nforedraft list nothing\n```", "ends with 2"),
        (
            "```console\n$ foredraft list models Qwen3-0.6B\n…\nlayers  29 x attention\n…\n```",
            "something else is printed",
        ),
        ("```console\n$ foredraft list models Qwen3-0.6B\n…\nlayers  28 x convolution\n…\n```", "not printed"),
        ("```console\n$ foredraft list models Qwen3-0.6B\n…\nlayers  28 x attention\n```", "more is printed"),
        ("```python\nimport foredraft\nforedraft.plan('no such model', 'H100', None)\n```", "no such model"),
        ('```json title="recipe"\n{"model": {"kind": "lm", "params": 5e6}, "stagez": []}\n```', "stagez"),
    ],
)
def test_what_does_not_hold_is_noticed(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, block: str, fault: str
) -> None:
    (wrong,) = page_of(recipe, monkeypatch, tmp_path, f"{block}\n")
    assert fault in wrong


def test_shown_lines_become_those_that_are_printed(recipe: Any) -> None:
    printed = ["a 1", "b 2.50 [2.00, 3.00]", "c with many words behind", "d 4"]
    assert recipe.refreshed(["…", "b 2.45 [1.99, 3.10]", "c with many …", "…"], printed) == [
        "…",
        printed[1],
        "c with many …",
        "…",
    ]
    rows = ["batch 2 of 400", "batch 32 of 910"]
    assert recipe.refreshed(["…", "batch 32 of 911"], rows) == ["…", rows[1]]
    with pytest.raises(ValueError, match="not printed"):
        recipe.refreshed(["b 2.45 [1.99, 3.10]", "…"], printed)


def anchors(page: Path) -> set[str]:
    """Of a page's headings."""
    titles = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_of_the_readme_lead_somewhere() -> None:
    """Those among the pages of docs are mkdocs' own to check: make docs."""
    for document in ("README.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / document).read_text(encoding="utf-8")):
            if not link.startswith("http"):
                path, _, anchor = link.partition("#")
                assert (ROOT / path).exists(), f"{document}: {link}"
                assert not anchor or anchor in anchors(ROOT / path), f"{document}: {link}"
