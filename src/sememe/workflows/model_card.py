"""The card of a model: what a person must know before using it, as a README with front matter."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import ModelCardData

_USE = """```python
from sememe import {pipeline}

pipe = {pipeline}.from_pretrained(FOLDER)
```"""
_WORLD = """## Base

No other model; all weights begin at random or at principal components of the training clips.

## Data

Clips of sememe's procedural world, which are made by a program and show no person, place or brand.

## Limits

- It has seen drawn worlds alone: pictures and clips from cameras are outside of what it knows.
- It is small; details are coarse.

## License

Apache License 2.0, weights included."""
_OTHERS = """## Base and data

{origins}

## License

Not stated. It depends on the licenses of what is named above; say here what others may do with this model."""
_OF_WORLD = re.compile(r"\bworld \d")


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
        training: Figures of the training by name.
        origins: Clips that it was trained on, and models of others that it began with.
    """

    title: str
    description: str
    source: str
    pipeline: str
    task: str
    intended_use: str
    training: Mapping[str, str]
    origins: Sequence[str]


def write_card(card: ModelCard, files: Mapping[str, str]) -> str:
    """Return the text of a card; `files` are the sha256 of the model's files by their path."""
    is_ours = all(_OF_WORLD.search(origin) for origin in card.origins)
    front = ModelCardData(
        license="apache-2.0" if is_ours else "other",
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
        f"## Intended use\n\n{_sentence(card.intended_use)}",
        _WORLD if is_ours else _OTHERS.format(origins="\n".join(f"- {origin}" for origin in card.origins)),
        f"## Training\n\n{_table('', 'value', card.training)}",
        f"## Files\n\n{_table('file', 'sha256', {f'`{name}`': f'`{hash_}`' for name, hash_ in files.items()})}",
    ]
    return "\n\n".join(parts) + "\n"


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _table(name: str, value: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {name} | {value} |", "|---|---|"]
    return "\n".join(lines + [f"| {_cell(key)} | {_cell(entry)} |" for key, entry in rows.items()])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
