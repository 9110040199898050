"""What README and docs show is true: Python blocks run, commands parse, links lead somewhere.

The Python blocks of a page run one after the other in one namespace, in a folder with the files that they read, and
with two denoising steps. A comment `<!-- not run: why -->` before a block excuses it from running; it must still
compile, and import what exists.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import sememe
from sememe import resolve_training_recipe, write_clip, write_image
from sememe.cli.app import Session, make_app
from sememe.diffusion.denoise import denoise
from sememe.world import random_scene, render

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<excuse>.+?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
COMMAND = re.compile(r"^(sememe|torchrun|make) ")
PUBLIC_MODULES = {"sememe", "sememe.world"}


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: str
    language: str
    code: str
    is_excused: bool


BLOCKS = [
    Block(path.relative_to(ROOT).as_posix(), found["language"], found["code"], found["excuse"] is not None)
    for path in PAGES
    for found in BLOCK.finditer(path.read_text())
]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command that a page shows, as words; what follows two spaces is its explanation."""
    for block in BLOCKS:
        if block.language in {"", "bash"}:
            for line in re.sub(r"\\\n\s*", "", block.code).splitlines():
                text = line.partition("  ")[0]
                # A bare ellipsis stands for arguments that are left out.
                if COMMAND.match(text) and not re.search(r'(?<!")\.\.\.(?!")', text):
                    yield block.page, shlex.split(text, comments=True)


COMMANDS = list(commands())


def imported(code: str) -> Iterator[tuple[str, str]]:
    """Modules of the package and the names that are imported from them."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "sememe")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sememe":
            yield from ((node.module or "", alias.name) for alias in node.names)


def test_pages_show_code_and_commands() -> None:
    assert {"README.md", "docs/world.md", "docs/training.md"} <= {block.page for block in PYTHON}
    assert len(COMMANDS) > 20


def test_pages_import_public_names_only() -> None:
    names = {(block.page, module, name) for block in PYTHON for module, name in imported(block.code)}
    assert not {(page, module) for page, module, _ in names if module not in PUBLIC_MODULES}
    assert not {name for _, module, name in names if module == "sememe" and name not in sememe.__all__}


def take_two_steps(predict: Any, scheduler: Any, latents: Any, guidance: Any, _: int, **settings: Any) -> Any:
    return denoise(predict, scheduler, latents, guidance, 2, **settings)


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}))
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(render(random_scene(1), "melt").clip, tmp_path / "any.mp4")
    write_image(render(random_scene(2), None).clip.frames[0], tmp_path / "any.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sememe.pipeline.denoise", take_two_steps)
    namespace: dict[str, Any] = {}
    for block in PYTHON:
        if block.page == page:
            program = compile(block.code, page, "exec")
            if not block.is_excused:
                exec(program, namespace)  # noqa: S102 (our own pages)


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS])
def test_commands_parse(page: str, words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        return
    command: Any = typer.main.get_command(make_app(Session()))
    rest = words[words.index("sememe") + 1 :]
    verb = rest[0]
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    context = command.make_context(verb, rest)
    if verb == "train":
        resolve_training_recipe(context.params["recipe"], context.params["settings"] or [])


def test_links_lead_somewhere() -> None:
    missing = []
    for path in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", path.read_text()):
            link = (target[0] or target[1]).partition("#")[0]
            if link and not link.startswith(("http:", "https:")) and not (path.parent / link).exists():
                missing.append((path.name, link))
    assert not missing


def test_the_reference_has_every_public_name() -> None:
    shown = set(re.findall(r"^::: sememe\.(\w+)$", (ROOT / "docs" / "api" / "index.md").read_text(), re.MULTILINE))
    errors = {name for name in sememe.__all__ if name.endswith("Error")}  # shown as one module
    assert shown == {*sememe.__all__, "errors"} - errors - {"__version__"}


def test_guides_name_files_that_exist() -> None:
    """Names of files are shown relative to the package, to its rooms, or to the root."""
    package = ROOT / "src" / "sememe"
    places = [ROOT, package, *(folder for folder in package.iterdir() if folder.is_dir())]
    for page in ("architecture", "extending"):
        names = set(re.findall(r"(?<![\w/<>*])((?:\w+/)*\w+\.py)\b", (ROOT / "docs" / f"{page}.md").read_text()))
        names = {name for name in names if not name.endswith("_foo.py")}
        assert len(names) > 5
        assert not {name for name in names if not any((place / name).exists() for place in places)}, page


def test_readme_layout_is_the_tree() -> None:
    block = next(block for block in BLOCKS if block.page == "README.md" and block.code.startswith("src/sememe/"))
    inner = {name.rstrip("/") for name in re.findall(r"^  ([\w./]+)  ", block.code, re.MULTILINE)}
    outer = re.findall(r"^(\w[\w./]*)(?:  |$)", block.code, re.MULTILINE)
    package = ROOT / "src" / "sememe"
    assert not [name for name in inner if not (package / name).exists()]
    assert not [name for name in outer if not (ROOT / name).exists()]
    folders = {path.parent.name for path in package.glob("*/*.py")}
    assert folders == {name for name in inner if "." not in name}
