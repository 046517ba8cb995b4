from pathlib import Path

import pytest

from finetune.controls import Control
from finetune.efficiency import draw, draw_efficiency
from finetune.groups import group_arms
from finetune.recipe import Recipe
from finetune.rows import Row, make_rows
from tests.samples import pretrained_arm, results_of

SHARES = (0.005, 0.01, 0.05, 0.25, 1.0)
RECIPES = [Recipe(schedule="frozen"), Recipe(ratio=0.1), Recipe()]


def rows_of(
    num_seeds: int, tasks: tuple[str, ...] = ("masked", "contrastive"), shares: tuple[float, ...] = SHARES
) -> list[Row]:
    arms = [pretrained_arm(task, seed) for task in tasks for seed in range(3)]
    groups = group_arms(arms, RECIPES, [Control(name="majority"), Control(name="linear")])
    results = []
    for place, group in enumerate(groups):
        for share in shares:
            level = 0.5 + 0.03 * place + 0.04 * SHARES.index(share)
            seeds = [(member, seed) for member in range(len(group.arms)) for seed in range(num_seeds)]
            recalls = {(member, seed): level + 0.01 * ((3 * member + 5 * seed) % 4) for member, seed in seeds}
            results += results_of(group, recalls, share)
    return make_rows(groups, shares, results)


def test_every_pretraining_has_a_column_and_every_recipe_a_line() -> None:
    figure = draw(rows_of(8), "a comparison")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert [title.split(" · ")[0] for title in titles] == ["masked", "contrastive"]
    level, gain = figure.axes[0], figure.axes[2]
    assert level.get_legend_handles_labels()[1] == [
        *("linear", "random-frozen", "scratch"),
        *("masked · frozen", "masked · full, ratio 0.1", "masked · full, ratio 1"),
    ]
    assert len(gain.containers) == len(RECIPES)
    assert [text.get_text() for text in gain.get_xticklabels()] == ["0.5", "1", "5", "25", "100"]


def test_what_is_drawn_is_what_the_rows_say() -> None:
    rows = [row for row in rows_of(8) if row.name == "masked" and row.words == "frozen"]
    line, _, (bars,) = draw(rows_of(8), "a comparison").axes[2].containers[0]
    assert list(line.get_ydata()) == pytest.approx([row.difference.mean for row in rows if row.difference])
    ends = [tuple(segment[:, 1]) for segment in bars.get_segments()]
    wanted = [(row.difference.low, row.difference.high) for row in rows if row.difference]
    assert ends == [pytest.approx(one) for one in wanted]


@pytest.mark.parametrize("shares", [SHARES, (1.0,)], ids=["five", "one"])
@pytest.mark.parametrize("num_seeds", [1, 2])
def test_a_picture_of_few_runs_is_drawn_too(num_seeds: int, shares: tuple[float, ...], tmp_path: Path) -> None:
    files = draw_efficiency(rows_of(num_seeds, ("masked",), shares), "a comparison", tmp_path)
    assert [file.name for file in files] == ["label_efficiency.png", "label_efficiency.svg"]
    assert all(file.stat().st_size > 10_000 for file in files)


def test_controls_alone_are_drawn() -> None:
    rows: list[Row] = [row for row in rows_of(2) if row.arm != "transfer"]
    assert draw(rows, "interrupted early").axes[0].get_legend_handles_labels()[1]
