"""The programs that damage source text and files still fit what they damage."""

from pathlib import Path

from mutations import media, networks


def test_every_mutant_changes_the_source() -> None:
    for mutant in networks.MUTANTS:
        source = (networks.REPOSITORY / networks.PACKAGE / mutant.path).read_text()
        compile(mutant.apply(source), mutant.path, "exec")
    assert len({mutant.name for mutant in networks.MUTANTS}) == len(networks.MUTANTS)
    assert all((networks.REPOSITORY / path).exists() for path in networks.TESTS)


def test_damaged_pictures_are_read_or_refused(tmp_path: Path) -> None:
    seen = set()
    for path in media.write_files(tmp_path, media.PICTURES):
        copy = tmp_path / "copy" / path.name
        copy.parent.mkdir(exist_ok=True)
        for number in range(12):
            copy.write_bytes(media.make_copy(path, number, seed=1))
            seen.add(media.read(copy))
    assert seen == {media.READ, media.REFUSED}
