"""What the package shows of itself."""

import subprocess
import sys

import sememe.world


def test_public_names() -> None:
    assert all(hasattr(sememe.world, name) for name in sememe.world.__all__)
    assert sememe.world.WORLD_VERSION == 2


def test_help_does_not_wait_for_libraries() -> None:
    """The commands' modules load nothing heavy."""
    code = (
        "import sys, typer; from sememe.cli import evaluate, world; app = typer.Typer()\n"
        "world.register(app); evaluate.register(app)\n"
        "raise SystemExit(' '.join(n for n in ('torch', 'cv2', 'av', 'numpy', 'diffusers') if n in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
