"""Read subject, place, colour and conditions from a clip of the world whose scene is not known.

The oracle compares a clip with renders of a known scene. A clip that was generated from a text shows a scene of its
own, so a network reads it. It sees small frames at a low rate, because coarse cells show what happens at least as well
as pixels do (see `evaluation.oracle`), and is trained on renders alone. Its accuracy on other true renders is the most
that any model can reach in its judgement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sememe.backbones.autoencoder import clips_to_video
from sememe.checkpoints.components import load_strictly
from sememe.checkpoints.fingerprint import hash_tensors
from sememe.checkpoints.zoo import find_part
from sememe.errors import InputError
from sememe.evaluation.paths import Path2D, find_path
from sememe.video import Clip, resize_clip
from sememe.video.resizing import pick_frames
from sememe.world import Scene, conditions
from sememe.world.scene import BACKDROPS, BODIES, COLORS, CREATURES, OBJECTS, Backdrop

PART = "reader"
"""Name of the reader among the parts of models and runs."""
NOTHING = "nothing"
"""Value of the label "condition" where nothing happens."""
VOCABULARY: Mapping[str, tuple[str, ...]] = {
    "subject": (*BODIES, *CREATURES, *OBJECTS),
    "colour": tuple(COLORS),
    "place": BACKDROPS,
    "condition": (NOTHING, *conditions()),
}
"""Values of the labels of a clip as a whole, and of the label "condition" of each of its moments."""

_SHORTEST_SECONDS = 0.75  # of what happens, less than scripts have


def name_scene(scene: Scene) -> dict[str, str]:
    """Return the labels `subject`, `colour` and `place` of a scene that has a subject and a drawn backdrop."""
    assert scene.subject is not None, scene
    assert isinstance(scene.backdrop, Backdrop), scene
    return {"subject": scene.subject.kind, "colour": scene.subject.color_name, "place": scene.backdrop.kind}


@dataclass(frozen=True, eq=False)
class ReadingLogits:
    """Output of the network for a batch of clips.

    Attributes:
        labels: Logits of the values of each label of a clip as a whole.
        conditions: Logits of what happens at each moment.
        cover: Logits of how much of each cell is subject.
        features: Features of each moment.
    """

    labels: Mapping[str, Float[Tensor, "batch value"]]
    conditions: Float[Tensor, "batch moment condition"]
    cover: Float[Tensor, "batch moment row column"]
    features: Float[Tensor, "batch moment feature"]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.conv(functional.relu(self.norm(maps)))


class SceneReader(ModelMixin, ConfigMixin):
    """A network over moments of a clip: maps of each, and convolutions over time.

    Args:
        vocabulary: Values of each label; those of "condition" are of moments.
        width: Channels of the finest maps, a multiple of 4.
        feature_dim: Numbers of the features of each moment.
        fps: Moments per second.
        size: Height and width in pixels of what it sees, a multiple of 8.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        vocabulary: Mapping[str, Sequence[str]] = VOCABULARY,
        width: int = 32,
        feature_dim: int = 192,
        fps: float = 4.0,
        size: int = 64,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1)
        )
        self.fine = _Residual(2 * width)
        self.down = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.coarse = nn.Sequential(_Residual(4 * width), nn.GroupNorm(4, 4 * width), nn.ReLU())
        self.cover = nn.Conv2d(6 * width, 1, 1)
        side = size // 8
        self.project = nn.Linear(4 * width * side * side, feature_dim)
        self.attention = nn.Linear(feature_dim, 1)
        labels = {name: len(values) for name, values in vocabulary.items() if name != "condition"}
        self.labels = nn.ModuleDict({name: nn.Linear(feature_dim, count) for name, count in labels.items()})
        # Each moment beside the first one, from which things change.
        self.time = nn.Sequential(
            nn.Conv1d(2 * feature_dim, feature_dim, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(feature_dim, feature_dim, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(feature_dim, len(vocabulary["condition"]), 1),
        )

    def forward(self, video: Float[Tensor, "batch 3 moment height width"]) -> ReadingLogits:
        """Read clips.

        Args:
            video: Frames of the size and rate of this network, values in [-1, 1].
        """
        batch, _, moments, *_ = video.shape
        # (batch, 3, moment, height, width) -> (batch * moment, 3, height, width)
        fine = self.fine(self.stem(video.transpose(1, 2).flatten(0, 1)))
        coarse = self.coarse(self.down(fine))
        above = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        cover = self.cover(torch.cat([fine, above], dim=1))[:, 0].unflatten(0, (batch, moments))
        features = functional.relu(self.project(coarse.flatten(1))).unflatten(0, (batch, moments))
        whole = (self.attention(features).softmax(dim=1) * features).sum(dim=1)
        beside = torch.cat([features, features[:, :1].expand_as(features)], dim=2)
        happening = self.time(beside.transpose(1, 2)).transpose(1, 2)
        return ReadingLogits({name: head(whole) for name, head in self.labels.items()}, happening, cover, features)


@dataclass(frozen=True, eq=False)
class Reading:
    """What a clip shows.

    Attributes:
        subject: Kind of the subject.
        colour: Name of its main colour.
        place: Kind of the backdrop.
        conditions: What happens, one after another; None for nothing.
        path: Centre of the subject at each moment.
        features: Features of each moment, of unit length.
    """

    subject: str
    colour: str
    place: str
    conditions: tuple[str | None, ...]
    path: Path2D
    features: Float[np.ndarray, "moment feature"]


class ClipReader:
    """A trained reader."""

    def __init__(self, network: SceneReader) -> None:
        self.network = network

    @classmethod
    def load(cls, source: str | Path) -> "ClipReader":
        """Load the reader of a run, of a model, or of its own folder.

        Raises:
            ModelError: There is none, or it is not whole.
        """
        return cls(load_strictly(SceneReader, find_part(source, PART), torch.float32))

    @property
    def fingerprint(self) -> str:
        """Identifies the weights."""
        return hash_tensors({}, self.network.state_dict().items())

    @torch.no_grad()
    def read(self, clip: Clip, num_conditions: int) -> Reading:
        """Read a clip.

        Args:
            clip: Clip of any size and rate.
            num_conditions: How many things happen one after another; as many are read, no two that follow each other
                the same.

        Raises:
            InputError: The clip is too short for so many.
        """
        config = self.network.config
        picks = pick_frames(clip.num_frames, sampling="fps", source_fps=clip.fps, target_fps=config.fps)
        seen = resize_clip(Clip(clip.frames[picks], config.fps), config.size, config.size, "stretch")
        found: ReadingLogits = self.network(clips_to_video([seen]))
        words = {name: config.vocabulary[name][int(logits[0].argmax())] for name, logits in found.labels.items()}
        shortest = max(1, min(round(_SHORTEST_SECONDS * config.fps), len(picks) // num_conditions))
        order = find_sequence(found.conditions[0].log_softmax(dim=-1).numpy(), num_conditions, shortest)
        names = [config.vocabulary["condition"][value] for value in order]
        return Reading(
            words["subject"],
            words["colour"],
            words["place"],
            tuple(None if name == NOTHING else name for name in names),
            find_path(found.cover[0].sigmoid().numpy()),
            functional.normalize(found.features[0], dim=-1).numpy(),
        )


def find_sequence(scores: Float[np.ndarray, "moment value"], count: int, shortest: int) -> tuple[int, ...]:
    """Return the values of the likeliest runs, one after another, that fill all moments.

    Args:
        scores: Logarithm of the probability of each value at each moment.
        count: Number of runs; no two that follow each other have the same value.
        shortest: Least moments of a run.

    Raises:
        InputError: There are too few moments.
    """
    moments, values = scores.shape
    if count < 1 or count * shortest > moments:
        raise InputError(f"expected at least {count * shortest} moments for {count} conditions, got {moments}")
    sums = np.concatenate([np.zeros((1, values)), np.cumsum(scores, axis=0, dtype=np.float64)])
    best = np.full((count + 1, moments + 1, values), -np.inf)
    before = np.zeros((count + 1, moments + 1, values, 2), np.int64)  # where the run began, and the value before it
    best[0, 0] = 0.0
    for run in range(1, count + 1):
        for stop in range(run * shortest, moments + 1):
            for start in range((run - 1) * shortest, stop - shortest + 1):
                earlier, value = _best_other(best[run - 1, start], is_first=run == 1)
                found = earlier + sums[stop] - sums[start]
                better = found > best[run, stop]
                best[run, stop][better] = found[better]
                before[run, stop][better] = np.stack([np.full(values, start), value], axis=1)[better]
    order, stop, last = [], moments, int(best[count, moments].argmax())
    for run in range(count, 0, -1):
        order.append(last)
        stop, last = (int(each) for each in before[run, stop, last])
    return tuple(reversed(order))


def _best_other(scores: np.ndarray, *, is_first: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return for each value the best score of another one, and which it is; of any where there is none before."""
    top = int(scores.argmax())
    if is_first:
        return scores, np.full(len(scores), top)
    others = scores.copy()
    others[top] = -np.inf
    second = int(others.argmax())
    best, which = np.full(len(scores), scores[top]), np.full(len(scores), top)
    best[top], which[top] = scores[second], second
    return best, which
