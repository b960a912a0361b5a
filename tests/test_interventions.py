"""Interventions named, given, refused, recorded, repeated; what they do: test_intervened_losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import tiny
from intervened import IN, MOMENTUM, OUT, SMALL, directions, half
from safetensors.torch import save_file

import recovery_probe as rp
from recovery_probe import EditActivations, Freeze, Mask, Project, config
from recovery_probe.analyze import analyze
from recovery_probe.cli import main
from recovery_probe.training import Training


@pytest.fixture(scope="module")
def training() -> Training:
    return Training.open(tiny(**SMALL))


def same_record(a: rp.Run, b: rp.Run) -> None:
    """Two runs have written the same, bit for bit."""
    assert a.recorders == b.recorders
    for one, other in [
        (a.record, b.record),
        *((a.recorder(n), b.recorder(n)) for n in a.recorders),
    ]:
        xr.testing.assert_identical(one.load().drop_attrs(), other.load().drop_attrs())
    assert config.flat(a.config) == config.flat(b.config)


def test_a_tied_unembedding_is_said_to_be_frozen_too(capsys: pytest.CaptureFixture[str]) -> None:
    training = Training.open(tiny(model={"architecture": "gpt2", "dropout": 0.0}))
    frozen = Freeze(embeddings=True)
    frozen.start(training)
    assert sorted(frozen.frozen) == ["embed.weight", "pos_embed.weight"]
    assert "weights held fixed, the tied unembedding among them" in capsys.readouterr().err
    with pytest.raises(rp.InputError, match="the unembedding of this network is 'embed'"):
        Freeze(modules=("unembed",)).start(training)


def test_masks_leave_dropout_alone(training: Training) -> None:
    mask, step = Mask(p=0.5), next(training.steps(0))
    mask.start(training)
    before = torch.get_rng_state()
    assert not torch.equal(mask.inputs(step, step.inputs)["tokens"], step.inputs["tokens"])
    assert torch.equal(torch.get_rng_state(), before)


def test_padding_is_not_masked(training: Training) -> None:
    mask, step = Mask(p=1.0), next(training.steps(0))
    mask.start(training)
    inputs = {
        "tokens": torch.tensor([[5, 6, 7, 7]]),
        "mask": torch.tensor([[True] * 2 + [False] * 2]),
    }
    assert mask.inputs(step, inputs)["tokens"].tolist() == [[0, 0, 7, 7]]


def test_pairs_are_one_edit_that_recorders_see(tmp_path: Path) -> None:
    def zero(tensor: torch.Tensor, *, hook: Any, step: int | None, document: int) -> Any:
        return torch.zeros_like(tensor) if step is not None and document == 1 else None

    def size(tensor: torch.Tensor, *, hook: Any) -> float:
        return float(tensor.detach().abs().max())

    run = rp.fit(
        tiny(**SMALL),
        tmp_path / "run",
        interventions=[("blocks.0.hook_out", zero), ("blocks.1.hook_mlp_out", half)],
        hooks=[("blocks.0.hook_out", size)],
    )
    seen = run.recorder("size").value.values[:, 0]
    assert ((seen == 0) == (np.repeat(run.schedule.values, run.config.steps) == 1)).all()
    assert run.interventions == ("edit",)
    assert run.config.edit.hooks == [
        "notebook:zero@blocks.0.hook_out",
        "notebook:half@blocks.1.hook_mlp_out",
    ]
    with pytest.raises(rp.InputError, match=r"edit.hooks: notebook:zero.* pass it to fit again"):
        rp.fit(run.config, tmp_path / "again")


@pytest.fixture(scope="module")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> rp.Run:
    """A run with all four, from the command line."""
    folder = tmp_path_factory.mktemp("command")
    save_file(directions(), folder / "directions.safetensors")
    (folder / "mine.py").write_text("def half(tensor, *, hook):\n    return tensor * 0.5\n")
    sizes = {"model.depth": 2, "model.width": 32, "model.heads": 2, "model.vocabulary": 512}
    sizes |= {"documents.count": 3, "documents.tokens": 24, "documents.min_tokens": 24}
    sizes |= {"documents.held_out": 1, "epochs": 1, "steps": 3}
    argv = [w for name, value in sizes.items() for w in (f"--{name}", str(value))]
    argv += ["--intervene", "edit", "freeze", "mask", "project", "--freeze.last", "1"]
    argv += ["--edit.hooks", f"{folder}/mine.py:half@blocks.0.hook_mlp_out", "--mask.p", "0.3"]
    argv += ["--project.directions", f"{folder}/directions.safetensors"]
    argv += ["--project.keep_norm", "true", "--project.of", "update"]
    argv += ["--no-record", "document_gradients", "token_losses", "--control", "none"]
    with pytest.raises(SystemExit):  # directions lie in what is frozen
        main(["train", "quickstart", *argv, "--out", str(folder / "no")])
    save_file({IN: directions()[IN]}, folder / "directions.safetensors")
    main(["train", "quickstart", *argv, "--out", str(folder / "run")])
    return rp.open_run(folder / "run")


def test_a_config_repeats_a_run_with_interventions(by_command: rp.Run, tmp_path: Path) -> None:
    main(["train", "--config", str(by_command.path / "config.toml"), "--out", f"{tmp_path}/run"])
    same_record(by_command, rp.open_run(tmp_path / "run"))
    assert by_command.interventions == ("edit", "freeze", "mask", "project")
    assert by_command.provenance["edited_by"] == ["edit"]
    for said in (repr(by_command), (by_command.path / "report.html").read_text()):
        for word in ("freeze, last 1", "mask, p 0.3", "keep_norm True", "half@blocks.0"):
            assert word in said


def test_objects_do_what_settings_do_and_recorders_nothing(
    by_command: rp.Run, tmp_path: Path
) -> None:
    """The same from a notebook, with its objects in their order and with nothing recorded."""
    settings = config.changed(by_command.config, interventions=[], recorders=["checkpoints"])
    own = by_command.config
    run = rp.fit(
        settings,
        tmp_path / "run",
        interventions=[
            EditActivations(tuple(own.edit.hooks)),
            Freeze(last=1),
            Mask(0.3),
            Project(own.project.directions, "update", keep_norm=True),
        ],
    )
    assert np.array_equal(run.losses, by_command.losses)
    assert np.array_equal(run.train_loss, by_command.train_loss)
    ends = [r.weights_at(r.episodes_done) for r in (run, by_command)]
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not config.differences(run.config, by_command.config, ("numbers",))


def test_a_run_with_an_intervention_is_no_control_of_one_without(tmp_path: Path) -> None:
    """Nor the other way round; and where activations were edited, its model is not run again."""
    settings = tiny(**SMALL, optimizer=MOMENTUM)
    shuffled = config.changed(settings, **{"schedule.kind": "shuffled"})
    plain = rp.fit(settings, tmp_path / "plain")
    edited = rp.fit(settings, tmp_path / "edited", interventions=[("blocks.0.hook_mlp_out", half)])
    masked = rp.fit(shuffled, tmp_path / "masked", interventions=[Mask(p=0.2)])
    bare = rp.fit(shuffled, tmp_path / "bare")
    with pytest.raises(rp.InputError, match=r"differ in .*interventions \(\['edit'\]"):
        analyze(edited, [bare])
    with pytest.raises(rp.InputError, match=r"differ in .*interventions"):
        analyze(plain, [masked])
    other = rp.fit(settings, tmp_path / "other", interventions=[Mask(p=0.1)])
    with pytest.raises(rp.InputError, match=r"differ in .*mask.p \(0.1"):
        analyze(other, [masked])
    with pytest.raises(rp.Missing, match="trained with edit: without that its model"):
        analyze(edited, analyses=["pairwise_recovery"], from_checkpoint=True)
    analyze(other, analyses=["pairwise_recovery"], from_checkpoint=True)


def test_each_run_of_a_plan_has_its_own_copy(tmp_path: Path) -> None:
    class Counts(rp.Intervention):
        name = "counts"
        steps: ClassVar[list[int]] = []

        def __init__(self) -> None:
            self.done = 0

        def weights(self, step: Any) -> None:
            assert step.index == self.done
            self.done += 1

    own = Counts()
    settings = tiny(**SMALL)
    run = rp.fit(settings, tmp_path / "out", control="shuffled", interventions=[own])
    assert own.done == 0
    assert [r.interventions for r in (run, *run.controls)] == [("counts",)] * 2


@pytest.mark.parametrize("moment", ["before_step", "inputs", "gradients", "weights"])
def test_a_failure_is_named_with_its_step(moment: str, tmp_path: Path) -> None:
    def fails(self: Any, step: Any, *_: Any) -> Any:
        return 1 / (4 - step.index) and (_[0] if _ else None)

    kind = type("Mine", (rp.Intervention,), {"name": "mine", moment: fails})
    with pytest.raises(rp.HookError, match="intervention mine failed in step 4: ZeroDivision"):
        rp.fit(tiny(**SMALL), tmp_path / "run", interventions=[kind])
    assert rp.open_run(tmp_path / "run").status == "failed"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda inputs: None, "gave inputs of NoneType in step 0"),
        (lambda inputs: {"tokens": inputs["tokens"]}, "gave inputs of {'tokens'"),
        (lambda inputs: {**inputs, "tokens": inputs["tokens"][:, 1:]}, r"\(1, 23\)"),
    ],
)
def test_other_inputs_are_refused(given: Any, said: str, tmp_path: Path) -> None:
    body = {"name": "mine", "inputs": lambda self, step, inputs: given(inputs)}
    with pytest.raises(rp.HookError, match=said):
        rp.fit(tiny(**SMALL), tmp_path / "run", interventions=[type("M", (rp.Intervention,), body)])


def test_an_edit_that_fails_or_gives_another_shape_is_named(tmp_path: Path) -> None:
    def fails(tensor: torch.Tensor, *, hook: Any, step: int | None) -> None:
        if step == 4:
            raise KeyError("gone")

    def shorter(tensor: torch.Tensor, *, hook: Any) -> torch.Tensor:
        return tensor[:, 1:]

    class Shorter(rp.Intervention):
        name = "shorter"

        def start(self, training: Any) -> Any:
            return (rp.Edit("blocks.0.hook_out", lambda tensor, hook, moment: tensor[:, 1:]),)

    where = r"step 4, at blocks.0.hook_out, with a tensor of shape \(1, 24, 32\): KeyError: 'gone'"
    for i, (given, said) in enumerate(
        [
            (("blocks.0.hook_out", fails), f"hook fails failed in {where}"),
            (("blocks.0.hook_out", shorter), "hook shorter returned a Tensor in the evaluation of"),
            (Shorter, "intervention shorter gave a Tensor of shape .* in step 0, for a tensor of"),
        ]
    ):
        with pytest.raises(rp.HookError, match=said):
            rp.fit(tiny(**SMALL), tmp_path / str(i), interventions=[given])


NAN = {OUT: torch.full((1, 32), torch.nan)}
TWICE = {OUT: torch.stack([torch.ones(32), torch.arange(32.0), 3 - 2 * torch.arange(32.0)])}


@pytest.mark.parametrize(
    ("intervention", "said"),
    [
        (Freeze(), "freeze: nothing to hold fixed; set freeze.embeddings"),
        (Freeze(first=3), "freeze.first = 3: the network has 2 blocks"),
        (Freeze(last=4), "freeze.last = 4: the network has 2 blocks"),
        (Freeze(modules=("blocks.0.mpl",)), "'blocks.0.mpl'; did you mean 'blocks.0.mlp'"),
        (Freeze(modules=("*",)), "every parameter is held fixed"),
        (Project(), "project.directions: no file given"),
        (Project("none.safetensors"), "'none.safetensors': no such file"),
        (Project(__file__), "cannot be read as safetensors"),
        (Project("notebook:1f"), "directions of a notebook; pass them to fit again"),
        (Project.along({}), "there are none"),
        (Project.along({"blocks.0.mlp.in.wight": torch.ones(1)}), f"did you mean '{IN}'"),
        (Project.along({OUT: torch.ones(32)}), r"shape \(32,\); expected \(k, 32\)"),
        (Project.along({OUT: torch.tensor(1.0)}), r"shape \(\); expected \(k, 32\)"),
        (Project.along({OUT: torch.ones(0, 32)}), r"shape \(0, 32\); expected \(k, 32\)"),
        (Project.along({OUT: torch.ones(1, 32).int()}), "no finite real numbers"),
        (Project.along(NAN), "no finite real numbers"),
        (Project.along(directions() | {OUT: torch.ones(2, 32)}), f"directions: {IN} 3, {OUT} 2"),
        (Project.along(TWICE), "direction 2 is 0, or made of those before it"),
        (Project.along({OUT: torch.zeros(1, 32)}), "direction 0 is 0"),
        (Project.along({OUT: torch.randn(33, 32)}), "direction 32 is 0, or made of"),
        (EditActivations(), "edit.hooks: no function given"),
        (
            EditActivations(("mine.py:f",)),
            "edit.hooks mine.py:f: expected file.py:FUNCTION@PATTERN",
        ),
        (EditActivations.of([("blocks.0.hok_out", half)]), "edit.hooks: .* no hook point is"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_the_network_is_said_before_training(
    intervention: rp.Intervention, said: str, training: Training
) -> None:
    with pytest.raises(rp.InputError, match=said):
        intervention.start(training)


def test_documents_without_tokens_cannot_be_masked(training: Training) -> None:
    class Images:
        inputs: ClassVar[dict[str, Any]] = {"pixels": None}

    with pytest.raises(rp.InputError, match="mask: the documents have no tokens"):
        Mask().start(Images())  # type: ignore[arg-type]


def test_a_norm_that_nothing_is_left_of_is_not_kept(tmp_path: Path) -> None:
    everything = {n: torch.eye(32) for n in (OUT,)}
    others = ("embed", "unembed", "blocks.0", "blocks.1.mlp", "blocks.1.ln*", "ln_final")
    others += ("blocks.1.attn.[qkv]", "blocks.1.attn.o.weight")
    project = Project.along(everything, keep_norm=True)
    with pytest.raises(rp.HookError, match="in step 0: nothing of the gradient is outside"):
        rp.fit(tiny(**SMALL), tmp_path / "run", interventions=[Freeze(modules=others), project])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([Freeze(first=1), Freeze(last=1)], "the name 'freeze' is taken"),
        ([Freeze(first=-1)], "freeze.first = -1: "),
        ([Mask(p=1.5)], "mask.p = 1.5: "),
        ([Project.along({OUT: torch.ones(1, 32)}, of="step")], "project.of = 'step': "),
        ([3], "intervention 3: expected an Intervention, or"),
        ([type("Mine", (rp.Intervention,), {})], "intervention Mine has no name"),
        ([type("Mine", (rp.Intervention,), {"name": "checkpoints"})], "'checkpoints' is taken"),
        ([type("Mine", (rp.Intervention,), {"name": "seed"})], "the name 'seed' is taken"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_objects_are_checked_as_settings_are(given: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(rp.InputError, match=said):
        rp.fit(tiny(**SMALL), tmp_path / "run", interventions=given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"interventions": ["freze"]}, "no interventions plug-in 'freze'; did you mean 'freeze'"),
        ({"interventions": ["mask", "mask"]}, "the name 'mask' is taken"),
        ({"interventions": ["mask"], "mask": {"q": 1}}, "unknown setting mask.q"),
        ({"mask": {"p": 2.0}}, "mask.p = 2.0"),
        ({"interventions": ["gradients"]}, "no interventions plug-in 'gradients'"),
    ],
)
def test_settings_of_interventions_are_checked(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(rp.InputError, match=said):
        tiny(**SMALL | changes)
