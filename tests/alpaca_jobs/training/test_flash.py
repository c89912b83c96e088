"""Flash attention: tried out in the type a GPU computes in, told when it cannot be, the same as one row at a time."""

from __future__ import annotations

import logging
import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training import attention
from alpaca_jobs.training.attention import row_borders, rows_attention, use_rows_attention, with_edges, without_flash
from alpaca_jobs.training.collate import Layout, choose_layout, collate, lay_out
from alpaca_jobs.training.flash_check import flash_agrees, keep_flash, stored_as
from alpaca_jobs.training.model import keep_products

CPU = torch.device("cpu")


def _kernel(*, crosses: bool = False, is_causal: bool = True, fails: bool = False) -> Any:
    """What stands for torch's kernel on a CPU, in bfloat16 with sums of its own, and with an error if asked."""

    def flash(q: Any, k: Any, v: Any, borders: Any, longest: int, scale: float | None, window: int | None) -> Any:
        if fails:
            raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")
        edges = [0, q.shape[2]] if crosses else borders.tolist()
        parts = [
            functional.scaled_dot_product_attention(
                *(one[:, :, begin:end].float() for one in (q, k, v)), scale=scale, is_causal=is_causal
            )
            for begin, end in pairwise(edges)
        ]
        return torch.cat(parts, dim=2).to(q.dtype).transpose(1, 2)

    return flash


@pytest.fixture
def llama() -> Any:
    """A random LLaMA of two layers, float32, with rows attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    assert choose_layout(model, pad_id=0, device=CPU) is Layout.ROWS
    return model


@pytest.mark.parametrize(
    ("wrong", "agrees"),
    [({}, True), ({"crosses": True}, False), ({"is_causal": False}, False), ({"fails": True}, False)],
)
def test_a_kernel_that_is_right_to_rounding_is_kept_and_a_wrong_one_is_not(
    llama: Any, wrong: dict[str, bool], agrees: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "why_no_flash", lambda query, dropout: None)
    monkeypatch.setattr(attention, "_flash", _kernel(**wrong))
    before = [param.detach().clone() for param in llama.parameters()]
    assert flash_agrees(llama, dtype=torch.bfloat16, pad_id=0, device=CPU) is agrees
    after = list(llama.parameters())
    assert all(torch.equal(one, two) and two.dtype == torch.float32 for one, two in zip(before, after, strict=True))
    assert llama.training


def test_a_model_whose_kernel_is_wrong_gets_its_own_attention_back(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from alpaca_jobs.training import flash_check

    gpu, tried = torch.device("cuda"), []

    def no(*args: Any, dtype: torch.dtype, **others: Any) -> bool:
        tried.append(dtype)
        return False

    monkeypatch.setattr(flash_check, "flash_agrees", no)
    bf16, fp32 = TrainSpec(model="m", dtype="bfloat16"), TrainSpec(model="m", dtype="float32")
    assert keep_flash(llama, bf16, before="sdpa", pad_id=0, device=CPU)
    assert keep_flash(llama, fp32, before="sdpa", pad_id=0, device=gpu)
    assert llama.config._attn_implementation == attention.ROWS
    assert not keep_flash(llama, bf16, before="sdpa", pad_id=0, device=gpu)
    assert (llama.config._attn_implementation, tried) == ("sdpa", [torch.bfloat16])


def test_parameters_are_what_they_were_after_an_error_too(llama: Any) -> None:
    weight = llama.model.embed_tokens.weight
    seen = []
    with pytest.raises(KeyError), stored_as(llama, torch.bfloat16):
        raise KeyError(seen.append(weight.dtype))
    assert seen == [torch.bfloat16]
    assert weight.dtype == torch.float32


def test_borders_on_a_device_carry_their_numbers(worker: Any) -> None:
    ends = row_borders([3, 4])["cu_seq_lens_q"]
    moved = with_edges(ends.clone(), ends)
    assert getattr(moved, attention._EDGES) == [0, 3, 7]
    query = torch.randn(1, 2, 7, 8)
    wanted, _ = rows_attention(None, query, query, query, None, cu_seq_lens_q=ends, max_length_q=4)
    moved.zero_()  # whoever read it now would find no rows
    found, _ = rows_attention(None, query, query, query, None, cu_seq_lens_q=moved, max_length_q=4)
    assert torch.equal(found, wanted)
    from alpaca_jobs.training.recipes import build_tokenizer, prepare_rows
    from alpaca_jobs.training.tokenizer import load_tokenizer

    train, rows = TrainSpec(model="tiny-llama", max_length=128), worker.rows(4)
    data = prepare_rows(rows, load_tokenizer(build_tokenizer(train, rows)), {}, train)
    inputs = lay_out(collate(data, [0, 2]), layout=Layout.ROWS, pad_id=0).to(CPU)
    lengths = [int(data.lengths[row]) for row in (0, 2)]
    assert getattr(inputs.model_inputs["cu_seq_lens_q"], attention._EDGES) == [0, lengths[0], sum(lengths)]


@pytest.mark.parametrize(
    ("dtype", "size", "dropout", "why"),
    [
        (torch.bfloat16, 128, 0.0, None), (torch.float32, 128, 0.0, "train.dtype is float32"),
        (torch.bfloat16, 320, 0.0, "its heads have a size of 320"), (torch.bfloat16, 20, 0.0, "a size of 20"),
        (torch.bfloat16, 64, 0.1, "dropout"),
    ],
)  # fmt: skip
def test_what_keeps_flash_attention_away_is_said_once(
    dtype: torch.dtype, size: int, dropout: float, why: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    query: Any = SimpleNamespace(is_cuda=True, dtype=dtype, shape=(1, 4, 10, size))
    said = attention.why_no_flash(query, dropout)
    assert said is None if why is None else why in str(said)
    attention._told.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            attention._tell_once(said)
    assert len(caplog.records) == (why is not None)


class _Counting(TorchDispatchMode):
    """Counts what is really executed, below whatever keeps results."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_selective_checkpointing_keeps_what_flash_attention_computed() -> None:
    """On the meta device, where torch's operator is its shapes alone."""
    (operator,) = attention.flash_operators()
    assert str(operator) == "torch_attn._varlen_attn.default"
    query = torch.empty(1, 2, 9, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    ends = torch.empty(3, dtype=torch.int32, device="meta")

    def layer(one: torch.Tensor) -> torch.Tensor:
        cheap = one.exp()
        return attention._flash(cheap, cheap, cheap, ends, 5, None, None).cos()

    for context, runs in ((keep_products, 1), (None, 2)):
        how = {} if context is None else {"context_fn": context}
        with _Counting() as counted:
            checkpoint(layer, query, use_reentrant=False, **how).sum().backward()
        assert counted.names.count(str(operator)) == runs, context
        assert counted.names.count("aten.exp.default") == 2, "what is cheap is computed again"


def _row_loop(q: Any, k: Any, v: Any, edges: Any, scale: float | None) -> torch.Tensor:
    """(T, heads, D) as torch's kernel takes and gives them; every query head needs keys of its own."""
    parts = [
        functional.scaled_dot_product_attention(
            *(one[begin:end].transpose(0, 1) for one in (q, k, v)), scale=scale, is_causal=True
        )
        for begin, end in pairwise(edges.tolist())
    ]
    return torch.cat(parts, dim=1).transpose(0, 1)


@pytest.mark.parametrize("heads_of_keys", [4, 2, 1])
@pytest.mark.parametrize("has_word", [True, False])
def test_heads_that_share_keys_are_told_to_a_torch_that_has_a_word_for_it(
    heads_of_keys: int, has_word: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.11 has no `enable_gqa`: there each query head is given a copy of its keys. The kernel is a stand-in that
    takes what that torch's would.
    """
    from torch.nn.attention import varlen

    told = []

    def newer(
        q: Any, k: Any, v: Any, edges: Any, _: Any, most: int, __: int, *, scale: Any, window_size: Any,
        enable_gqa: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        assert enable_gqa or q.shape[1] == k.shape[1]
        told.append(enable_gqa)
        k, v = (one.repeat_interleave(q.shape[1] // one.shape[1], dim=1) for one in (k, v))
        return _row_loop(q, k, v, edges, scale)

    def older(
        q: Any, k: Any, v: Any, edges: Any, _: Any, most: int, __: int, *, scale: Any, window_size: Any
    ) -> torch.Tensor:
        told.append(False)
        return _row_loop(q, k, v, edges, scale)

    monkeypatch.setitem(attention._state, "groups", None)
    monkeypatch.setattr(varlen, "varlen_attn", newer if has_word else older)
    ends = row_borders([5, 1, 7])
    torch.manual_seed(0)
    query = torch.randn(1, 4, 13, 8)
    key, value = torch.randn(2, 1, heads_of_keys, 13, 8)
    wanted, _ = rows_attention(None, query, key, value, None, **ends)
    monkeypatch.setattr(attention, "why_no_flash", lambda query, dropout: None)
    found, _ = rows_attention(None, query, key, value, None, **ends)
    torch.testing.assert_close(found, wanted)
    assert told == [has_word and heads_of_keys < 4]


def test_a_torch_without_that_operator_keeps_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    assert attention.flash_operators() == []
    keep_products()


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "groups", "window"), [(4, 4, None), (8, 2, None), (4, 4, 16)])
def test_on_a_gpu_flash_is_the_row_loop_forward_and_backward(heads: int, groups: int, window: int | None) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    gpu, lengths = torch.device("cuda"), [23, 1, 70, 130]
    ends = {name: one.to(gpu) if torch.is_tensor(one) else one for name, one in row_borders(lengths).items()}
    torch.manual_seed(0)
    shapes = [(1, count, sum(lengths), 64) for count in (heads, groups, groups)]
    made = [torch.randn(shape, device=gpu, dtype=torch.bfloat16) for shape in shapes]
    found = []
    for is_flash in (True, False):
        inputs = [one.clone().requires_grad_() for one in made]
        if is_flash:
            out, _ = rows_attention(None, *inputs, None, sliding_window=window, **ends)
        else:
            with without_flash():
                out, _ = rows_attention(None, *inputs, None, sliding_window=window, **ends)
        out.float().square().sum().backward()
        found.append([out.detach(), *(one.grad for one in inputs)])
    for mine, wanted in zip(*found, strict=True):
        assert mine is not None
        assert wanted is not None
        assert (mine - wanted).abs().max() <= 0.02 * wanted.abs().max()


def test_use_rows_attention_names_the_one_before() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    assert use_rows_attention(LlamaForCausalLM(config)) == "sdpa"
