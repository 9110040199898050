"""Words and turns of phrase that the glossary replaces: none in docstrings, comments, messages or names of the package.

`docs/glossary.md` says what to write instead.
"""

import re
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "sememe"
BANNED = re.compile(
    r"(?<![a-z])(told|anew|by itself|whoever|alike|likewise|lies? behind|come what may)(?![a-z])"
    # A definition is a noun phrase of its own, not the tail of a sentence.
    r"|^ +\w+: of (?!\w+\()",
    re.IGNORECASE | re.MULTILINE,
)


def find_banned(text: str) -> list[str]:
    # Sentences are wrapped, so a turn of phrase may span two lines.
    flat = re.sub(r"(?<=\w)\n +(?=\w+ )", " ", text)
    return sorted({found.group().strip() for source in (text, flat) for found in BANNED.finditer(source)})


def test_banned_words_are_found() -> None:
    found = find_banned(
        "# Whoever\n    name: of the row.\n    The model is told; the module runs by\n    itself here\n"
    )
    assert found == ["Whoever", "by itself", "name: of", "told"]
    assert find_banned("the toldest, find_names\n    name: Name of the row.\n") == []


def test_no_banned_words_in_the_package() -> None:
    found = {path.relative_to(PACKAGE).as_posix(): find_banned(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert not {name: words for name, words in found.items() if words}
