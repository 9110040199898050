"""The record that joins a system's room to the shared processes.

What needs torch is named as "module:attribute" and imported when it is used, so that listing stays fast.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any, ClassVar

from sememe.errors import InputError
from sememe.records import Record
from sememe.training.recipes import AutoencoderRecipe, Recipe

SAVING = "save_"
"""How the names of inputs begin that are files to write."""


@dataclass(frozen=True, kw_only=True)
class SystemInputs:
    """Files and texts of one generation: the base of a system's own record, which says what differs from this.

    Its fields become flags of the command line, with the entries under `Attributes:` as their help. Paths are files to
    read, and those of fields that are called save_... files to write besides the video, such as save_plan.
    """

    system: ClassVar[str]
    """Name of the system."""
    baseline_name: ClassVar[str] = "without its conditions"
    """The baseline of influence, in words."""
    least_frames: ClassVar[int] = 1
    """Frames that each video has at least, in the section that is read."""
    is_written_in_pieces: ClassVar[bool] = False
    """Whether `pieces` are made one at a time, so that no memory holds the whole result."""

    def images(self) -> Mapping[str, Path]:
        """Return the picture files by name."""
        return {}

    def videos(self, settings: Any) -> Mapping[str, tuple[Path, ...]]:
        """Return the video files by name."""
        return {}

    def section(self, settings: Any) -> Mapping[str, float | None]:
        """Return `start`, `end` and `num_frames` for `survey_video` where only a section of the videos is read."""
        return {}

    def texts(self) -> Mapping[str, Any]:
        """Return the texts by name."""
        return {}

    def replaced_settings(self) -> Mapping[str, str]:
        """Return the settings that have no effect beside an input, by dotted key, and the name of that input."""
        return {}

    def check(self, settings: Any) -> None:
        """Raise `InputError` for inputs that do not go with each other or with the settings."""

    def workload(self, settings: Any) -> Mapping[str, float]:
        """Return what a memory plan is given besides the settings."""
        return {}

    def reading(self, settings: Any, place: int, num_places: int) -> Mapping[str, Any]:
        """Return the arguments with which `read_clip` reads a video among those of its name."""
        return {}

    def arguments(
        self, settings: Any, images: Mapping[str, Any], videos: Mapping[str, Sequence[Any]]
    ) -> dict[str, Any]:
        """Return the arguments of the pipeline but for generator and callback.

        Args:
            settings: Settings record.
            images: Pictures by name, uint8 (height, width, 3).
            videos: Clips by name.
        """
        return {**self.texts(), **images, **videos, "settings": settings}

    def fit(self, pipeline: Any, settings: Any) -> Any:
        """Return settings with the shape of the result as it will be, once the model is loaded."""
        return settings

    def announce(self, pipeline: Any, settings: Any) -> Iterator[str]:
        """Return what a generation will take, where that is worth knowing before it starts, as it is found out."""
        return iter(())

    def list_steps(self, settings: Any) -> Mapping[str, tuple[str, int]]:
        """Return the steps in order: by the name of the tensor that they report, what they do and how many there are.

        What they do is empty where that is all there is to do.
        """
        return {"latents": ("", settings.sampling.num_inference_steps)}

    def pieces(self, pipeline: Any, output: Any) -> Iterator[Any]:
        """Return the result as clips, one after another, each made when it is asked for."""
        return iter(output.clips[:1])

    def shown(self, output: Any) -> Mapping[str, Any]:
        """Return clips that a contact sheet shows between what was read and the result, by name."""
        return {}

    def baseline(self, settings: Any) -> tuple["SystemInputs", Any]:
        """Return inputs and settings of the generation with which influence compares.

        Raises:
            InputError: There is none.
        """
        raise InputError(f"{self.system} has nothing to leave out, so that influence has no meaning; leave it out")

    def read_files(self) -> list[Path]:
        """Return the files that are read."""
        return [path for name, path in self._list_paths() if not name.startswith(SAVING)]

    def extra_files(self) -> Mapping[str, Path]:
        """Return the files that are written besides the video by name, which is that of the field without save_."""
        return {name.removeprefix(SAVING): path for name, path in self._list_paths() if name.startswith(SAVING)}

    def _list_paths(self) -> Iterator[tuple[str, Path]]:
        for each in fields(self):
            value = getattr(self, each.name)
            for path in value if isinstance(value, tuple) else (value,):
                if isinstance(path, Path):
                    yield each.name, path

    def write_extra(self, name: str, output: Any, path: Path) -> None:
        """Write one of `extra_files` from what the pipeline returned."""
        raise AssertionError(name)


@dataclass(frozen=True, kw_only=True)
class GenerationSpec:
    """How a system is asked for a video.

    Attributes:
        summary: What it does, in one sentence.
        inputs: Record of the files and texts.
        flags: Settings that have a flag of their own, by dotted key, besides the number of steps.
        arguments: Inputs that are given without a flag, in this order.
        rare: Inputs whose flags are listed by --help-all alone.
        each: Input that may be given several times, for a result each.
    """

    summary: str
    inputs: type[SystemInputs]
    flags: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    rare: tuple[str, ...] = ()
    each: str | None = None


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One kind of training run.

    Attributes:
        recipe: Class of the recipes that describe such a run.
        makes: Parts of a model that the run trains, and may begin with.
        needs: Parts that are read from other runs or models, by the field of the recipe that names these; a field that
            is None leaves its parts out.
        preparation: Class that reads what a recipe names, a `training.stage.Preparation`. It is called with the
            recipe, the folders of the needed parts by part, and a function that announces what is being done.
        shares_tokens: Whether processes can compute a share together, each some of its tokens (see
            `training.stage.Stage.split_by_tokens`).
    """

    recipe: type
    makes: tuple[str, ...]
    preparation: str
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shares_tokens: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """How a whole model is assembled from its parts.

    Attributes:
        recipe: Class of the recipes that describe a model.
        needs: Parts by the field of the recipe that names the run or model they are read from.
        build: Function that makes the pipeline from a recipe and the folders of its parts by part.
        use: What a model is for, as its card puts it.
        task: Task as the Hugging Face hub names it.
    """

    recipe: type
    needs: Mapping[str, tuple[str, ...]]
    build: str
    use: str
    task: str


@dataclass(frozen=True, kw_only=True)
class CheckpointSpec:
    """What a system knows of models besides how its pipeline reads them; what is left out it does without.

    Attributes:
        released: Repositories on the hub of released models, by the names that memory plans know them by.
        blueprint: Function that makes a pipeline without weights, on the meta device, for memory plans. It is called
            with the name of a released model, or the folder of a model, and the folder of an expert or None. Without
            it folders alone are read, by the pipeline's `sketch`.
        own_dtype: Function that returns the precision in which a model is to be computed, called with the same two;
            without it that is float32.
        find_expert: Function that returns the folder of an expert that is loaded apart from its backbone, by its name.
    """

    released: Mapping[str, str] = field(default_factory=dict)
    blueprint: str | None = None
    own_dtype: str | None = None
    find_expert: str | None = None

    def find_dtype(self, source: str | Path, expert: Path | None) -> str:
        """Return the precision in which a model is to be computed: a released one by name, or that of a folder."""
        return "float32" if self.own_dtype is None else str(resolve_name(self.own_dtype)(source, expert))

    def find_released(self, name: object) -> str | None:
        """Return the released model of that name, or of that repository on the hub; asks no network."""
        return next((each for each, repository in self.released.items() if name in (each, repository)), None)


@dataclass(frozen=True, kw_only=True)
class System:
    """One system: what can be used, trained, assembled and measured.

    Attributes:
        name: Name on the command line, such as "video-as-prompt".
        title: Name in sentences.
        settings: Settings record of a generation.
        generation: Inputs of a generation, and their flags; None before there are any.
        pipeline: Class of its pipeline.
        stages: Kinds of training run, by what they train.
        model: How a model is assembled; None where it is not.
        evaluation: Function that builds the rows of its evaluation, as `evaluation.runner.SystemRows`; None for none.
            It is called with the pipeline, the settings of the generations, a folder for files, and by name the number
            of cases in each row, how many of them may share a scene, and the seed of all that is drawn.
        evaluation_options: Further arguments of that function, by name.
        regenerator: Class that generates training clips again from their noised latents; it is called with a
            `training.recipes.Regeneration`, the clips and their frame rate, and its `generate` with numbers of clips.
        recipes: Functions that make the recipes, by name, in the order in which they are run.
        checkpoints: What is known of models besides how the pipeline reads them.
        workload: Function that lists the phases of a generation as a `compute.rehearsal.Workload`, for memory plans. It
            is called with a pipeline, a name for messages, and settings and numbers of inputs by name.
        demo: Function that renders inputs, generates from them and lays all out on a sheet. It is called with the
            sheet's path, beside which the other files are written, a picture file to use instead of a rendered one or
            None, a seed, the model's own size, and a function that writes the video of some inputs. It returns a record
            for each result.
    """

    name: str
    title: str
    settings: type[Record]
    pipeline: str
    stages: Mapping[str, StageSpec]
    recipes: Mapping[str, Callable[[], Recipe]]
    generation: GenerationSpec | None = None
    model: ModelSpec | None = None
    evaluation: str | None = None
    evaluation_options: tuple[str, ...] = ()
    regenerator: str | None = None
    checkpoints: CheckpointSpec = field(default_factory=CheckpointSpec)
    workload: str | None = None
    demo: str | None = None

    @property
    def pipeline_name(self) -> str:
        """Name of the pipeline's class, which `model_index.json` holds."""
        return self.pipeline.partition(":")[2]

    def import_pipeline(self) -> Any:
        """Return the class of the pipeline."""
        return resolve_name(self.pipeline)


def list_recipes(*modules: ModuleType) -> dict[str, Callable[[], Recipe]]:
    """Return the recipes of modules, each of whose public functions makes the recipe of its name."""
    return {
        name.replace("_", "-"): make
        for module in modules
        for name, make in vars(module).items()
        if inspect.isfunction(make) and make.__module__ == module.__name__ and not name.startswith("_")
    }


AUTOENCODER = StageSpec(
    recipe=AutoencoderRecipe,
    makes=("vae",),
    preparation="sememe.training.stage_autoencoder:AutoencoderPreparation",
)
"""Training of a video autoencoder, the same in every system."""
