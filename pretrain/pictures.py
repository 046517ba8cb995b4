"""What a run shows afterwards: learning curves, and reconstructions or a map of the embedding."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from data.beats import RATE_HZ, Beats
from data.pictures import COLOURS, scatter_tsne, write_figures
from data.split import subset
from models.inference import apply
from models.transformer1d import Transformer1d
from pretrain.masked import Masked, is_hidden, normalised, patches
from pretrain.multitask import Multitask
from pretrain.spectrogram import MaskedSpectrogram
from pretrain.task import Batch, PretrainTask

if TYPE_CHECKING:
    from pretrain.probe import Probe
    from pretrain.train import Outcome

NUM_SHOWN = 6
MAP_BEATS, MAP_BEATS_OF_CLASS = 1200, 100


def write(task: PretrainTask, batch: Batch, probe: Probe, outcome: Outcome, folder: Path) -> list[Path]:
    """Draw what fits the task, as PNG and SVG, into `folder`; the files written.

    Args:
        batch: training beats, of which a few are reconstructed; on the CPU.
    """
    task = task.cpu().eval()
    figures = {"curves": partial(draw_curves, outcome)}
    if masked := masked_part(task):
        figures["reconstructions"] = partial(draw_reconstructions, masked, batch, outcome)
    elif probe.beats.target is not None:
        figures["embedding"] = partial(draw_map, task, probe.beats, outcome)
    return write_figures(figures, folder)


def masked_part(task: PretrainTask) -> Masked | None:
    """What of the task reconstructs, if anything."""
    if isinstance(task, Multitask):
        return task.masked
    return task if isinstance(task, Masked) else None


def draw_curves(outcome: Outcome) -> Figure:
    """Loss by epoch, and the probes from the untrained encoder on."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, probe = figure.subplots(1, 2)
    epochs = range(1, len(outcome.losses) + 1)
    loss.plot(epochs, outcome.losses, marker="o", ms=3, color=COLOURS[0])
    loss.set(xlabel="epoch", ylabel=f"loss of {outcome.task}", title="training loss")
    at = [reading["epoch"] for reading in outcome.readings]
    for name, colour in (("linear", COLOURS[0]), ("neighbours", COLOURS[1])):
        values = [reading[name] for reading in outcome.readings]
        if None not in values:
            probe.plot(at, values, marker="o", ms=3, color=colour, label=name)
            probe.axhline(values[0] or 0.0, color=colour, ls="--", lw=1)
    probe.set(xlabel="epoch", ylabel="macro recall", title="probes of the frozen encoder; dashed: untrained")
    for axes in (loss, probe):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if probe.lines:
        probe.legend(fontsize=8)
    else:
        probe.text(0.5, 0.5, "no labelled beats to probe with", ha="center", transform=probe.transAxes)
    figure.suptitle(f"{outcome.task}, {outcome.architecture}, pretrained on {outcome.source}", fontsize=10)
    return figure


@torch.no_grad()
def draw_reconstructions(task: Masked, batch: Batch, outcome: Outcome) -> Figure:
    """A few beats with what was hidden, and what the decoder made of it."""
    shown = Batch(batch.signal[:NUM_SHOWN], batch.valid_length[:NUM_SHOWN])
    torch.manual_seed(0)
    signal, order, real = task.views(shown)
    (made,) = task(signal, order, real)
    hidden = is_hidden(order, task.num_hidden)
    spectral = isinstance(task, MaskedSpectrogram)
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    panels = figure.subplots(2, NUM_SHOWN // 2, sharex=True, sharey=True).ravel()
    for beat, axes in enumerate(panels[: len(signal)]):
        if spectral:
            wanted, predicted = task.target(signal, real)[beat], hidden[beat] & real[beat].any(-1)
            _spectra(axes, task.patch, wanted, made[beat], predicted)
        else:
            _beat(axes, task, signal[beat], _in_samples(task, made, signal, real)[beat], hidden[beat], real[beat])
    if spectral:
        what = "log spectrum of each patch as it is (above 0) and where hidden, predicted (below)"
    elif isinstance(task.encoder, Transformer1d):
        what = "what was hidden (grey), predicted but for each patch's mean and spread"
    else:
        what = "what was hidden (grey), predicted"
    figure.suptitle(f"{outcome.task}, {outcome.architecture}, pretrained on {outcome.source}:\n{what}", fontsize=10)
    figure.supxlabel("time from the R peak (ms)", fontsize=10)
    figure.supylabel("frequency (Hz)" if spectral else "amplitude (beat scaled to 0…1)", fontsize=10)
    return figure


def _in_samples(task: Masked, made_BNP: Tensor, signal: Tensor, real_BNP: Tensor) -> Tensor:
    """Predicted patches in the units of the signal: normalised ones get their own mean and spread back."""
    target = patches(signal, task.patch)
    if not torch.equal(task.target(signal, real_BNP), target):
        count = real_BNP.sum(-1, keepdim=True).clamp(min=1)
        mean = (target * real_BNP).sum(-1, keepdim=True) / count
        unit = normalised(target, real_BNP)
        scale = ((target - mean) * real_BNP).norm(dim=-1, keepdim=True) / unit.norm(dim=-1, keepdim=True).clamp(
            min=1e-6
        )
        made_BNP = made_BNP * scale + mean
    return made_BNP


def _beat(axes: Axes, task: Masked, signal_LT: Tensor, made_NP: Tensor, hidden_N: Tensor, real_NP: Tensor) -> None:
    length, patch = int(real_NP[:, : task.patch].sum()), task.patch
    ms = [1000 / RATE_HZ * sample for sample in range(signal_LT.shape[-1] + 1)]
    for number in hidden_N.nonzero().flatten().tolist():
        axes.axvspan(ms[min(number * patch, length)], ms[min((number + 1) * patch, length)], color="0.9", lw=0)
    axes.plot(ms[:length], signal_LT[0, :length], color="0.3", lw=1)
    for number in hidden_N.nonzero().flatten().tolist():
        part = slice(number * patch, min((number + 1) * patch, length))
        if part.start < length:
            axes.plot(ms[part], made_NP[number, : part.stop - part.start], color=COLOURS[1], lw=1.6)


def _spectra(axes: Axes, patch: int, wanted_NF: Tensor, made_NF: Tensor, predicted_N: Tensor) -> None:
    """Of the first lead; above zero as it is, mirrored below as predicted, blank where nothing was to be predicted."""
    bins, ms = 3 * patch // 2 + 1, 1000 / RATE_HZ * patch
    made = made_NF.where(predicted_N[:, None], torch.nan)
    both_FN = torch.cat([made[:, :bins].flip(-1), wanted_NF[:, :bins]], dim=-1).T
    top_hz = bins * RATE_HZ / (3 * patch)
    low, high = float(wanted_NF.min()), float(wanted_NF.max())
    extent = (0.0, ms * len(wanted_NF), -top_hz, top_hz)
    axes.imshow(both_FN.numpy(), vmin=low, vmax=high, extent=extent, aspect="auto", origin="lower", cmap="viridis")
    axes.axhline(0, color="white", lw=1)
    axes.yaxis.set_major_formatter(lambda hz, _place: f"{abs(hz):.0f}")


def draw_map(task: PretrainTask, beats: Beats, outcome: Outcome) -> Figure:
    """t-SNE of labelled beats in the embedding (van der Maaten and Hinton 2008, JMLR 9:2579–2605)."""
    if len(beats) > MAP_BEATS:
        beats = subset(beats, MAP_BEATS, 0, MAP_BEATS_OF_CLASS)
    features = apply(task.encoder, beats.signal)
    features = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
    figure = Figure(figsize=(8, 6), layout="constrained")
    scatter_tsne(figure.subplots(), features.numpy(), beats, 0)
    figure.suptitle(
        f"{outcome.task}, {outcome.architecture}, pretrained on {outcome.source}:\n"
        f"t-SNE of frozen features, {outcome.probed_on}",
        fontsize=10,
    )
    figure.legend(loc="outside right center")
    return figure
