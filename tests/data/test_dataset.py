import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from sememe.data.dataset import ClipDataset
from sememe.data.manifest import VideoSample, read_vap_data, write_vap_data
from sememe.errors import InputError, VideoError
from sememe.video import Clip, write_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    frames = np.zeros((6, 32, 48, 3), np.uint8)
    for number in range(3):
        frames[..., number] = np.arange(6, dtype=np.uint8)[:, None, None] * 40
        write_clip(Clip(frames, 8.0), root / f"{number}.mp4")
    (root / "text.mp4").write_text("no video")
    names = ["0.mp4", "text.mp4", "1.mp4", "gone.mp4", "2.mp4"]
    write_vap_data([VideoSample(path=name, caption=f"caption {name}", condition="melt") for name in names], root)
    return root


def test_clips_come_in_one_size_and_bad_ones_are_set_aside(folder: Path, tmp_path: Path) -> None:
    dataset = ClipDataset(folder, read_vap_data(folder), num_frames=3, size=(16, 16), max_bad_share=0.4)
    loaded = list(dataset.iterate())
    assert [each.index for each in loaded] == [0, 2, 4]
    assert loaded[1].sample.caption == "caption 1.mp4"
    assert all(each.clip.frames.shape == (3, 16, 16, 3) for each in loaded)
    assert loaded[0].clip.frames[2].mean() > loaded[0].clip.frames[0].mean() + 20
    text, gone = dataset.quarantine
    assert (text.path, text.sha256) == ("text.mp4", hashlib.sha256(b"no video").hexdigest())
    assert "text.mp4" in text.reason
    assert (gone.path, gone.sha256) == ("gone.mp4", None)
    dataset.write_quarantine(tmp_path / "bad.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == ["text.mp4", "gone.mp4"]
    assert [each.index for each in dataset.iterate([4, 1, 0])] == [4, 0]
    with pytest.raises(VideoError):
        dataset.read(1)


def test_too_many_bad_videos_stop_the_reading(folder: Path) -> None:
    samples = read_vap_data(folder)
    dataset = ClipDataset(folder, samples, num_frames=3, size=(16, 16))
    with pytest.raises(InputError, match=r"1 of 5 videos in .* cannot be read, more than the 1\.0% .*text\.mp4"):
        list(dataset.iterate())
    tolerant = ClipDataset(folder, samples, num_frames=3, size=(16, 16), max_bad_share=0.2)
    with pytest.raises(InputError, match="2 of 5 videos"):
        list(tolerant.iterate())
    with pytest.raises(InputError, match="at least one sample"):
        ClipDataset(folder, [], num_frames=3, size=(16, 16))
