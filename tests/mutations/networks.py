"""Do the tests of a clone notice mistakes in what computes a generation?

Each mutant is a mistake that somebody could make: a sign, a frame, a layer, a mask. It is written into a copy of the
repository, without the official vectors beside it, and the tests are run there until the first one fails. A mutant
that no test notices has survived, and the program ends with exit code 1.

    python tests/mutations/networks.py [NAME ...]
"""

import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGE = "src/sememe"
TESTS = (  # those that tell soonest first
    "tests/parity/test_vectors.py",
    "tests/diffusion",
    "tests/backbones",
    "tests/video_as_prompt/test_guidance.py",
    "tests/video_as_prompt/test_rotary.py",
    "tests/video_as_prompt/test_reference_attention.py",
    "tests/video_as_prompt/test_networks.py",
    "tests/video_as_prompt/test_pipeline.py",
    "tests/video_as_prompt/test_controls.py",
    "tests/video_as_prompt/test_families.py",
)
_PRELOADED = ["torch", "diffusers.loaders", "diffusers.models.transformers.transformer_wan", "transformers", "peft"]


@dataclass(frozen=True)
class Mutant:
    """A mistake: in the file at `path` within the package, `new` in the place of `old`, which is there once."""

    name: str
    path: str
    old: str
    new: str

    def apply(self, source: str) -> str:
        """Return the source text with the mistake."""
        assert source.count(self.old) == 1, f"{self.name}: expected its text once in {self.path}"
        return source.replace(self.old, self.new)


_ATTENTION = "video_as_prompt/reference_attention.py"
_CONDITIONING = "video_as_prompt/conditioning.py"
_ROTARY = "video_as_prompt/rotary.py"
_WAN, _COGVIDEOX = "video_as_prompt/blocks_wan.py", "video_as_prompt/blocks_cogvideox.py"
_FIRST_FRAME = "backbones/first_frame.py"
MUTANTS = (
    Mutant("strength is squared", _ATTENTION, "= math.log(", "= 2 * math.log("),
    Mutant(
        "strength acts on the reference's queries",
        _ATTENTION,
        "attend(processor, own, key, value)",
        "attend(processor, own, key, value, bias)",
    ),
    Mutant(
        "strength acts on the target's keys", _ATTENTION, "[..., num_target_tokens:] =", "[..., :num_target_tokens] ="
    ),
    Mutant("Wan's reference comes after the target", _ROTARY, "past_sin = -time_sin", "past_sin = time_sin"),
    Mutant("Wan's last reference frame is at time 0", _ROTARY, "time_cos[1 : num_frames + 1]", "time_cos[:num_frames]"),
    Mutant("CogVideoX's reference is at the target's times", _ROTARY, "config, -num_steps,", "config, 0,"),
    Mutant("rotation has a wrong sign", _ROTARY, "even * sin + odd * cos", "even * sin - odd * cos"),
    Mutant("CogVideoX's rows are not centred", _ROTARY, "_space_evenly(top, top +", "_space_evenly(0, 0 +"),
    Mutant(
        "Wan's expert is modulated as the block is",
        _WAN,
        "self.expert.modulation(reference.temb)",
        "make_modulation(self.scale_shift_table, reference.temb)",
    ),
    Mutant("the expert's keys have no norm", _WAN, "self.norm_k(self.to_k(normed))", "self.to_k(normed)"),
    Mutant(
        "captions are read in the wrong order", _WAN, "zip(pieces, texts, strict", "zip(pieces, texts[::-1], strict"
    ),
    Mutant("the feed-forward is not shifted", _WAN, "(1 + mod.ffn_scale) + mod.ffn_shift", "(1 + mod.ffn_scale)"),
    Mutant(
        "the expert's gates are exchanged",
        _COGVIDEOX,
        "gates = TextAndVideo(text_gate, video_gate)",
        "gates = TextAndVideo(video_gate, text_gate)",
    ),
    Mutant("video has the gate of the text", _COGVIDEOX, "video + video_gate *", "video + text_gate *"),
    Mutant(
        "Wan's reference is read at timestep 0",
        "video_as_prompt/network_wan.py",
        "(1,), self.config.reference_timestep",
        "(1,), 0.0",
    ),
    Mutant("CLIP's last layer is read", "backbones/pictures.py", "hidden_states[-2]", "hidden_states[-1]"),
    Mutant("CLIP sees a reference's last frame", _CONDITIONING, "[[clip.frames[0]] for", "[[clip.frames[-1]] for"),
    Mutant(
        "a reference's condition is its last frame",
        _CONDITIONING,
        "encode_condition(video[:, :, 0]",
        "encode_condition(video[:, :, -1]",
    ),
    Mutant("Wan's condition is black behind the picture", _FIRST_FRAME, "zeros_like(later)", "full_like(later, -1)"),
    Mutant("one channel of the mask is set", _FIRST_FRAME, "mask[:, :, 0] = 1.0", "mask[:, 0, 0] = 1.0"),
    Mutant(
        "CogVideoX's condition is repeated",
        _FIRST_FRAME,
        "torch.nn.functional.pad(latents, (0, 0, 0, 0, 0, num_later))",
        "latents.expand(-1, -1, num_later + 1, -1, -1)",
    ),
    Mutant(
        "embeddings of padding are kept",
        "backbones/text.py",
        "embeds * mask.to(device).unsqueeze(-1).to(embeds.dtype)",
        "embeds",
    ),
    Mutant("padding is read", "backbones/text.py", "(ids.to(device), mask.to(device))", "(ids.to(device))"),
    Mutant("latents are not centred", "backbones/autoencoder.py", "(latents - mean) / std", "latents / std"),
    Mutant(
        "the reference's guidance goes with the positive text",
        "video_as_prompt/guidance.py",
        "(Variant(negative, null_reference), 1.0",
        '(Variant("positive", null_reference), 1.0',
    ),
    Mutant("guidance acts at low noise", "diffusion/guidance.py", "low <= timestep", "0.0 <= timestep"),
    Mutant(
        "the scheduler's scale is left out", "diffusion/denoise.py", "seen = scale(latents, timestep)", "seen = latents"
    ),
    Mutant(
        "released models have no negative prompt",
        "video_as_prompt/settings.py",
        "negative_prompt=OFFICIAL_NEGATIVE_PROMPT",
        'negative_prompt=""',
    ),
)


def run_tests(tree: Path, log: Path) -> int:
    """Run the tests of a tree in a fresh process until one fails; return pytest's exit code."""
    context = multiprocessing.get_context("forkserver")
    # Imported once and not for each mutant; the package itself is imported by its tests.
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_run_pytest, args=(tree, log))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run_pytest(tree: Path, log: Path) -> None:
    import pytest

    os.chdir(tree)
    sys.path.insert(0, str(tree / "src"))
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        # What was imported before pytest keeps its plain asserts.
        usual = ["-q", "-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        code = pytest.main([*usual, *TESTS])
    sys.exit(int(code))


def _copy_repository(tree: Path) -> None:
    for name in ("src", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(REPOSITORY / name, tree / name, copy_function=os.link, ignore=ignored)
    shutil.copy(REPOSITORY / "pyproject.toml", tree)


def _judge(mutant: Mutant, tree: Path, log: Path) -> bool:
    """Return whether a test noticed the mutant."""
    path = tree / PACKAGE / mutant.path
    source = path.read_text()
    path.unlink()  # it is the repository's own file by another name
    path.write_text(mutant.apply(source))
    code = run_tests(tree, log)
    path.unlink()
    os.link(REPOSITORY / PACKAGE / mutant.path, path)
    failed = [line.split(" - ")[0] for line in log.read_text().splitlines() if line.startswith(("FAILED", "ERROR"))]
    how = " ".join(failed) if code else "SURVIVED"
    sys.stdout.write(f"{mutant.name}: {how or log.read_text()}\n")
    sys.stdout.flush()
    return code != 0


def main(names: Sequence[str]) -> int:
    """Run all mutants, or those named; return the exit code."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    with tempfile.TemporaryDirectory(dir=REPOSITORY.parent, prefix="mutants-") as folder:
        tree, log = Path(folder, "clone", "sememe"), Path(folder, "log.txt")
        _copy_repository(tree)
        if run_tests(tree, log):
            sys.stdout.write(f"{log.read_text()}\nThe tests fail without a mutant; nothing was tried.\n")
            return 1
        survived = [mutant.name for mutant in chosen if not _judge(mutant, tree, log)]
    sys.stdout.write(f"{len(chosen) - len(survived)} of {len(chosen)} mutants were noticed.\n")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
