"""Clips to train on, by number, and those of the procedural world.

Which scene and condition the n-th clip of the world shows is a pure function of n. Every scene is filmed under several
conditions, so that one batch can hold the same scene under different ones."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sememe.data.buckets import Bucket
from sememe.data.cache_index import ClipItem
from sememe.training.recipes import ClipFormat, WorldData
from sememe.world import (
    EVALUATION_SEED,
    WORLD_VERSION,
    RenderedClip,
    RenderedScript,
    Scene,
    Script,
    can_show,
    conditions,
    random_scene,
    random_script,
    render,
    render_script,
    repaint,
)
from sememe.world.captions import full_caption, neutral_caption, script_caption
from sememe.world.catalogue import CATALOGUE, parts_of
from sememe.world.random_conditions import random_names
from sememe.world.scene import PHOTOGRAPH_SHARE
from sememe.world.scripts import frame_edges

_DEFAULT = WorldData()


@dataclass(frozen=True, slots=True)
class WorldItem:
    """One clip to render: the scene's seed and the condition's name."""

    scene: int
    condition: str


def world_item(index: int, data: WorldData = _DEFAULT) -> WorldItem:
    """The scene and condition of clip number `index`.

    Conditions are dealt from a deck that is shuffled for every scene, with the random ones of `data` among them. One
    scene never shows a condition twice, as long as `clips_per_scene` is at most the number of conditions that apply to
    it; beyond that the deck starts over.
    """
    scene, place = divmod(index, data.clips_per_scene)
    assert scene < EVALUATION_SEED, "training would reach the scenes kept for evaluation"
    deck = _shuffle(_scene(scene), data.num_random)
    return WorldItem(scene, deck[place % len(deck)])


@lru_cache(maxsize=64)
def _shuffle(scene: Scene, num_random: int) -> tuple[str, ...]:
    """Shuffle the conditions that apply to a scene.

    Whole photographs can show only conditions that need no layers. In all other scenes these come later in the deck, so
    that all conditions are dealt equally often.
    """
    layered = _list_dealt(num_random)
    deck = [name for name, needs_layers in layered.items() if scene.subject is not None or not needs_layers]
    odds = 1 - PHOTOGRAPH_SHARE * len(layered) / (len(layered) - sum(layered.values()))
    weights = np.array([1.0 if layered[name] or scene.subject is None else odds for name in deck])
    draws = np.random.Generator(np.random.PCG64(scene.seed + 1)).random(len(deck))
    # Sampling without replacement by weight (Efraimidis and Spirakis, 2006).
    return tuple(deck[place] for place in np.argsort(-(draws ** (1 / weights))))


@lru_cache(maxsize=8)
def _list_dealt(num_random: int) -> dict[str, bool]:
    """Whether each condition that is dealt needs layers, by name, sorted."""
    names = [*(entry.name for entry in CATALOGUE), *random_names(num_random)]
    return {name: any(part.needs_layers for part in parts_of(name)) for name in sorted(names)}


def render_item(item: WorldItem, *, num_frames: int, size: int | tuple[int, int], fps: float = 8) -> RenderedClip:
    """Film the item."""
    return render(random_scene(item.scene), item.condition, num_frames=num_frames, size=size, fps=fps)


@runtime_checkable
class ClipSource(Protocol):
    """Clips by number, for stages that train on pixels."""

    def __len__(self) -> int:
        """How many clips there are."""
        ...

    def frames(self, index: int) -> NDArray[np.uint8]:
        """The frames of clip `index`, (num_frames, height, width, 3) uint8."""
        ...


@runtime_checkable
class ClipCollection(ClipSource, Protocol):
    """Clips by number, with their descriptions."""

    @property
    def origin(self) -> str:
        """Identifies the origin of clips: equal keys of other origins are other clips."""
        ...

    @property
    def version(self) -> str:
        """Identifies this collection among all others."""
        ...

    def count_frames(self, index: int) -> int:
        """Length of a clip."""
        ...

    def item(self, index: int) -> ClipItem:
        """Description of a clip: keys, condition, scene, captions."""
        ...

    def first_frame(self, index: int) -> NDArray[np.uint8]:
        """The first frame of a clip, (height, width, 3) uint8."""
        ...


class _RenderedClips(ABC):
    """Clips of the world, rendered on access."""

    def __init__(self, clips: ClipFormat, data: WorldData) -> None:
        self._format, self._data = clips, data

    def __len__(self) -> int:
        return self._data.num_clips

    @property
    def origin(self) -> str:
        clips = self._format
        return f"{self._kind} {WORLD_VERSION}, {clips.describe()} at {clips.fps:g} fps{self._details}"

    @property
    def version(self) -> str:
        return f"{self.origin}, {len(self)} clips"

    def count_frames(self, index: int) -> int:
        return self._format.num_frames

    def frames(self, index: int) -> NDArray[np.uint8]:
        frames: NDArray[np.uint8] = self.shot(index).clip.frames
        return frames

    def first_frame(self, index: int) -> NDArray[np.uint8]:
        return self.frames(index)[0]

    @abstractmethod
    def shot(self, index: int) -> RenderedClip | RenderedScript:
        """Film a clip."""

    _kind: ClassVar[str]
    """What clips are of, before the world's version."""

    @property
    @abstractmethod
    def _details(self) -> str:
        """Further settings that the clips depend on."""


class WorldClips(_RenderedClips):
    """Scenes of the world under one condition each."""

    _kind = "world"

    def __init__(self, clips: ClipFormat, data: WorldData) -> None:
        super().__init__(clips, data)
        self._buckets = clips.list_buckets()

    @property
    def _details(self) -> str:
        drawn = f", {self._data.num_random} random conditions" if self._data.num_random else ""
        return f", {self._data.clips_per_scene} clips a scene{drawn}"

    def count_frames(self, index: int) -> int:
        return self._bucket(world_item(index, self._data)).num_frames

    def shot(self, index: int) -> RenderedClip:
        item = world_item(index, self._data)
        bucket = self._bucket(item)
        size = (bucket.height, bucket.width)
        return render_item(item, num_frames=bucket.num_frames, size=size, fps=self._format.fps)

    def item(self, index: int) -> ClipItem:
        item = world_item(index, self._data)
        scene = _scene(item.scene)
        return ClipItem(
            clip=str(index),
            condition=item.condition,
            scene=str(item.scene),
            first_frame=str(item.scene),
            caption=neutral_caption(scene),
            full_caption=full_caption(scene, parts_of(item.condition)),
            split="unseen" if item.condition in _unseen_conditions() else "train",
            bucket=str(self._bucket(item)) if self._format.buckets else "",
        )

    def first_frame(self, index: int) -> NDArray[np.uint8]:
        item = world_item(index, self._data)
        bucket = self._bucket(item)
        return _film_first_frame(_scene(item.scene), (bucket.height, bucket.width))

    def _bucket(self, item: WorldItem) -> Bucket:
        return self._buckets[item.scene % len(self._buckets)]


class ScriptClips(_RenderedClips):
    """Stories of the world; number n is `world.random_script(n)`."""

    _kind, _details = "scripts of world", ""

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self._format.fps

    def shot(self, index: int) -> RenderedScript:
        script = self.script(index)
        return render_script(script.scene, script.spans, size=self._size, fps=self._format.fps)

    def item(self, index: int) -> ClipItem:
        script = self.script(index)
        scene, edges = str(script.scene.seed), frame_edges(script.spans, self.fps)
        happens = [parts_of(name) for name, _ in script.spans]
        return ClipItem(
            clip=str(index),
            condition=", then ".join(name or "nothing" for name, _ in script.spans),
            scene=scene,
            first_frame=scene,
            caption=neutral_caption(script.scene),
            full_caption=script_caption(script.scene, happens),
            segment_captions=tuple(full_caption(script.scene, each) for each in happens),
            segment_ends=tuple(edge / self.fps for edge in edges[1:]),
        )

    def first_frame(self, index: int) -> NDArray[np.uint8]:
        return _film_first_frame(self.script(index).scene, self._size)

    def script(self, index: int) -> Script:
        """Return the scene of a clip and its spans of conditions."""
        return random_script(index, seconds=self._format.num_frames / self._format.fps)

    @property
    def _size(self) -> tuple[int, int]:
        return self._format.height, self._format.width


class LookClips(_RenderedClips):
    """Scenes of the world in several looks each.

    In each clip the subject or the camera moves; nothing changes the look. Scenes that are a whole photograph are left
    out, because all of their pixels have the same depth.
    """

    _kind = "looks of world"

    def __init__(self, clips: ClipFormat, data: WorldData) -> None:
        super().__init__(clips, data)
        count = -(-data.num_clips // data.clips_per_scene)
        self._scenes: list[int] = []
        seed = 0
        while len(self._scenes) < count:
            assert seed < EVALUATION_SEED, "training would reach the scenes kept for evaluation"
            if random_scene(seed).subject is not None:
                self._scenes.append(seed)
            seed += 1
        self._moves = (*conditions("motion"), *conditions("camera"))

    @property
    def _details(self) -> str:
        return f", {self._data.clips_per_scene} a scene"

    def shot(self, index: int) -> RenderedClip:
        clips, (scene, condition) = self._format, self._choose(index)
        return render(scene, condition, num_frames=clips.num_frames, size=(clips.height, clips.width), fps=clips.fps)

    def item(self, index: int) -> ClipItem:
        scene, condition = self._choose(index)
        return ClipItem(
            clip=str(index),
            condition=condition,
            scene=str(scene.seed),
            first_frame=str(index),
            caption=neutral_caption(scene),
            full_caption=full_caption(scene, parts_of(condition)),
        )

    def _choose(self, index: int) -> tuple[Scene, str]:
        place, look = divmod(index, self._data.clips_per_scene)
        scene = _scene(self._scenes[place])
        rng = np.random.Generator(np.random.PCG64([scene.seed, 0]))
        painted = repaint(scene, int(rng.integers(1 << 16)) + look)
        moves = [name for name in self._moves if can_show(scene, name)]
        return painted, moves[int(rng.permutation(len(moves))[look % len(moves)])]


def _film_first_frame(scene: Scene, size: tuple[int, int]) -> NDArray[np.uint8]:
    # The first frame is the same for all conditions.
    frames: NDArray[np.uint8] = render(scene, None, num_frames=1, size=size).clip.frames
    return frames[0]


@lru_cache(maxsize=1)
def _unseen_conditions() -> frozenset[str]:
    return frozenset(conditions(split="unseen"))


@lru_cache(maxsize=64)
def _scene(seed: int) -> Scene:
    return random_scene(seed)
