"""Interventions, against plain Hugging Face loops that do the same by hand."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from conftest import tiny
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import recovery_probe as rp
from recovery_probe import EditActivations, Freeze, Mask, Project, config
from recovery_probe.analyze import analyze
from recovery_probe.cli import main
from recovery_probe.record.folder import checkpoint_folder
from recovery_probe.training import Training

SMALL = {"epochs": 2, "recorders": ["checkpoints"], "documents": {"count": 3, "held_out": 1}}
MOMENTUM = {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}
# A parameter's TransformerLens and Hugging Face names.
IN, OUT = "blocks.0.mlp.in.weight", "blocks.1.attn.o.bias"
HF = {
    IN: "gpt_neox.layers.0.mlp.dense_h_to_4h.weight",
    OUT: "gpt_neox.layers.1.attention.dense.bias",
}


def same(*_: Any) -> Any:
    return None


def plain_losses(
    run: rp.Run,
    *,
    prepare: Callable[[Any], Any] = same,
    shown: Callable[[torch.Tensor, int], torch.Tensor] = lambda ids, step: ids,
    gradients: Callable[[Any], Any] = same,
    before: Callable[[Any], Any] = same,
    after: Callable[[Any], Any] = same,
) -> np.ndarray:
    """The loss matrix of a run's training from its first checkpoint on, by a plain model. What an
    intervention does is done by hand, with the model's own parts and names."""
    folder = checkpoint_folder(run.path, 0)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").train()
    prepare(model)
    wanted, tokens = run.config.optimizer, torch.tensor(run.record.tokens.values)
    options = {"lr": wanted.lr, "weight_decay": wanted.weight_decay}
    if wanted.name == "sgd":
        kind: Any = torch.optim.SGD
        options["momentum"] = wanted.momentum
    else:
        kind = torch.optim.AdamW
    optimizer = kind([p for p in model.parameters() if p.requires_grad], **options)

    def loss_of(given: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=given[None]).logits[0]
        return F.cross_entropy(logits[:-1], target[1:])

    def evaluate() -> list[float]:
        model.eval()
        with torch.no_grad():
            losses = [loss_of(ids, ids).item() for ids in tokens]
        model.train()
        return losses

    rows, step = [evaluate()], 0
    for document in run.schedule.values:
        for _ in range(run.config.steps):
            model.zero_grad()
            loss_of(shown(tokens[document], step), tokens[document]).backward()
            gradients(model)
            before(model)
            optimizer.step()
            after(model)
            step += 1
        rows.append(evaluate())
    return np.array(rows)


def agree(run: rp.Run, oracle: np.ndarray, plain: rp.Run) -> None:
    """A run has the losses of an oracle, and they are not those of a run without intervention."""
    np.testing.assert_allclose(run.losses.values, oracle, atol=2e-5, rtol=0)
    assert np.abs(run.losses.values - plain.losses.values).max() > 1e-3


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, rp.Run]:
    """Runs without an intervention, by their optimizer."""
    folder = tmp_path_factory.mktemp("plain")
    return {
        o["name"]: rp.fit(tiny(**SMALL, optimizer=o), folder / o["name"]) for o in (MOMENTUM, ADAMW)
    }


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


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAMW], ids=lambda o: str(o["name"]))
def test_what_is_frozen_stays_and_the_rest_learns(
    optimizer: dict[str, Any], plain: dict[str, rp.Run], tmp_path: Path
) -> None:
    recorders = ["checkpoints", "gradients", "weight_deltas", "document_gradients"]
    run = rp.fit(
        tiny(**SMALL | {"recorders": recorders}, optimizer=optimizer),
        tmp_path / "run",
        interventions=[Freeze(embeddings=True, first=1, modules=("ln_fin*", "*.q.bias"))],
    )
    fixed = ("gpt_neox.layers.0.", "gpt_neox.embed_in.", "gpt_neox.final_layer_norm.")
    query = slice(0, 16)  # of head 0 of a joint query-key-value bias (96,), 2 heads

    def prepare(model: Any) -> None:
        for name, p in model.named_parameters():
            p.requires_grad_(not name.startswith(fixed))
            if name == "gpt_neox.layers.1.attention.query_key_value.bias":
                joint.append((p, p.detach().clone()))

    def restore(model: Any) -> None:
        ((p, start),) = joint
        for head in (0, 48):
            p.data[head : head + 16] = start[head : head + 16]

    joint: list[Any] = []
    agree(run, plain_losses(run, prepare=prepare, after=restore), plain[optimizer["name"]])
    start, end = (run.weights_at(k) for k in (0, run.episodes_done))
    for name, weight in start.items():
        moved = not np.array_equal(weight.view(np.int32), end[name].view(np.int32))
        assert moved != name.startswith(fixed), name
    joint_bias = "gpt_neox.layers.1.attention.query_key_value.bias"
    assert np.array_equal(start[joint_bias][query], end[joint_bias][query])
    held = [n.startswith(("embed", "blocks.0.", "ln_final")) for n in run.gradients.name.values]
    for recorder in ("gradients", "weight_deltas"):
        norms = run.recorder(recorder).norm.values
        assert (norms[:, held] == 0).all()
        assert (norms[1:, np.logical_not(held)] > 0).all()
    # Of all parameters, and so also of those.
    assert (np.einsum("emdd->emd", run.recorder("document_gradients").inner.values) > 0).all()


def test_a_tied_unembedding_is_said_to_be_frozen_too(capsys: pytest.CaptureFixture[str]) -> None:
    training = Training.open(tiny(model={"architecture": "gpt2", "dropout": 0.0}))
    frozen = Freeze(embeddings=True)
    frozen.start(training)
    assert sorted(frozen.frozen) == ["embed.weight", "pos_embed.weight"]
    assert "weights held fixed, the tied unembedding among them" in capsys.readouterr().err
    with pytest.raises(rp.InputError, match="the unembedding of this network is 'embed'"):
        Freeze(modules=("unembed",)).start(training)


def test_masked_ids_are_drawn_anew_and_only_shown(plain: dict[str, rp.Run], tmp_path: Path) -> None:
    settings = tiny(**SMALL, optimizer=MOMENTUM, seed=4)
    run = rp.fit(settings, tmp_path / "run", interventions=[Mask(p=0.3)])
    drawn: list[np.ndarray] = []

    def shown(ids: torch.Tensor, step: int) -> torch.Tensor:
        stream = np.random.default_rng([4, zlib.crc32(f"mask of step {step}".encode())])
        drawn.append(stream.random((1, len(ids)))[0] < 0.3)
        return torch.where(torch.tensor(drawn[-1]), 0, ids)

    agree(run, plain_losses(run, shown=shown), plain["sgd"])
    assert len({hidden.tobytes() for hidden in drawn}) == len(drawn) == 18
    assert 0.2 < np.mean(drawn) < 0.4


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


def directions() -> dict[str, torch.Tensor]:
    """Three, neither orthogonal nor of unit length, over two parameters."""
    source = torch.Generator().manual_seed(3)
    return {
        IN: torch.randn(3, 128, 32, generator=source) + 0.3,
        OUT: torch.randn(3, 32, generator=source),
    }


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAMW], ids=lambda o: str(o["name"]))
@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("of", ["gradient", "update"])
def test_projected_vectors_have_nothing_in_the_directions(
    of: str,
    keep_norm: bool,
    optimizer: dict[str, Any],
    plain: dict[str, rp.Run],
    tmp_path: Path,
) -> None:
    span = torch.cat([t.flatten(1) for t in directions().values()], dim=1)  # (3, values)
    seen: list[tuple[float, float]] = []  # inner products with directions; and the norm

    def note(vectors: dict[str, torch.Tensor]) -> None:
        own = torch.cat([vectors[name].flatten() for name in HF])
        inner = (span @ own).abs() / span.norm(dim=1) / own.norm()
        seen.append((inner.max().item(), torch.cat([v.flatten() for v in vectors.values()]).norm()))

    class Watch(rp.Recorder):
        name = "watch"

        def start(self, training: Any) -> Any:
            return rp.Layout()

        def before_step(self, step: Any) -> None:
            self.old = {n: p.detach().clone() for n, p in step.model.parameters.items()}

        def after_step(self, step: Any) -> None:
            own = step.model.parameters.items()
            note({n: p.grad if of == "gradient" else p.detach() - self.old[n] for n, p in own})

    run = rp.fit(
        tiny(**SMALL, optimizer=optimizer),
        tmp_path / "run",
        interventions=[Project.along(directions(), of=of, keep_norm=keep_norm)],
        hooks=[Watch],
    )
    # An update is known as a difference of float32 weights.
    assert max(inner for inner, _ in seen) < (1e-5 if of == "gradient" else 1e-3)
    norms: list[float] = []
    old: dict[str, torch.Tensor] = {}

    def project(vectors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """By least squares in float64, with the norm of all."""
        own = torch.cat([vectors[name].flatten() for name in HF.values()]).double()
        inside = span.double().T @ torch.linalg.lstsq(span.double().T, own[:, None]).solution
        start, whole = 0, torch.stack([v.norm() for v in vectors.values()]).norm()
        for name in HF.values():
            size = vectors[name].numel()
            part = inside[start : start + size, 0].float()
            vectors[name] = vectors[name] - part.view_as(vectors[name])
            start += size
        rest = torch.stack([v.norm() for v in vectors.values()]).norm()
        scale = float(whole / rest) if keep_norm else 1.0
        norms.append(float(rest) * scale)
        return {name: v * scale for name, v in vectors.items()}

    def gradients(model: Any) -> None:
        if of == "gradient":
            changed = project({n: p.grad for n, p in model.named_parameters()})
            for name, p in model.named_parameters():
                p.grad = changed[name]

    def before(model: Any) -> None:
        old.update({n: p.detach().clone() for n, p in model.named_parameters()})

    def after(model: Any) -> None:
        if of == "update":
            changed = project({n: p.detach() - old[n] for n, p in model.named_parameters()})
            for name, p in model.named_parameters():
                p.data.copy_(old[name] + changed[name])

    oracle = plain_losses(run, gradients=gradients, before=before, after=after)
    np.testing.assert_allclose(run.losses.values, oracle, atol=2e-5, rtol=0)
    assert not np.array_equal(run.losses, plain[optimizer["name"]].losses)
    np.testing.assert_allclose([norm for _, norm in seen], norms, rtol=1e-3)


def half(tensor: torch.Tensor, *, hook: Any) -> torch.Tensor:
    return tensor * 0.5


@pytest.mark.parametrize("during", ["training", "evaluation", "both"])
def test_an_edit_is_a_forward_hook_that_returns(
    during: str, plain: dict[str, rp.Run], tmp_path: Path
) -> None:
    def quieter(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        here = "training" if module.training else "evaluation"
        return output * 0.5 if during in (here, "both") else output

    def prepare(model: Any) -> None:
        for layer in model.gpt_neox.layers:
            layer.mlp.register_forward_hook(quieter)

    edit = EditActivations.of([("blocks.*.hook_mlp_out", half)], during=during)
    settings = tiny(**SMALL, optimizer=MOMENTUM, eval_batch=3)
    run = rp.fit(settings, tmp_path / "run", interventions=[edit])
    agree(run, plain_losses(run, prepare=prepare), plain["sgd"])


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
    sizes |= {"documents.held_out": 1, "epochs": 2, "steps": 3}
    argv = [w for name, value in sizes.items() for w in (f"--{name}", str(value))]
    argv += ["--intervene", "edit", "freeze", "mask", "project", "--freeze.last", "1"]
    argv += ["--edit.hooks", f"{folder}/mine.py:half@blocks.0.hook_mlp_out", "--mask.p", "0.3"]
    argv += ["--project.directions", f"{folder}/directions.safetensors"]
    argv += ["--project.keep_norm", "true", "--project.of", "update"]
    argv += ["--no-record", "document_gradients", "--control", "none"]
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


def test_a_run_with_an_intervention_is_no_control_of_one_without(
    plain: dict[str, rp.Run], tmp_path: Path
) -> None:
    """Nor the other way round; and where activations were edited, its model is not run again."""
    shuffled = config.changed(plain["sgd"].config, **{"schedule.kind": "shuffled"})
    settings = tiny(**SMALL, optimizer=MOMENTUM)
    edited = rp.fit(settings, tmp_path / "edited", interventions=[("blocks.0.hook_mlp_out", half)])
    masked = rp.fit(shuffled, tmp_path / "masked", interventions=[Mask(p=0.2)])
    bare = rp.fit(shuffled, tmp_path / "bare")
    with pytest.raises(rp.InputError, match=r"differ in .*interventions \(\['edit'\]"):
        analyze(edited, [bare])
    with pytest.raises(rp.InputError, match=r"differ in .*interventions"):
        analyze(plain["sgd"], [masked])
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


def test_inputs_changed_in_place_change_no_document(tmp_path: Path) -> None:
    class Hides(rp.Intervention):
        name = "hides"

        def inputs(self, step: Any, inputs: Any) -> Any:
            inputs["tokens"].zero_()
            return inputs

    settings = tiny(**SMALL)
    run = rp.fit(settings, tmp_path / "run", interventions=[Hides])
    oracle = plain_losses(run, shown=lambda ids, step: torch.zeros_like(ids))
    np.testing.assert_allclose(run.losses.values, oracle, atol=2e-5, rtol=0)


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
        (EditActivations.of([("blocks.0.hok_out", half)]), "no hook point is called"),
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
