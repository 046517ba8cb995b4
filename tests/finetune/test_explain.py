import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import data
import models
from data.beats import Beats
from data.intervals import RATIOS
from data.synthetic import synthetic_arrhythmia
from finetune import attribution
from finetune.attribution import METHODS, WINDOW, Explained, delete, explain, flat_lines, inside, stretches, windows
from finetune.explain import caption, largest_ratio, pick, sample_by_answer, to_json
from finetune.explain_pictures import draw, draw_beat, draw_means
from finetune.intervals import COLUMNS
from finetune.model import Model
from models.checkpoint import restore_classifier, save
from models.encoder import EncoderSpec
from tests.samples import assert_refused, checkpoint_of, classifier_of

RunMany = Callable[..., list[tuple[int | str, str, str]]]

QUICK = "tcn1d@width=2,depth=1"


class Linear(nn.Module):
    """Logits that are sums of weighted samples and ratios: every attribution is known."""

    def __init__(self, num_ratios: int, num_leads: int = 1) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.of_samples = nn.Parameter(torch.randn(5, num_leads, 187, generator=random))
        self.of_ratios = nn.Parameter(torch.randn(5, num_ratios, generator=random))

    def forward(self, signal: Tensor, ratios: Tensor | None = None) -> Tensor:
        logits = signal.flatten(1) @ self.of_samples.flatten(1).T
        return logits if ratios is None else logits + ratios @ self.of_ratios.T


@pytest.fixture(scope="module")
def beats() -> Beats:
    return synthetic_arrhythmia(40, 5)


def linear(intervals: str = "all", num_leads: int = 1) -> Model:
    checkpoint = classifier_of(QUICK, intervals=intervals)
    classifier = Linear(len(COLUMNS[intervals]), num_leads)
    return Model(classifier=classifier, checkpoint=checkpoint, origin="c.pt")  # pyright: ignore[reportArgumentType]


def model_of(arch: str, intervals: str = "none") -> Model:
    checkpoint = classifier_of(arch, intervals=intervals)
    return Model(classifier=restore_classifier(checkpoint, "c.pt").eval(), checkpoint=checkpoint, origin="c.pt")


def weights(model: Model, explained: Explained) -> tuple[Tensor, Tensor]:
    """Of the explained class of each beat."""
    classifier = model.classifier
    assert isinstance(classifier, Linear)
    return classifier.of_samples[explained.target].detach(), classifier.of_ratios[explained.target].detach()


@pytest.mark.parametrize("intervals", COLUMNS)
@pytest.mark.parametrize("num_leads", [1, 2])
def test_integrated_gradients_of_a_linear_model_are_its_terms(intervals: str, num_leads: int, beats: Beats) -> None:
    beats = replace(beats, signal=torch.cat([beats.signal, beats.signal.flip(0)], 1)[:, :num_leads].contiguous())
    model = linear(intervals, num_leads)
    explained = explain(model, beats, range(40))
    of_samples, of_ratios = weights(model, explained)
    samples, *ratios = explained.attributions["ig"]
    torch.testing.assert_close(samples, of_samples * (beats.signal - flat_lines(beats)), atol=1e-5, rtol=1e-4)
    assert len(ratios) == bool(COLUMNS[intervals]) and len(explained.ratios) == len(COLUMNS[intervals])
    if ratios:
        assert beats.intervals is not None
        given = beats.intervals[:, list(COLUMNS[intervals])]
        torch.testing.assert_close(ratios[0], of_ratios * given, atol=1e-5, rtol=1e-4)
    assert explained.gap("ig").abs().max() < 1e-4


@pytest.mark.parametrize("num_leads", [1, 2])
def test_occlusion_of_a_linear_model_is_the_sum_of_a_windows_terms(num_leads: int, beats: Beats) -> None:
    beats = replace(beats, signal=beats.signal.repeat(1, num_leads, 1))
    model = linear("causal", num_leads)
    explained = explain(model, beats, range(40), label=2, methods=["occlusion"])
    assert explained.target.tolist() == [2] * 40
    of_samples, of_ratios = weights(model, explained)
    terms = (of_samples * (beats.signal - flat_lines(beats))).sum(1).view(40, 17, WINDOW).sum(2)
    found = windows(explained, "occlusion", padding=True)
    torch.testing.assert_close(found, terms, atol=1e-4, rtol=1e-4)
    samples, ratios = explained.attributions["occlusion"]
    assert torch.equal(samples[..., 0], samples[..., 10])
    torch.testing.assert_close(ratios, of_ratios * explained.ratio_values, atol=1e-4, rtol=1e-4)


def test_the_baseline_is_the_beats_own_mean_to_the_end_of_the_window(beats: Beats) -> None:
    signal = torch.tensor([[[1.0, 0.0, 0.5, 0.0, 0.0]]])
    one = replace(beats.select(torch.tensor([0])), signal=signal, valid_length=torch.tensor([3]))
    assert flat_lines(one).tolist() == [[[0.5] * 5]]
    silent = replace(one, signal=torch.zeros(1, 1, 5), valid_length=torch.tensor([0]))
    assert not flat_lines(silent).any()


@pytest.mark.parametrize("method", METHODS)
def test_what_reads_the_padding_alone_has_all_of_its_attribution_there(method: str, beats: Beats) -> None:
    model = linear("none")
    assert isinstance(model.classifier, Linear)
    end = WINDOW * -(-int(beats.valid_length.max()) // WINDOW)
    assert 0 < end < 187
    for part, share in ((slice(0, end), 1.0), (slice(0, None), 0.0)):
        nn.init.ones_(model.classifier.of_samples)
        with torch.no_grad():
            model.classifier.of_samples[..., part] = 0
            if not share:
                model.classifier.of_samples[..., :WINDOW] = 1
        explained = explain(model, beats, range(40))
        padding, found = explained.padding(method)
        assert torch.allclose(found, torch.full((40,), share), atol=1e-5)
        mean = flat_lines(beats)[:, 0, 0]
        wanted = -mean * (187 - end) if share else torch.zeros(40)
        torch.testing.assert_close(padding, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("arch", [QUICK, "gru@width=2,depth=1,patch=17", "transformer1d@dim=8,depth=1,heads=2"])
def test_attributions_of_a_network_add_up_and_do_not_hang_on_the_other_beats(arch: str, beats: Beats) -> None:
    model = model_of(arch, "causal")
    explained = explain(model, beats, range(20))
    whole = (explained.logit - explained.baseline_logit).abs()
    assert (explained.gap("ig").abs() < 0.05 * whole + 0.01).all() and whole.max() > 0.1
    again, alone = explain(model, beats, range(20)), explain(model, beats, [7])
    for method in METHODS:
        for one, other, single in zip(
            *(found.attributions[method] for found in (explained, again, alone)), strict=True
        ):
            assert torch.equal(one, other)
            torch.testing.assert_close(one[7:8], single, atol=1e-5, rtol=1e-3)


def test_stretches_come_by_size_and_end_with_the_beat(beats: Beats) -> None:
    model = linear("none")
    explained = explain(model, beats, range(40))
    for row in range(40):
        found = stretches(explained, "ig", row)
        assert len(found) == 3
        sizes = [abs(stretch.attribution) for stretch in found]
        assert sizes == sorted(sizes, reverse=True)
        end_ms = float(beats.valid_length[row]) * 8
        assert all(stretch.start_ms < stretch.end_ms <= end_ms for stretch in found)
        assert sizes[0] == pytest.approx(float(windows(explained, "ig")[row].abs().max()))
    assert str(stretches(explained, "ig", 0)[0]).count("–") == 1


def test_removing_the_highest_terms_of_a_linear_model_takes_exactly_them(beats: Beats) -> None:
    model = linear("all")
    explained = explain(model, beats, range(40))
    found = delete(model, explained, "ig")
    terms = explained.per_sample("ig").where(inside(beats), float("-inf"))
    lost = [
        float(terms[row].sort(descending=True).values[: int(np.ceil(0.1 * int(beats.valid_length[row])))].sum())
        for row in range(40)
    ]
    assert found.top == pytest.approx(np.mean(lost), rel=1e-3)
    assert (found.num_beats, found.wins) == (40, 40) and found.random < found.top
    assert delete(model, explained, "ig") == found


def test_a_misleading_attribution_fails_the_deletion_test(beats: Beats) -> None:
    model = linear("none")
    explained = explain(model, beats, range(40))
    inverted = {name: tuple(-part for part in parts) for name, parts in explained.attributions.items()}
    found = delete(model, replace(explained, attributions=inverted), "ig")
    assert found.wins == 0 and found.top < min(0.0, found.random)


def test_the_most_confident_right_and_wrong_beats_of_each_class_are_picked() -> None:
    probability = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.05, 0.95], [0.55, 0.45]])
    target = np.array([0, 0, 0, 1, 1, 1])
    assert pick(probability, target, 1) == [0, 2, 4, 5]
    assert pick(probability, target, 2) == [0, 1, 2, 4, 3, 5]
    assert pick(probability, None, 1) == [0, 4]
    assert sample_by_answer(probability, 2) == sample_by_answer(probability, 2)
    assert len(sample_by_answer(probability, 2)) == 4 and sample_by_answer(probability, 9) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("beats.csv", "csv:beats.csv"),
        ("a/b.parquet", "parquet:a/b.parquet"),
        ("b.parq@360", "parquet:b.parq@360"),
        ("csv:x.csv", "csv:x.csv"),
        ("arrhythmia", "arrhythmia"),
    ],
)
def test_a_table_is_known_by_its_ending(text: str, name: str) -> None:
    assert data.own_name(text) == name


def test_the_ratio_of_the_largest_effect_is_named_with_its_value(beats: Beats) -> None:
    model = linear("causal")
    explained = explain(model, beats, range(40))
    assert explained.ratios == (RATIOS[0].name, RATIOS[3].name)
    assert beats.intervals is not None
    _, of_ratios = weights(model, explained)
    terms = of_ratios * beats.intervals[:, [0, 3]]
    for row in range(40):
        ratio = largest_ratio(explained, "ig", row)
        assert ratio is not None
        column = int(terms[row].abs().argmax())
        assert ratio[0] == explained.ratios[column]
        assert ratio[1] == float(beats.intervals[row, [0, 3][column]])
        assert ratio[2] == pytest.approx(float(terms[row, column]), rel=1e-3)
    assert largest_ratio(explain(linear("none"), beats, [0]), "ig", 0) is None


def test_everything_is_in_the_json(beats: Beats) -> None:
    explained = explain(linear("all"), replace(beats, target=None), [3, 1])
    content = json.loads(json.dumps(to_json(explained, "ig"), allow_nan=False))
    assert [row["index"] for row in content["beats"]] == [3, 1]
    for row, place in enumerate((3, 1)):
        said = content["beats"][row]
        assert said["true"] is None and said["answer"] == said["explained"] in "NSVFQ"
        assert list(said["ratios"]) == [ratio.name for ratio in RATIOS]
        for method in METHODS:
            samples, ratios = said["attributions"][method]["samples"], said["attributions"][method]["ratios"]
            assert np.shape(samples) == (1, 187) and np.shape(ratios) == (6,)
            assert np.sum(samples) + np.sum(ratios) == pytest.approx(said["logit"] - said["baseline_logit"], abs=1e-3)
        assert said["num_samples"] == int(beats.valid_length[place])


def test_a_sum_that_does_not_add_up_is_said(beats: Beats) -> None:
    model = linear("none")
    explained = explain(model, beats, range(4))
    deletion = delete(model, explained, "ig")
    assert "read them with care" not in caption(explained, "ig", deletion)
    halved = replace(explained, attributions={"ig": (explained.attributions["ig"][0] / 2,)})
    assert "read them with care" in caption(halved, "ig", deletion)
    assert "add up" not in caption(explained, "occlusion", deletion)


@pytest.mark.parametrize("intervals", COLUMNS)
def test_a_picture_has_the_beat_its_windows_and_its_ratios(intervals: str, beats: Beats) -> None:
    explained = explain(linear(intervals), beats, [0])
    figure = draw_beat(explained, 0, "ig", "test")
    true, answer = beats.classes[int(beats.labels[0])], explained.classes[int(explained.probability[0].argmax())]
    assert figure.get_suptitle().startswith(f"beat 0: true class {true}, answer {answer} (probability ")
    upper, lower, *more = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert len(more) == bool(COLUMNS[intervals])
    (line,) = upper.collections
    low, high = line.get_clim()
    assert low == -high and 0 < high <= float(explained.attributions["ig"][0].abs().max())
    assert np.asarray(line.get_array()).shape == (186,)
    assert [len(bars) for bars in lower.containers] == [17, 17]
    if more:
        assert [len(bars) for bars in more[0].containers] == [len(explained.ratios)] * 2


def test_means_are_over_the_beats_of_an_answer_that_last(beats: Beats) -> None:
    explained = explain(linear("none"), beats, range(40), methods=["ig"])
    figure = draw_means(explained, "ig", "test")
    answers = np.bincount(explained.probability.argmax(1), minlength=5)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [f"{name}, {count:,} beats" for name, count in zip("NSVFQ", answers, strict=True) if count]
    label = int(answers.argmax())
    rows = torch.from_numpy(explained.probability.argmax(1) == label)
    panel = next(axes for axes in figure.axes if axes.get_title().startswith("NSVFQ"[label]))
    (line,) = panel.collections
    first = explained.attributions["ig"][0][rows, 0, :2].mean(0)
    assert np.asarray(line.get_array())[0] == pytest.approx(float(first.mean()), rel=1e-4)


def test_names_of_classes_do_not_leave_the_folder(beats: Beats, tmp_path: Path) -> None:
    explained = replace(explain(linear("none"), beats, [0]), classes=("../N", "a b", "V/F", "F", "Q"))
    written = draw(explained, None, "ig", tmp_path, "test")
    assert {path.parent for path in written} == {tmp_path} and all(path.exists() for path in written)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classifiers, an encoder alone, and tables of beats."""
    folder = tmp_path_factory.mktemp("models")
    about = {"data": "synthetic-arrhythmia", "protocol": "beat-random", "badge": "beat-random"}
    save(folder / "c.pt", classifier_of(QUICK, intervals="causal", **about))
    save(folder / "plain.pt", classifier_of(QUICK))
    save(folder / "mtf.pt", classifier_of("cnn2d@width=8,depth=1,image=mtf"))
    slow = {"rate_hz": 100.0, "num_leads": 1, "num_samples": 187}
    save(folder / "slow.pt", replace(classifier_of(QUICK), preprocessing=slow))
    short = {"rate_hz": 125.0, "num_leads": 1, "num_samples": 150}
    save(folder / "short.pt", replace(classifier_of(QUICK), preprocessing=short))
    encoder = models.build(EncoderSpec(name="resnet1d", options={"width": 2, "kernel": 3}))
    save(folder / "encoder.pt", checkpoint_of(encoder.spec, encoder))
    signal = synthetic_arrhythmia(6, 7).signal[:, 0].tolist()
    header = ",".join(map(str, range(187)))
    for name, labels in (("bare.csv", None), ("other.csv", "ababab")):
        rows = [
            ",".join(f"{value:.4f}" for value in row) + (f",{labels[n]}" if labels else "")
            for n, row in enumerate(signal)
        ]
        (folder / name).write_text("\n".join([header + ",label" * bool(labels), *rows]) + "\n")
    return folder


REFUSED = {
    "no file": ("{f}/nothing.pt synthetic-arrhythmia", ["nothing.pt does not exist"]),
    "an encoder": ("{f}/encoder.pt synthetic-arrhythmia", ["encoder.pt holds an encoder without a head"]),
    "another rate": ("{f}/slow.pt synthetic-arrhythmia", ["takes beats at 100 Hz", "has 125"]),
    "another length": ("{f}/short.pt synthetic-arrhythmia", ["150 samples", "187"]),
    "other classes": ("{f}/plain.pt {f}/other.csv", ["tells N, S, V, F, Q apart", "other.csv has a, b"]),
    "out of range": ("{f}/plain.pt {f}/bare.csv --beats 2 6", ["--beats 6: bare has beats 0 to 5"]),
    "below zero": ("{f}/plain.pt {f}/bare.csv --beats -1", ["--beats -1"]),
    "no intervals": ("{f}/c.pt {f}/bare.csv", ["reads RR intervals (causal)", "bare.csv do not carry"]),
    "unknown data": ("{f}/plain.pt lead", ["unknown data set lead; choose from"]),
    "no table": ("{f}/plain.pt {f}/no.csv", ["no.csv"]),
    "protocol": ("{f}/plain.pt synthetic-arrhythmia --protocol folds", ["supports protocol", "not folds"]),
    "no class": ("{f}/plain.pt {f}/bare.csv --of X", ["--of X: choose from N, S, V, F, Q"]),
    "a file for a folder": ("{f}/plain.pt {f}/bare.csv --out {f}/bare.csv", ["--out", "cannot be written to"]),
    "unknown method": ("{f}/plain.pt {f}/bare.csv --method lime", ["lime", "ig", "occlusion"]),
    "no beats": ("{f}/plain.pt {f}/bare.csv --num 0", ["--num 0: at least 1 is needed"]),
    "no means": ("{f}/plain.pt {f}/bare.csv --mean -1", ["--mean -1: 0 or more beats are needed"]),
    "no gradient": ("{f}/mtf.pt {f}/bare.csv", ["mtf.pt: no gradient reaches the beat", "--method occlusion"]),
}


def test_the_command_line(folder: Path, run_many: RunMany) -> None:
    flags = f"--threads 1 --out {folder}"
    good = [
        f"explain {folder}/c.pt synthetic-arrhythmia {flags}/a --json {folder}/a.json --mean 3",
        f"explain {folder}/plain.pt {folder}/bare.csv {flags}/b --beats 4 1 --of V --json {folder}/b.json",
        f"explain {folder}/mtf.pt {folder}/bare.csv {flags}/c --method occlusion --mean 0",
    ]
    bad = [f"explain {args.format(f=folder)}" + f" {flags}/x" * ("--out" not in args) for args, _ in REFUSED.values()]
    prologue = "import finetune.attribution as a\na.NUM_STEPS, a.NUM_DRAWS = 8, 2"
    answers = run_many("finetune", [line.split() for line in (*good, *bad)], prologue)
    assert [(code, err) for code, _, err in answers[:3]] == [(0, "")] * 3
    labelled, bare, mtf = (out for _, out, _ in answers[:3])
    assert (
        "c.pt: validation part of synthetic-arrhythmia, beat-random; integrated gradients" in labelled
        and "deletion test on" in labelled
    )
    assert "deletion test on 2 beats" in bare and "occlusion" in mtf and "add up" not in mtf
    for answer, (_, said) in zip(answers[3:], REFUSED.values(), strict=True):
        assert_refused(answer, said)
    assert not (folder / "x").exists()
    said = json.loads((folder / "a.json").read_text())
    assert all(Path(path).exists() for path in said["pictures"])
    assert {Path(path).suffix for path in said["pictures"]} == {".png", ".svg"}
    assert (folder / "a" / "means.svg").exists() and len(said["pictures"]) == 2 * (len(said["beats"]) + 1)
    assert {beat["true"] for beat in said["beats"]} == set("NSVFQ")
    named = json.loads((folder / "b.json").read_text())
    assert [(beat["index"], beat["true"], beat["explained"]) for beat in named["beats"]] == [
        (4, None, "V"),
        (1, None, "V"),
    ]
    assert not (folder / "b" / "means.png").exists() and not (folder / "c" / "means.png").exists()


def test_few_steps_are_enough_for_a_linear_model_only(beats: Beats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "NUM_STEPS", 2)
    assert explain(linear("none"), beats, [0]).gap("ig").abs().max() < 1e-4
    rough = explain(model_of(QUICK), beats, range(40)).gap("ig").abs().max()
    monkeypatch.undo()
    assert explain(model_of(QUICK), beats, range(40)).gap("ig").abs().max() < rough / 3
