"""The card of a model: what a person must know before using it, as a README with front matter."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from huggingface_hub import ModelCardData

_USE = """```python
from sememe import {pipeline}

pipe = {pipeline}.from_pretrained(FOLDER)
```"""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model's README says.

    Attributes:
        title: Name of the model.
        description: One sentence.
        source: Where the weights come from, one line.
        pipeline: Name of the class that loads it.
        task: Task as the Hugging Face hub names it.
        intended_use: What it is for.
        base: What it was built on.
        data: What it was trained on.
        limits: What it cannot do, one entry each.
        training: Figures of the training by name.
        evaluation: Measured figures by name, with their intervals; empty where nothing was measured.
        license: Licence as the Hugging Face hub names it.
    """

    title: str
    description: str
    source: str
    pipeline: str
    task: str
    intended_use: str
    base: str = "no other model; all weights begin at random or at principal components of the training clips"
    data: str = "clips of sememe's procedural world, which are made by a program and show no person, place or brand"
    limits: tuple[str, ...] = (
        "It has seen drawn worlds alone: pictures and clips from cameras are outside of what it knows.",
        "It is small; details are coarse.",
    )
    training: Mapping[str, str] = field(default_factory=dict)
    evaluation: Mapping[str, str] = field(default_factory=dict)
    license: str = "apache-2.0"


def write_card(card: ModelCard, files: Mapping[str, str]) -> str:
    """Return the text of a card; `files` are the sha256 of the model's files by their path."""
    front = ModelCardData(
        license=card.license,
        library_name="sememe",
        pipeline_tag=card.task,
        description=card.description,
        source=card.source,
    )
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {card.title}",
        card.description,
        _USE.format(pipeline=card.pipeline),
        f"## Base\n\n{_sentence(card.base)}",
        f"## Data\n\n{_sentence(card.data)}",
        f"## Intended use\n\n{_sentence(card.intended_use)}",
        "## Limits\n\n" + "\n".join(f"- {_sentence(limit)}" for limit in card.limits),
    ]
    if card.training:
        parts.append(f"## Training\n\n{_table('', 'value', card.training)}")
    if card.evaluation:
        parts.append(f"## Evaluation\n\n{_table('measure', 'value', card.evaluation)}")
    parts.append("## License\n\nApache License 2.0, weights included.")
    parts.append(
        f"## Files\n\n{_table('file', 'sha256', {f'`{name}`': f'`{hash_}`' for name, hash_ in files.items()})}"
    )
    return "\n\n".join(parts) + "\n"


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _table(name: str, value: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {name} | {value} |", "|---|---|"]
    return "\n".join(lines + [f"| {_cell(key)} | {_cell(entry)} |" for key, entry in rows.items()])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
