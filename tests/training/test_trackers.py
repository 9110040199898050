import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sememe.errors import MissingExtraError, OutputError
from sememe.training.progress import RunLog
from sememe.training.run_record import RunRecord, write_run
from sememe.training.trackers import check_trackers

SHEET = np.zeros((4, 6, 3), np.uint8)


class StandIn(ModuleType):
    """As much of Weights & Biases as is called, with the names of its parameters."""

    class Error(Exception):
        """What all of its errors are."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.util.spec_from_loader("wandb", None)
        self.runs: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.num_finished = 0

    def init(
        self,
        *,
        project: str,
        dir: str,  # noqa: A002
        id: str,  # noqa: A002
        name: str,
        config: dict[str, Any],
        allow_val_change: bool,
        resume: str,
        settings: Any,
    ) -> "StandIn":
        if "taken" in config:
            raise self.Error("no\n  key")
        assert resume == "allow"
        assert allow_val_change
        self.runs.append({"project": project, "dir": dir, "id": id, "name": name, "config": config})
        return self

    def log(self, data: dict[str, Any], step: int) -> None:
        self.logged.append((step, data))

    def finish(self) -> None:
        self.num_finished += 1

    def Settings(self, *, console: str) -> str:  # noqa: N802
        return console

    def Image(self, data_or_path: Any) -> Any:  # noqa: N802
        return data_or_path.shape


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return stand_in


def write(folder: Path, step: int, *records: dict[str, Any]) -> None:
    log = RunLog(folder, step, ("tensorboard", "wandb"))
    for record in records:
        log.write(record)
    log.show(SHEET, records[-1]["step"])
    log.close()


def test_figures_and_sheets_go_to_all_programs_under_one_run(tmp_path: Path, wandb: StandIn) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write_run(folder, RunRecord(recipe="r", settings={"training.seed": "3"}, inputs={}))
    lines = [{"step": step, "loss": 1.0 / step, "loss_noise_0_25": 0.5, "phase": "main"} for step in (1, 2, 3)]
    write(folder, 0, *lines, {"step": 3, "validation_loss": 0.25})
    # Gone on with from a checkpoint at step 2.
    write(folder, 2, {"step": 3, "loss": 1.0 / 3}, {"step": 4, "loss": 0.25})
    first, second = wandb.runs
    assert first == second
    assert first | {"id": ""} == {
        "project": "sememe",
        "dir": str(folder),
        "id": "",
        "name": "run",
        "config": {"training.seed": "3"},
    }
    figures = [(1, {"loss": 1.0, "loss_noise_0_25": 0.5}), (2, {"loss": 0.5, "loss_noise_0_25": 0.5})]
    again = [(3, {"loss": 1 / 3}), (4, {"loss": 0.25})]
    assert wandb.logged[:2] == figures
    assert wandb.logged[3:] == [
        (3, {"validation_loss": 0.25}),
        (3, {"samples": SHEET.shape}),
        *again,
        (4, {"samples": SHEET.shape}),
    ]
    assert wandb.num_finished == 2
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    losses = {event.step: event.value for event in board.Scalars("loss")}
    assert losses == pytest.approx({1: 1.0, 2: 0.5, 3: 1 / 3, 4: 0.25})
    # That of step 3 belongs to what was done over again, as its loss does.
    assert not board.Scalars("validation_loss")
    assert [event.step for event in board.Images("samples")][-1] == 4
    # A run that begins again in the folder is another one.
    write(folder, 0, {"step": 1, "loss": 1.0})
    assert wandb.runs[2]["id"] != first["id"]


def test_programs_that_do_not_take_the_run_are_named(
    tmp_path: Path, wandb: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, RunRecord(recipe="r", settings={"taken": "yes"}, inputs={}))
    with pytest.raises(OutputError, match=r"^Weights & Biases refuses the run: no key; log in with `wandb login`"):
        RunLog(tmp_path, 0, ["wandb"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"sememe\[train\]"):
        check_trackers(["tensorboard"])
    with pytest.raises(MissingExtraError, match=r"wandb is not installed; .*sememe\[wandb\]"):
        RunLog(tmp_path, 0, ["wandb"])
