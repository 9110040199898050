"""Clips that cannot be used and are left out, with reasons; too many of them stop the work."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sememe.data.cache_index import ClipItem
from sememe.data.storage import Storage
from sememe.errors import InputError

QUARANTINE_NAME = "quarantine.jsonl"
_MAX_BAD_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class QuarantinedClip:
    """A clip that was left out.

    Attributes:
        clip: Its key.
        reason: Why it cannot be used; names the file.
    """

    clip: str
    reason: str


class Quarantine:
    """Clips that cannot be used, with reasons.

    Args:
        items: The clips that are encoded, by number.
        num_clips: How many clips the data has; more than a hundredth of them must not be left out.
    """

    def __init__(self, items: Mapping[int, ClipItem], num_clips: int) -> None:
        self._items, self._num_clips = items, num_clips
        self._counts = Counter(item.clip for item in items.values())
        self._reasons: dict[str, str] = {}
        self._owners: dict[str, dict[str, set[str]]] = {}
        self._num_bad = 0

    @property
    def clips(self) -> tuple[QuarantinedClip, ...]:
        """The clips that were left out, in the order of the data."""
        return tuple(
            QuarantinedClip(clip=key, reason=self._reasons[key]) for key in self._counts if key in self._reasons
        )

    def add(self, key_field: str, key: str, reason: str) -> None:
        """Leave out the clips of which one field holds a key. Raises `InputError` if these are too many by now."""
        if key_field not in self._owners:
            self._owners[key_field] = defaultdict(set)
            for item in self._items.values():
                self._owners[key_field][getattr(item, key_field)].add(item.clip)
        for clip in self._owners[key_field].get(key, ()):
            self._num_bad += 0 if clip in self._reasons else self._counts[clip]
            self._reasons[clip] = reason
        if self._num_bad > _MAX_BAD_SHARE * self._num_clips:
            raise InputError(
                f"{self._num_bad} of {self._num_clips} videos cannot be used, more than the {_MAX_BAD_SHARE:.0%} that "
                f"are left out; repair them, or take them out of the list; the last: {reason}"
            )

    def list_good(self) -> dict[int, ClipItem]:
        """Return the clips that were not left out, by number, in order."""
        return {number: item for number, item in self._items.items() if item.clip not in self._reasons}

    def write(self, storage: Storage) -> None:
        """Write a JSON line for each clip that was left out; no file if there is none."""
        lines = [json.dumps(asdict(clip)) + "\n" for clip in self.clips]
        if lines:
            storage.write(QUARANTINE_NAME, "".join(lines).encode())
        else:
            storage.remove(QUARANTINE_NAME)
