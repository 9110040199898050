"""What the package shows of itself."""

import sememe.world


def test_public_names() -> None:
    assert all(hasattr(sememe.world, name) for name in sememe.world.__all__)
    assert sememe.world.WORLD_VERSION == 2
