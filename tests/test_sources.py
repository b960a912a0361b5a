"""What is read from a model's folder: no code, no pickle, nothing made up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny
from networks import local_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import recovery_probe as rp
from recovery_probe import models
from recovery_probe.models import loading

CODE = """
from pathlib import Path
Path(__file__).with_name("RAN").touch()
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def bring_code(folder: Path, model_type: str, marker: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": model_type, "architectures": ["OwnModel"]}
    settings["auto_map"] = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnModel",
    }
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))


def test_a_models_own_code_is_refused_and_never_asked_about(tmp_path: Path) -> None:
    folder = local_model(tmp_path / "model", "llama")
    bring_code(folder, "own", tmp_path / "marker")
    command = [sys.executable, "-m", "recovery_probe.train", "quickstart"]
    command += ["--model.source", str(folder), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, input="y\ny\ny\n", capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "brings its own code, which is not run" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "[y/N]" not in done.stdout + done.stderr
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "run").exists()


def test_code_beside_a_known_model_is_left_alone(tmp_path: Path) -> None:
    folder = local_model(tmp_path / "model", "llama")
    bring_code(folder, "llama", tmp_path / "marker")
    model = models.load(tiny(model={"source": str(folder)}))
    assert type(model.bridge.original_model).__module__.startswith("transformers.")
    assert not (tmp_path / "marker").exists()


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    folder = local_model(tmp_path / "model", "llama")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(rp.InputError, match=r"a pickle, which is not read; save them as .*safete"):
        models.load(tiny(model={"source": str(folder)}))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    folder = local_model(tmp_path / "model", "llama")
    models.load(tiny(model={"source": str(folder)}))  # its head is tied, and no weight missing
    weights = load_file(folder / "model.safetensors")
    gone = [name for name in weights if "layers.1.mlp" in name]
    kept = {name: t for name, t in weights.items() if name not in gone}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    said = rf"3 of its weights are missing: {sorted(gone)[0]}"
    with pytest.raises(rp.InputError, match=said):
        models.load(tiny(model={"source": str(folder)}))


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    for architecture in ("gpt_neox", "gpt2"):  # transformers makes an empty one of nothing
        folder = local_model(tmp_path / architecture, architecture)
        for path in folder.glob("token*"):
            path.unlink()
        with pytest.raises(rp.InputError, match="no tokenizer there"):
            models.load(tiny(model={"source": str(folder)}))


def test_a_tokenizer_larger_than_the_network(tmp_path: Path) -> None:
    folder = local_model(tmp_path / "model", "llama")
    models.train_tokenizer(600).save_pretrained(folder)
    said = r"makes token \d+, and its network has embeddings for 512 tokens"
    with pytest.raises(rp.InputError, match=said):
        rp.fit(tiny(model={"source": str(folder)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_special_tokens_are_not_spelt_in_a_text() -> None:
    """Neither by our own tokenizer nor by one whose special token is no end of text."""
    model = models.load(tiny())
    spelt = model.tokenize("One <|endoftext|> two")
    assert 0 not in spelt
    assert model.tokenizer.decode(spelt) == "One <|endoftext|> two"
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    assert max(model.tokenize("One <|im_start|> two")) < 512


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"width": 2**20, "heads": 1}, "at least .* GB, and this machine has"),
        ({"width": 10**9, "heads": 1}, "model.width = 1000000000: should be less"),
        ({"depth": 10**6}, "model.depth = 1000000: should be less"),
        ({"vocabulary": 10**9}, "model.vocabulary = 1000000000: should be less"),
        ({"width": 2**17, "heads": 1, "depth": 9, "mlp_ratio": 1024.0}, "at least .* GB, and this"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(
    model: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", None)
    monkeypatch.setattr("recovery_probe.models.sources.train_tokenizer", None)
    with pytest.raises(rp.InputError, match=said):
        models.load(tiny(model=model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bidirectional_model_is_refused(dtype: str, tmp_path: Path) -> None:
    wanted = {"architecture": "bert", "init": "library", "dtype": dtype}
    with pytest.raises(rp.InputError, match=r"'bert'.*not a causal model"):
        models.load(tiny(model=wanted))


@pytest.mark.parametrize("architecture", ["xlnet", "bamba", "deepseek_v2", "hrm_text", "gemma3n"])
def test_what_a_library_raises_is_one_line_with_the_sizes(architecture: str) -> None:
    with pytest.raises(rp.InputError, match=f"'{architecture}' at width 32, depth 2, 2") as error:
        models.load(tiny(model={"architecture": architecture, "init": "library"}))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("architecture", "kept"),
    [("gemma3", "hidden_size = 2304"), ("nemotron_h", "num_hidden_layers")],
)
def test_sizes_that_are_not_taken_are_refused(
    architecture: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", None)
    with pytest.raises(rp.InputError, match=f"takes other sizes, {kept}"):
        models.load(tiny(model={"architecture": architecture, "init": "library"}))


@pytest.mark.parametrize("ratio", [4, 2.5])
@pytest.mark.parametrize(
    "architecture", ["gpt_neox", "gpt2", "opt", "falcon", "lfm2", "qwen3_moe", "mixtral"]
)
def test_the_mlp_is_so_many_times_as_wide(architecture: str, ratio: float) -> None:
    wanted = {"architecture": architecture, "init": "library", "dropout": 0, "depth": 1}
    model = models.load(tiny(model={**wanted, "mlp_ratio": ratio}))
    inside = ("mlp.in.", "mlp.out.", "fc1.", "fc2.", "mlp.w1.", "mlp.w2.", "experts.")
    matrices = [
        p for n, p in model.parameters.items() if any(m in n for m in inside) and p.ndim > 1
    ]
    widths = {max(p.shape[-2:]) for p in matrices}
    assert 32 * ratio in widths
    assert widths <= {32 * ratio, 2 * 32 * ratio}  # gate and up in one


@pytest.mark.parametrize("architecture", ["gpt_neo", "mamba", "gptj", "codegen"])
def test_architectures_that_were_a_traceback_train_and_are_saved(
    architecture: str, tmp_path: Path
) -> None:
    settings = tiny(
        epochs=1,
        model={"architecture": architecture, "init": "library", "depth": 3, "heads": 4},
        recorders=["checkpoints"],
    )
    run = rp.fit(settings, tmp_path / "run")
    plain = AutoModelForCausalLM.from_pretrained(run.path / "checkpoints" / "episodes-00005").eval()
    tokens = torch.tensor(run.record.tokens.values)
    with torch.no_grad():
        losses = [plain(input_ids=t[None], labels=t[None]).loss.item() for t in tokens]
    assert losses == pytest.approx(run.losses.values[-1].tolist(), abs=1e-5)
    assert run.losses.values[0] != pytest.approx(run.losses.values[-1], abs=1e-3)


def test_a_trained_weight_that_could_not_be_saved_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Phi-3's gate is split by the bridge. Were the split a copy, what is saved would be stale."""
    once = loading._once
    monkeypatch.setattr(
        loading, "_once", lambda items: {n: t for n, t in once(items).items() if "gate" not in n}
    )
    with pytest.raises(rp.InputError, match=r"could not be saved.*blocks\.0\.mlp\.gate\.weight"):
        models.load(tiny(model={"architecture": "phi3", "init": "library"}))


@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "llama", "gpt_neox", "qwen3"])
def test_norms_start_with_a_gain_of_1(architecture: str) -> None:
    """By what they do: a normalised vector has the length √d, whatever weight they store."""
    model = models.load(tiny(model={"architecture": architecture}))
    norms = [n for n in model.parameters if ".ln1.weight" in n or n == "ln_final.weight"]
    assert len(norms) == 3
    x = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))
    x = x - x.mean()
    for name in norms:
        norm = model.bridge.get_submodule(name.removesuffix(".weight"))
        assert norm(x).norm().item() == pytest.approx(32**0.5, rel=1e-3)


def test_loading_leaves_torchs_generators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of GPUs, which `torch.manual_seed` would reseed."""
    monkeypatch.setattr(torch, "manual_seed", None)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", None)
    before = torch.get_rng_state()
    models.load(tiny(model={"architecture": "llama", "dropout": 0.1}))
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(rp.InputError):
        models.load(tiny(model={"architecture": "gpt2"}))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_the_size_of_a_checkpoint_is_known_without_building_one(
    architecture: str, tmp_path: Path
) -> None:
    model = models.load(tiny(model={"architecture": architecture}))
    model.save(tmp_path / "model")
    written = load_file(tmp_path / "model" / "model.safetensors").values()
    assert model.nbytes == sum(t.nbytes for t in written)


def test_the_device_meta_holds_no_numbers() -> None:
    with pytest.raises(rp.InputError, match="device = 'meta' cannot be used here"):
        models.load(tiny(device="meta"))


def test_a_folder_that_says_less_than_its_weights(tmp_path: Path) -> None:
    """A network of fewer blocks than its file holds is what the configuration asks for."""
    folder = local_model(tmp_path / "model", "llama")
    settings = AutoConfig.from_pretrained(folder)
    settings.num_hidden_layers = 1
    settings.save_pretrained(folder)
    assert len(models.load(tiny(model={"source": str(folder)})).bridge.blocks) == 1
