"""Weight differences: exact with our own, the same numbers as the published way, refusals in words, bounded memory."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alpaca_jobs.errors import ModelError
from alpaca_jobs.training.weights import weights_digest
from alpaca_jobs.weights.diff import make_diff
from alpaca_jobs.weights.recover import recover
from alpaca_jobs.weights.shards import plan_shards
from alpaca_jobs.weights.sources import TensorInfo

VOCABULARY, WIDTH = 48, 16


def llama(seed: int, *, vocabulary: int = VOCABULARY, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


def tuned_from(raw: Any, *, extra_rows: int = 0, seed: int = 9) -> Any:
    """A copy of `raw` with more rows, moved a little: some weights change sign, some nearly vanish."""
    dtype = next(raw.parameters()).dtype
    tuned = llama(0, dtype=dtype)
    tuned.load_state_dict(raw.state_dict())
    if extra_rows:
        tuned.resize_token_embeddings(VOCABULARY + extra_rows, mean_resizing=False)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_((torch.randn(parameter.shape) * 0.01).to(dtype))
            parameter.view(-1)[0] = 1e-7
    return tuned


def save(model: Any, folder: Path, **options: Any) -> str:
    model.save_pretrained(folder, **options)
    return str(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("extra_rows", [0, 1])
def test_recover_gives_back_every_bit(tmp_path: Path, dtype: torch.dtype, extra_rows: int) -> None:
    raw = llama(1, dtype=dtype)
    save(raw, tmp_path / "raw")
    tuned = save(tuned_from(raw, extra_rows=extra_rows), tmp_path / "tuned")
    (tmp_path / "tuned" / "tokenizer.json").write_text('{"a": 1}')
    made = make_diff(str(tmp_path / "raw"), tuned, tmp_path / "diff")
    assert len(made.grown) == (2 if extra_rows else 0)
    assert made.num_corrections > 0  # next to nothing does not come back by adding alone
    found = recover(str(tmp_path / "raw"), str(tmp_path / "diff"), tmp_path / "back")
    assert found.verified
    assert weights_digest(tmp_path / "back") == weights_digest(tmp_path / "tuned")
    assert found.sum == made.sum
    assert (tmp_path / "back" / "tokenizer.json").read_text() == '{"a": 1}'
    assert not list((tmp_path / "back").glob("weights_diff*"))
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert again.get_input_embeddings().weight.shape[0] == VOCABULARY + extra_rows


def test_a_tuned_model_in_bin_files_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    """Its tensors come in the order they were saved in, the difference's by their names; corrections know which."""
    raw = llama(1)
    save(raw, tmp_path / "raw")
    tuned = tuned_from(raw)
    save(tuned, tmp_path / "tuned")
    (tmp_path / "tuned" / "model.safetensors").unlink()
    torch.save(tuned.state_dict(), tmp_path / "tuned" / "pytorch_model.bin")
    assert list(tuned.state_dict()) != sorted(tuned.state_dict())
    assert make_diff(str(tmp_path / "raw"), str(tmp_path / "tuned"), tmp_path / "diff").num_corrections > 0
    assert recover(str(tmp_path / "raw"), str(tmp_path / "diff"), tmp_path / "back").verified
    save(tuned, tmp_path / "again")
    assert weights_digest(tmp_path / "back") == weights_digest(tmp_path / "again")


@pytest.mark.parametrize("padding", ["mean", "zero"])
def test_the_difference_is_that_of_the_published_ways(tmp_path: Path, padding: Any) -> None:
    """Alpaca: float32, new rows against the mean of RAW's. Vicuna v0: new rows against zeros."""
    raw, rows = llama(1), 2
    save(raw, tmp_path / "raw")
    tuned = tuned_from(raw, extra_rows=rows)
    save(tuned, tmp_path / "tuned")
    make_diff(str(tmp_path / "raw"), str(tmp_path / "tuned"), tmp_path / "diff", padding=padding)
    raw.resize_token_embeddings(VOCABULARY + rows, mean_resizing=False)
    for embedding in (raw.get_input_embeddings(), raw.get_output_embeddings()):
        weight = embedding.weight.data
        weight[-rows:] = weight[:-rows].mean(dim=0, keepdim=True) if padding == "mean" else 0.0
    theirs, ours = raw.state_dict(), load_file(tmp_path / "diff" / "model.safetensors")
    for name, value in tuned.state_dict().items():
        torch.testing.assert_close(ours[name], value - theirs[name], rtol=0, atol=1e-8)


def test_a_difference_published_by_others_is_added_and_its_sum_checked(tmp_path: Path) -> None:
    """Alpaca's own: pytorch_model.bin in two files, rotary frequencies among the weights, one more row, no record."""
    raw = llama(1)
    save(raw, tmp_path / "raw")
    tuned = tuned_from(raw, extra_rows=1)
    raw.resize_token_embeddings(VOCABULARY + 1, mean_resizing=False)
    for embedding in (raw.get_input_embeddings(), raw.get_output_embeddings()):
        embedding.weight.data[-1:] = embedding.weight.data[:-1].mean(dim=0, keepdim=True)
    delta = {name: value - raw.state_dict()[name] for name, value in tuned.state_dict().items()}
    delta |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.zeros(4) for layer in range(2)}
    tuned.config.save_pretrained(tmp_path / "diff")
    names = sorted(delta)
    torch.save({name: delta[name] for name in names[:5]}, tmp_path / "diff" / "pytorch_model-00001-of-00002.bin")
    torch.save({name: delta[name] for name in names[5:]}, tmp_path / "diff" / "pytorch_model-00002-of-00002.bin")
    frequencies = 2 * sum(10000.0 ** (-2 * place / 8) for place in range(4))
    wanted = float(sum(value.sum() for value in tuned.state_dict().values())) + frequencies

    with pytest.raises(ModelError, match="--padding mean"):
        recover(str(tmp_path / "raw"), str(tmp_path / "diff"), tmp_path / "back")
    with pytest.raises(ModelError, match=r"All parameters add up to .* another model"):
        recover(
            str(tmp_path / "raw"), str(tmp_path / "diff"), tmp_path / "back", padding="mean", integrity_sum=wanted + 1
        )
    assert not list(tmp_path.glob("back*"))
    found = recover(
        str(tmp_path / "raw"), str(tmp_path / "diff"), tmp_path / "back", padding="mean", integrity_sum=wanted
    )
    assert not found.verified
    back = load_file(tmp_path / "back" / "model.safetensors")
    for name, value in tuned.state_dict().items():
        torch.testing.assert_close(back[name], value, rtol=0, atol=1e-7)


def test_rotary_frequencies_follow_the_base_that_todays_configurations_name(tmp_path: Path) -> None:
    raw = llama(1)
    raw.config.rope_parameters = {"rope_type": "default", "rope_theta": 500_000.0}
    save(raw, tmp_path / "raw")
    delta = {name: torch.zeros_like(value) for name, value in raw.state_dict().items()}
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    (tmp_path / "diff").mkdir()
    torch.save({**delta, name: torch.zeros(4)}, tmp_path / "diff" / "pytorch_model.bin")
    recover(str(tmp_path / "raw"), str(tmp_path / "diff"), tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    torch.testing.assert_close(back[name], torch.tensor([500_000.0 ** (-2 * place / 8) for place in range(4)]))


def test_a_wrong_base_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    raw = llama(1)
    save(raw, tmp_path / "raw")
    save(tuned_from(raw), tmp_path / "tuned")
    make_diff(str(tmp_path / "raw"), str(tmp_path / "tuned"), tmp_path / "diff")
    with torch.no_grad():
        raw.model.norm.weight[3] += 1e-3
    save(raw, tmp_path / "other")
    with pytest.raises(ModelError, match=r"is not the base .* SHA-256 of model\.norm\.weight .* before it are right"):
        recover(str(tmp_path / "other"), str(tmp_path / "diff"), tmp_path / "back")
    save(llama(2), tmp_path / "another")
    with pytest.raises(ModelError, match="It is the first tensor"):
        recover(str(tmp_path / "another"), str(tmp_path / "diff"), tmp_path / "back")
    assert not list(tmp_path.glob("back*"))


def test_a_damaged_difference_is_named(tmp_path: Path) -> None:
    raw = llama(1)
    save(raw, tmp_path / "raw")
    save(tuned_from(raw), tmp_path / "tuned")
    make_diff(str(tmp_path / "raw"), str(tmp_path / "tuned"), tmp_path / "diff")
    weights = tmp_path / "diff" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=r"DIFF .* is damaged"):
        recover(str(tmp_path / "raw"), str(tmp_path / "diff"), tmp_path / "back")
    weights.write_bytes(data[:-100])
    with pytest.raises(ModelError, match="cut short"):
        recover(str(tmp_path / "raw"), str(tmp_path / "diff"), tmp_path / "back")
    data[-9] ^= 1
    weights.write_bytes(data)
    corrections = tmp_path / "diff" / "weights_diff.corrections"
    data = bytearray(corrections.read_bytes())
    data[-1] ^= 1
    corrections.write_bytes(data)
    with pytest.raises(ModelError, match=r"weights_diff\.corrections .* damaged"):
        recover(str(tmp_path / "raw"), str(tmp_path / "diff"), tmp_path / "back")


def test_models_that_do_not_belong_together_are_refused_in_words(tmp_path: Path) -> None:
    save(llama(1), tmp_path / "raw")
    state = load_file(tmp_path / "raw" / "model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    save_file({name: value for name, value in state.items() if "norm" not in name}, other / "model.safetensors")
    with pytest.raises(ModelError, match=r"TUNED .* lacks model\.layers\.0\.input_layernorm\.weight, .* and 2 more"):
        make_diff(str(tmp_path / "raw"), str(other), tmp_path / "out")
    with pytest.raises(ModelError, match=r"RAW .* lacks model\.layers\.0\.input_layernorm\.weight"):
        make_diff(str(other), str(tmp_path / "raw"), tmp_path / "out")
    wide = {**state, "model.norm.weight": torch.ones(WIDTH + 1)}
    save_file(wide, other / "model.safetensors")
    with pytest.raises(ModelError, match=r"shapes differ: model\.norm\.weight is \[16\] there and \[17\] here"):
        make_diff(str(tmp_path / "raw"), str(other), tmp_path / "out")
    with pytest.raises(ModelError, match="no such folder"):
        make_diff("./nowhere", str(other), tmp_path / "out")
    with pytest.raises(ModelError, match=r"Hugging Face cache\. Download it first \(hf download acme/base\)"):
        make_diff("acme/base", str(other), tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ModelError, match="not empty"):
        make_diff(str(tmp_path / "raw"), str(tmp_path / "raw"), tmp_path / "out")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    (tmp_path / "raw").mkdir()
    torch.save({"w": Evil()}, tmp_path / "raw" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be read as plain tensors"):
        make_diff(str(tmp_path / "raw"), str(tmp_path / "raw"), tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_a_base_in_the_hub_cache_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--acme--base" / "snapshots" / commit
    raw = llama(1)
    save(raw, snapshot)
    refs = tmp_path / "hub" / "models--acme--base" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    save(tuned_from(raw), tmp_path / "tuned")
    make_diff("acme/base", str(tmp_path / "tuned"), tmp_path / "diff")
    assert json.loads((tmp_path / "diff" / "weights_diff.json").read_text())["raw"] == "acme/base"
    recover("acme/base", str(tmp_path / "diff"), tmp_path / "back")
    assert weights_digest(tmp_path / "back") == weights_digest(tmp_path / "tuned")


def test_tensors_are_spread_over_shards_in_their_order() -> None:
    tensors = {name: TensorInfo("F32", (size,)) for name, size in [("a", 10), ("b", 10), ("c", 100), ("d", 1)]}
    assert plan_shards(tensors, 80) == [["a", "b"], ["c"], ["d"]]


MODEL_BYTES = 400 * 2**20
PROGRAM = """
import resource, sys
from pathlib import Path
from alpaca_jobs.weights.diff import make_diff
from alpaca_jobs.weights.recover import recover
import torch
torch.set_num_threads(1)
def peak(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
before = peak()
root = Path(sys.argv[1])
if sys.argv[2] == "diff":
    make_diff(str(root / "raw"), str(root / "tuned"), root / "diff")
else:
    recover(str(root / "raw"), str(root / "diff"), root / "back")
print(peak() - before)
"""


def large_model(folder: Path, seed: int) -> None:
    folder.mkdir()
    torch.manual_seed(seed)
    names = {"model.embed_tokens.weight": 200, "model.layers.0.mlp.up_proj.weight": 200}
    for number, (name, mib) in enumerate(names.items()):
        tensor = torch.randn(1024, 1024).repeat(mib * 2**18 // 2**20, 1)
        save_file({name: tensor}, folder / f"model-0000{number + 1}-of-00002.safetensors")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    large_model(tmp_path / "raw", 1)
    large_model(tmp_path / "tuned", 2)
    for what in ("diff", "recover"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path), what], capture_output=True, text=True, check=True
        )
        assert int(done.stdout) < 150 * 2**20, f"{what} of {MODEL_BYTES} bytes twice took {int(done.stdout):,}"
    assert weights_digest(tmp_path / "back") == weights_digest(tmp_path / "tuned")


@pytest.mark.process
def test_a_kill_in_the_middle_leaves_no_folder_that_looks_finished(tmp_path: Path) -> None:
    for seed, name in enumerate(("raw", "tuned")):
        (tmp_path / name).mkdir()
        torch.manual_seed(seed)
        tensors = {f"w{number}": torch.randn(2**22) for number in range(6)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    partial, program = tmp_path / "diff.partial" / "model.safetensors", PROGRAM
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), "diff"])
    give_up_at = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size > 2**22):
        assert time.monotonic() < give_up_at
        assert process.poll() is None, "it was done before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "diff").exists()
    make_diff(str(tmp_path / "raw"), str(tmp_path / "tuned"), tmp_path / "diff")  # over what was left
    assert not partial.parent.exists()
    assert sorted(path.name for path in (tmp_path / "diff").iterdir())[0] == "model.safetensors"


@pytest.mark.process
def test_a_disk_that_is_full_is_said_in_words_and_leaves_nothing(tmp_path: Path) -> None:
    save(llama(1), tmp_path / "raw")
    program = (
        "import resource, signal, sys; from pathlib import Path; from alpaca_jobs.weights.diff import make_diff\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"make_diff(r'{tmp_path}/raw', r'{tmp_path}/raw', Path(r'{tmp_path}/diff'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ModelError" in done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert not list(tmp_path.glob("diff*"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
