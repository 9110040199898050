"""Rules about the source files themselves."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "sememe"
SOURCES = sorted(PACKAGE.rglob("*.py"))
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
BANNED_CALLS = {"torch.load", "torch.hub.load", "eval", "exec", "os.system", "print"}
BANNED_IMPORTS = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "requests", "urllib.request"}


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


each_source = pytest.mark.parametrize("path", SOURCES, ids=relative)


def test_there_are_sources() -> None:
    assert len(SOURCES) > 10


def test_folders_go_two_levels_deep() -> None:
    deep = [relative(path) for path in SOURCES if len(path.relative_to(PACKAGE).parts) > 3]
    assert not deep


def test_no_junk_drawers() -> None:
    named = {path: set(path.relative_to(PACKAGE).with_suffix("").parts) for path in SOURCES}
    assert not [relative(path) for path, parts in named.items() if parts & BANNED_NAMES]


@each_source
def test_length(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


@each_source
def test_it_says_what_it_is_and_holds_something(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module begins with a docstring"
    if path.name != "__init__.py":
        assert len(tree.body) > 1, "an empty module"


def dotted_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@each_source
def test_banned_calls_and_imports(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert dotted_name(node.func) not in BANNED_CALLS, f"line {node.lineno}"
        if isinstance(node, ast.Import):
            assert not BANNED_IMPORTS & {alias.name for alias in node.names}, f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom):
            assert node.module not in BANNED_IMPORTS, f"line {node.lineno}"


@each_source
def test_nothing_is_done_to_the_process_on_import(path: Path) -> None:
    """No environment variable is set and no file opened by the statements of a module itself."""
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Call):
                name = dotted_name(node.func)
                assert not name.startswith(("os.environ", "os.putenv", "torch.set_", "logging.basicConfig")), name
                assert name not in {"open", "Path.open"}, name
            if isinstance(node, ast.Assign):
                targets = [t.value for t in node.targets if isinstance(t, ast.Subscript)]
                assert "os.environ" not in [dotted_name(target) for target in targets]


def test_the_project_speaks_of_itself_alone() -> None:
    """No path of one machine and no address of a package index in what is handed on."""
    pattern = re.compile(r"(?<![\w.-])/(work|root|home)/|index-url\s+\S+://|extra-index")
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ""}
    folders = [PACKAGE, ROOT / "docs", ROOT / "tests", ROOT / "benchmarks", ROOT / ".ci"]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes and path.is_file()]
    files += [path for path in ROOT.iterdir() if path.is_file() and path.suffix in suffixes and path.name != ".git"]
    for path in files:
        if path != Path(__file__):
            assert not pattern.search(path.read_text(errors="replace")), path


def test_shipped_configurations_name_no_folder() -> None:
    """Loaders write down where they read a model; that place is one machine's."""
    configurations = [path for path in (PACKAGE / "checkpoints" / "weights").rglob("*.json") if "config" in path.name]
    assert configurations
    for path in configurations:
        values = json.loads(path.read_text()).values()
        assert not [value for value in values if isinstance(value, str) and value.startswith(("/", "~"))], path
