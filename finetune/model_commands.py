"""The flags of `python -m finetune` evaluate, predict, export and explain: what one classifier's file is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from experiments import cli

if TYPE_CHECKING:
    from finetune.model import Model


@dataclass(frozen=True, kw_only=True)
class ModelFlags(cli.DataFlags, cli.Report):
    """What every command asks that takes a classifier."""

    model: tyro.conf.Positional[str]
    """Classifier FILE, as `train` and `tune` write it."""
    threads: int | None = None
    """CPU threads (default: all cores)."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""

    def load(self) -> Model:
        from experiments.machine import resolve_device, resolve_threads
        from finetune.model import Model

        cli.at_least_one(threads=1 if self.threads is None else self.threads)
        resolve_threads(self.threads)
        return Model.load(self.model, resolve_device(self.device))


@dataclass(frozen=True, kw_only=True)
class Export(ModelFlags):
    """Write a classifier as one file that runs without this project, checked against the original, and its model card.

    The scaling of each beat, the temperature and the thresholds of the alarms are inside. The file is written only if
    no probability differs from the original's by more than 1e-4 on 10,000 beats.
    """

    to: Literal["onnx", "torch"] = "onnx"
    """onnx, for onnxruntime; torch: a .pt2 for torch.export.load."""
    data: str | None = None
    """Beats to check it on (default: those it was made from; where they are absent, synthetic ones)."""
    scaling: Literal["inside", "outside"] = "inside"
    """Whether the file scales each beat to 0…1, or its caller."""
    out: Path | None = None
    """FILE to write (default: beside the classifier, .onnx or .pt2); the card has .md behind its name."""
    register: str | None = None
    """Also keep the ONNX file as a model of this NAME in MLflow's registry."""
    tracking: str = "experiments/mlflow.db"
    """MLflow: an SQLite file, or a tracking server's address."""
    device: tyro.conf.Suppress[str] = "cpu"

    @property
    def out_file(self) -> Path:
        return self.out or Path(self.model).with_suffix({"onnx": ".onnx", "torch": ".pt2"}[self.to])

    def run(self) -> None:
        if self.register is not None:
            if self.to != "onnx" or self.tracking == "none":
                raise ValueError(f"--register {self.register}: needs --to onnx, and --tracking other than none")
            if not self.register or set(self.register) & set("/:"):
                raise ValueError(f"--register {self.register}: a name without / and : is needed")
        if self.out_file.resolve() == Path(self.model).resolve():
            raise ValueError(f"--out {self.out_file} is the classifier itself")
        cli.writable(self.out_file)
        from finetune.export import run

        run(self)


@dataclass(frozen=True, kw_only=True)
class Evaluate(ModelFlags):
    """What a classifier is worth on a test part: recall first, intervals, alarms, promises, calibration, patients.

    Temperature, alarms and promises are fitted on validation beats; the test part is looked at once. Intervals are
    from resamples of whole patients, where they are known.
    """

    data: str | None = None
    """Data set to test on (default: the one that it was trained on); another is tested with the temperature and the
    alarms of the classifier's file."""
    protocol: cli.Protocols | None = None
    """Split (default: the one that it was trained by)."""
    seed: int | None = None
    """Of the validation part (default: the one that the classifier was chosen on)."""
    miss_rate: tuple[str, ...] | None = None
    """Promise to miss no more than this share of each class (default: 0.05); V=0.02 says it of one class."""
    recall_floor: float | None = None
    """Alarms find this share of each class's validation beats (default: as the classifier was trained)."""
    recalibrate: bool = False
    """On another data set, fit temperature, alarms and promises on its own validation part."""
    out: Path | None = None
    """FOLDER of the pictures (default: experiments/runs/evaluate_MODEL_DATA_PROTOCOL)."""

    def folder(self, data: str, protocol: str) -> Path:
        from data import short_name

        return self.out or cli.RUNS / f"evaluate_{Path(self.model).stem}_{short_name(data)}_{protocol}"

    def run(self) -> None:
        if self.recall_floor is not None and not 0 < self.recall_floor <= 1:
            raise ValueError(f"--recall-floor {self.recall_floor}: above 0 and at most 1 is needed")
        if self.out is not None:
            cli.writable(self.out / "confusion.png")
        from finetune.evaluate import run

        run(self)


@dataclass(frozen=True, kw_only=True)
class Predict(ModelFlags):
    """Classify the beats of a file, or of a WFDB record from end to end: R peaks found, beats cut, annotations written.

    Beats of another rate are resampled, and that is said. Memory holds 8,192 beats, and an hour of a record.
    """

    input: tyro.conf.Positional[str]
    """FILE.parquet or FILE.csv of beats (csv:FILE@RATE_HZ where they are not at 125 Hz), or a WFDB record's path."""
    out: Path | None = None
    """FILE.parquet or FILE.csv for each beat's class, probabilities and alarms."""
    lead: str | None = None
    """Lead of the record (default: MLII, else II, else its first)."""
    annotations: Path | None = None
    """RECORD.EXTENSION of the WFDB annotations (default: experiments/runs/predict/RECORD.pred)."""
    strip: Path | None = None
    """FILE for a picture of six ten-second rows, as .png and .svg: those where rare classes are most."""
    strip_start: float | None = None
    """Seconds at which the picture's rows begin, one after the other."""
    reference: str | None = None
    """Extension of annotations beside the record to compare with, such as atr; never read otherwise."""

    @property
    def annotation_file(self) -> Path:
        if self.annotations is None:
            return cli.RUNS / "predict" / f"{Path(self.input.removesuffix('.hea').removesuffix('.dat')).name}.pred"
        return self.annotations if self.annotations.suffix else self.annotations.with_suffix(".pred")

    def run(self) -> None:
        from finetune.predict import check, predict

        check(self)
        self.write(predict(self, self.load()))


@dataclass(frozen=True, kw_only=True)
class Explain(ModelFlags):
    """Show which samples of a beat, and which RR ratio, moved a classifier's decision, as a table and pictures.

    Attributions are in units of the logit, against a flat line at the beat's mean and a regular rhythm. Without --beats
    the most confident right and the most confident wrong answer of each true class are explained.
    """

    input: tyro.conf.Positional[str]
    """Beats: a data set's name, or the FILE of a table, .csv or .parq."""
    beats: tuple[int, ...] = ()
    """Which of them, counted from 0."""
    part: Literal["validation", "test", "train"] = "validation"
    """Of a data set; a table is taken whole."""
    protocol: cli.Protocols | None = None
    """Split of the data set (default: the classifier's, where the data set is its own)."""
    num: int = 1
    """Beats of each kind, where --beats names none."""
    of: str | None = None
    """Class whose logit is explained (default: each beat's answer)."""
    method: Literal["ig", "occlusion"] = "ig"
    """What the table and the colours show: integrated gradients, or occlusion of windows of 11 samples."""
    mean: int = 100
    """Beats of each answer for the picture of means and the deletion test; 0: none."""
    out: Path | None = None
    """Folder of the pictures (default: experiments/runs/explain_MODEL_INPUT)."""
    device: tyro.conf.Suppress[str] = "cpu"

    @property
    def folder(self) -> Path:
        from data import short_name

        names = Path(self.model).stem, Path(short_name(self.input)).stem
        return self.out or cli.RUNS / f"explain_{'_'.join(names)}"

    def run(self) -> None:
        cli.at_least_one(num=self.num)
        if self.mean < 0:
            raise ValueError(f"--mean {self.mean}: 0 or more beats are needed")
        cli.writable(self.folder / "means.png")
        from finetune.explain import run

        run(self)


COMMANDS: dict[str, type[cli.Command]] = {
    "evaluate": Evaluate,
    "export": Export,
    "explain": Explain,
    "predict": Predict,
}
