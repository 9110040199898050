"""Rules about the source files themselves."""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "sememe"
SOURCES = sorted(PACKAGE.rglob("*.py"))
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
BANNED_CALLS = {"torch.load", "torch.hub.load", "eval", "exec", "os.system", "print"}
BANNED_IMPORTS = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "requests", "urllib.request"}


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


TREES = {relative(path): ast.parse(path.read_text()) for path in SOURCES}


def test_files_are_named_placed_and_sized_by_the_rules() -> None:
    parts = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in SOURCES}
    assert len(SOURCES) > 10
    assert not [relative(path) for path in SOURCES if len(parts[path]) > 3], "folders go two levels deep"
    assert not [relative(path) for path in SOURCES if set(parts[path]) & BANNED_NAMES], "names that say nothing"
    assert not [relative(path) for path in SOURCES if len(path.read_text().splitlines()) > 500], "more than 500 lines"


def test_only_the_list_of_systems_names_a_room() -> None:
    """Processes find a system by its record; surfaces and rooms may name what is theirs."""
    rooms = re.compile(r"(video_as_prompt|semanticgen|gen1)\b")
    free = ("cli/", "server/", "comfyui/", "video_as_prompt/", "semanticgen/", "gen1/", "__init__.py")
    shared = [path for path in SOURCES if not relative(path).startswith(free)]
    assert [relative(path) for path in shared if rooms.search(path.read_text())] == ["workflows/systems.py"]


def test_a_module_begins_with_a_docstring_and_holds_something() -> None:
    assert not [name for name, tree in TREES.items() if not ast.get_docstring(tree)]
    assert not [name for name, tree in TREES.items() if not name.endswith("__init__.py") and len(tree.body) < 2]


WIDE = {"TrainingConfig", "Subject"}
"""Records of more than 15 fields that are to be divided; add none."""


def count_fields(node: ast.ClassDef) -> int:
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
    return sum("ClassVar" not in ast.unparse(field.annotation) for field in fields)


def test_functions_and_records_are_small() -> None:
    """At most 60 lines and 15 parameters a function and 15 fields a record, but for those listed above."""
    too_large = []
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and count_fields(node) > 15:
                too_large += [node.name] if node.name not in WIDE else []
            if isinstance(node, ast.FunctionDef):
                num_parameters = len(node.args.args) + len(node.args.kwonlyargs)
                is_large = node.end_lineno - node.lineno >= 60 or num_parameters > 15  # type: ignore[operator]
                too_large += [node.name] if is_large else []
    assert not too_large


def dotted_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def find_banned(node: ast.AST) -> set[str]:
    match node:
        case ast.Call():
            return BANNED_CALLS & {dotted_name(node.func)}
        case ast.Import():
            return BANNED_IMPORTS & {alias.name for alias in node.names}
        case ast.ImportFrom():
            return BANNED_IMPORTS & {node.module or ""}
        case _:
            return set()


def test_nothing_runs_foreign_code_or_prints() -> None:
    found = {name: set().union(*map(find_banned, ast.walk(tree))) for name, tree in TREES.items()}
    assert not {name: banned for name, banned in found.items() if banned}


def touches_the_process(node: ast.AST) -> bool:
    """Whether a statement sets an environment variable, a global option, or opens a file."""
    if isinstance(node, ast.Call):
        name = dotted_name(node.func)
        return name.startswith(("os.environ", "os.putenv", "torch.set_", "logging.basicConfig")) or name == "open"
    targets = node.targets if isinstance(node, ast.Assign) else []
    return "os.environ" in [dotted_name(target.value) for target in targets if isinstance(target, ast.Subscript)]


def test_nothing_is_done_to_the_process_on_import() -> None:
    definitions = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
    for name, tree in TREES.items():
        statements = [statement for statement in tree.body if not isinstance(statement, definitions)]
        assert not any(touches_the_process(node) for each in statements for node in ast.walk(each)), name


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
