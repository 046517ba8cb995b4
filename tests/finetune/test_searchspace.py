from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from experiments.results import RunResult
from experiments.space import Space, space_names
from finetune.recipe import Recipe, fixed_by
from finetune.searchspace import checked, earlier
from finetune.train import Arm, Context
from models.encoder import EncoderSpec

ARM = Arm(name="scratch", spec=EncoderSpec(name="resnet1d"))


@pytest.mark.parametrize("name", space_names())
def test_every_space_that_comes_with_the_toolkit_fits_every_encoder(name: str) -> None:
    for encoder in ("resnet1d", "transformer1d", "gru"):
        space = checked(name, {}, Arm(name="scratch", spec=EncoderSpec(name=encoder)))
        assert {"lr", "schedule"} <= {dimension.name for dimension in space.dimensions}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[speed]\nrange = [1, 2]", "dimension speed: a recipe has no such choice; choose from schedule, num_stages"),
        ("[epochs]\nrange = [1, 2]", "dimension epochs: a recipe has no such choice"),
        ('[head]\nchoices = ["linear", "hydra"]', "dimension head: unknown head 'hydra'; choose from linear"),
        ('[schedule]\nchoices = ["melt"]', "dimension schedule: unknown schedule 'melt'"),
        ("[lr]\nrange = [0.1, 2.0]", "dimension lr: --lr 2.0"),
        ('[lr]\nchoices = ["fast"]', "dimension lr: 'fast' is not a number"),
        ("[num_stages]\nrange = [1, 9]", "dimension num_stages: 9 is more than the encoder's 5 stages"),
        ("[which_stage]\nrange = [1.0, 2.5]", "dimension which_stage: 1.0 is not a whole number"),
        ("[thaw_start]\nrange = [0.5, 1.0]", "dimension thaw_start: --thaw-start 1.0"),
        ('[loss]\nchoices = ["hinge"]', "dimension loss: unknown loss 'hinge'"),
    ],
    ids=lambda text: text.partition("\n")[0],
)
def test_what_a_recipe_or_the_encoder_refuses_is_named(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"^space mine, dimension ") as error:
        checked(str(file), {}, ARM)
    assert said in str(error.value)


def test_what_the_user_fixes_is_not_searched() -> None:
    space = checked("default", fixed_by(["schedule=gradual", "average=1", "lr=0.003"]), ARM)
    names = [dimension.name for dimension in space.dimensions]
    assert not {"schedule", "lr", "average"} & set(names)
    drawn = space.first({"pretrained": True})
    assert "thaw_interval" in drawn and "num_stages" not in drawn
    assert "thaw_interval" not in space.first({"pretrained": False})


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("speed=3", "--fixed speed=3: NAME=VALUE is needed, NAME one of schedule, num_stages"),
        ("lr", "--fixed lr: '' is not a number"),
        ("epochs=3", "--fixed epochs=3: NAME=VALUE is needed"),
        ("lr=fast", "--fixed lr=fast: 'fast' is not a number"),
        ("num-stages=1.5", "--fixed num-stages=1.5: '1.5' is not a number"),
    ],
)
def test_a_mistake_in_what_is_fixed_is_named(assignment: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^--fixed ") as error:
        fixed_by([assignment])
    assert said in str(error.value)


def test_what_is_fixed_has_the_types_of_a_recipe() -> None:
    fixed = fixed_by(["num-stages=2", "l2_sp=1e-3", "head=mlp"])
    assert fixed == {"num_stages": 2, "l2_sp": 0.001, "head": "mlp"}
    replace(Recipe(), **fixed).check()  # pyright: ignore[reportArgumentType]


def test_random_weights_have_no_part_in_what_concerns_pretrained_ones() -> None:
    recipe = Recipe(
        schedule="gradual",
        ratio=0.1,
        layer_decay=0.5,
        l2_sp=0.1,
        batchnorm="still",
        thaw_warm_up=0.1,
        lr=0.01,
        average=1,
    )
    assert recipe.untrained() == Recipe(lr=0.01, average=1)


def result_of(**more: Any) -> RunResult:
    confusion = [[3, 1], [0, 4]]
    usual: dict[str, Any] = {
        "arm": "transfer",
        "encoder": "hash",
        "source": "s",
        "dataset": "d",
        "config": asdict(Recipe(epochs=6)) | {"stage": "search", "study": "other", "arch": "resnet1d", "lr": 0.003},
        "seed": 0,
        "protocol": "beat-random",
        "badge": "beat-random",
        "part": "validation",
        "metrics": {},
        "confusion": confusion,
        "classes": ["N", "V"],
        "cost": {},
        "commit": None,
        "created": "2026-01-02T03:04:05+00:00",
    }
    return RunResult(**(usual | more))


def test_only_trials_of_the_same_task_and_encoder_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    space = Space.from_json({"name": "a", "about": "", "dimensions": {"lr": {"range": [0.001, 0.01]}}})
    base = Context(dataset="d", protocol="beat-random", badge="beat-random", classes=("N", "V"))
    monkeypatch.setattr(Arm, "encoder_hash", "hash")
    of_use = [result_of(), result_of(encoder=None, arm="scratch")]
    config = result_of().config
    others = [
        result_of(encoder="another"),
        result_of(dataset="other"),
        result_of(protocol="patient"),
        result_of(config=config | {"stage": "final"}),
        result_of(config=config | {"arch": "gru"}),
        result_of(config=config | {"lr": 0.5}),
        result_of(config=config | {"head": "mlp"}),
        result_of(config=config | {"study": "own"}),
        result_of(seed=1),
        replace(result_of(), classes=["N", "S"]),
    ]
    assert earlier([*others, *of_use], ARM, base, Recipe(), space, 0, "own") == of_use
