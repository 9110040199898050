"""Measure how often a model follows its reference, on a few cases.

The world can render the true result, so no judge model is needed. The figures in docs/evidence.md come from 200 cases
per row; the few here only show how it works.
"""

from pathlib import Path

from sememe import EvaluationSettings, evaluate


def main(folder: Path, num_cases: int = 8, num_inference_steps: int = 12) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    settings = EvaluationSettings(
        model="tiny",
        rows=("seen",),
        generations=num_cases,
        settings={"num_inference_steps": num_inference_steps},  # any setting of the system
        output=folder / "report.json",  # an existing report is continued
        sheet=folder / "examples.png",
    )
    report = evaluate(settings, lambda progress: print(progress.stage, progress.step, progress.num_steps))
    for row in report.rows:
        right = sum(result.is_right for result in row.results)
        print(f"{row.name}: {right} of {len(row.results)} follow the reference")


if __name__ == "__main__":
    main(Path("outputs"))
