from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from puzzle_search.errors import InputError, MissingDependencyError
from puzzle_search.runtime.attention import (
    DECODE_ATTENTIONS,
    DecodeAttention,
    SdpaDecode,
    make_decode_attention,
    prefill_attention,
)
from tests.runtime.reference import attention, decode

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "num_heads": 6,
    "kv_heads": 2,
    "head_dim": 16,
    "slots": 3,
    "max_length": 64,
    "dtype": torch.bfloat16,
    "kv_dtype": torch.bfloat16,
}
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float8_e4m3fn),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def cache(
    slots: int, max_length: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    shape = (slots, max_length, kv_heads, head_dim)
    return torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)


@pytest.mark.parametrize("lengths", [[9, 9, 9], [1, 64, 17], [64, 64, 64]])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize(("dtype", "kv_dtype"), DTYPES)
def test_sdpa_decodes_as_float64_does(
    lengths: list[int], group: int, dtype: torch.dtype, kv_dtype: torch.dtype
) -> None:
    keys, values = cache(3, 64, 2, 16, kv_dtype)
    q = torch.randn(3, 2 * group, 16).to(dtype)
    sdpa = SdpaDecode()
    sdpa.prepare([64] * 3)
    sdpa.prepare(lengths)
    out = sdpa(q, keys, values, torch.tensor(lengths, dtype=torch.int32))
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.double(), decode(q, keys, values, lengths), atol=TOLERANCE[dtype], rtol=0
    )


@pytest.mark.parametrize(("length", "context"), [(20, 20), (1, 20), (7, 20)])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize(("dtype", "kv_dtype"), DTYPES)
def test_prefill_attends_causally_as_float64_does(
    length: int, context: int, group: int, dtype: torch.dtype, kv_dtype: torch.dtype
) -> None:
    keys, values = cache(2, context, 2, 16, kv_dtype)
    q = torch.randn(2, length, 2 * group, 16).to(dtype)
    out = prefill_attention(q, keys, values)
    assert out.dtype == dtype
    expected = torch.stack(
        [attention(q[b], keys[b].float(), values[b].float(), causal=True) for b in range(len(q))]
    )
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=0)


def test_the_cpu_takes_sdpa() -> None:
    assert isinstance(make_decode_attention(None, CPU, **SHAPE), SdpaDecode)
    assert isinstance(make_decode_attention("sdpa", CPU, **SHAPE), SdpaDecode)


@pytest.mark.parametrize(
    ("name", "says"),
    [("flash", "use one of sdpa, triton, flashinfer"), ("triton", "CUDA only, not on cpu")],
)
def test_another_back_end_is_refused(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_decode_attention(name, CPU, **SHAPE)


@pytest.mark.parametrize(
    ("name", "package", "hint"),
    [
        ("triton", "triton", "pip install triton"),
        ("flashinfer", "flashinfer", r"pip install 'puzzle-search\[flashinfer\]'"),
    ],
)
def test_a_missing_package_is_named(
    name: str, package: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("triton_decode", "triton_kernels", "flashinfer_decode"):
        monkeypatch.delitem(sys.modules, f"puzzle_search.runtime.attention.{module}", False)
    with pytest.raises(MissingDependencyError, match=hint):
        make_decode_attention(name, torch.device("cuda"), **SHAPE)


class PagedStub:
    """FlashInfer's wrapper by its documented contract, attending page by page in float64."""

    def __init__(self, workspace: torch.Tensor, layout: str, **options: Any) -> None:
        assert (layout, workspace.dtype) == ("NHD", torch.uint8)
        assert not workspace.any()
        self.slots = len(options["paged_kv_last_page_len_buffer"])
        assert len(options["paged_kv_indptr_buffer"]) == self.slots + 1
        self.room = len(options["paged_kv_indices_buffer"])
        assert options["use_cuda_graph"]

    def plan(self, *plan: Any, q_data_type: torch.dtype, kv_data_type: torch.dtype) -> None:
        self.indptr, self.indices, self.last_page, *self.shape = plan
        assert all(x.dtype == torch.int32 for x in plan[:3])
        assert len(self.last_page) == self.slots
        assert self.indptr[-1] == len(self.indices) <= self.room

    def run(self, q: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        *heads, page = self.shape
        assert heads == [q.shape[1], *cache[0].shape[2:]]
        assert page == cache[0].shape[1]
        rows = []
        for slot in range(self.slots):
            pages = self.indices[self.indptr[slot] : self.indptr[slot + 1]]
            length = (len(pages) - 1) * page + int(self.last_page[slot])
            k, v = (x[pages].flatten(0, 1)[:length].float() for x in cache)
            rows.append(attention(q[slot][None], k, v)[0])
        return torch.stack(rows)


@pytest.fixture
def paged_stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlashInfer is the stub, for modules that import it during the test."""
    built_on_it = "puzzle_search.runtime.attention.flashinfer_decode"
    module = types.ModuleType("flashinfer")
    module.BatchDecodeWithPagedKVCacheWrapper = PagedStub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    sys.modules.pop(built_on_it, None)
    yield
    sys.modules.pop(built_on_it, None)


@pytest.mark.usefixtures("paged_stub")
@pytest.mark.parametrize(("max_length", "lengths"), [(48, [1, 48, 17]), (512, [512, 256, 257])])
def test_slots_are_planned_as_pages(max_length: int, lengths: list[int]) -> None:
    from puzzle_search.runtime.attention.flashinfer_decode import FlashInferDecode

    paged = FlashInferDecode(CPU, **(SHAPE | {"max_length": max_length}))
    keys, values = cache(3, max_length, 2, 16, torch.bfloat16)
    q = torch.randn(3, 6, 16).bfloat16()
    paged.prepare([1, 1, 1])
    paged.prepare(lengths)
    out = paged(q, keys, values, torch.tensor(lengths, dtype=torch.int32))
    torch.testing.assert_close(out, decode(q, keys, values, lengths))


@pytest.mark.usefixtures("paged_stub")
@pytest.mark.parametrize(
    ("changes", "says"),
    [({"max_length": 40}, "multiple of 16"), ({"dtype": torch.float32}, "no fp32 queries")],
)
def test_what_flashinfer_cannot_serve_is_refused(changes: dict[str, Any], says: str) -> None:
    from puzzle_search.runtime.attention.flashinfer_decode import FlashInferDecode

    with pytest.raises(InputError, match=says):
        FlashInferDecode(CPU, **(SHAPE | changes))


def captured(
    attend: DecodeAttention, lengths: list[int], *inputs: torch.Tensor
) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """A graph of one call, captured after it ran once."""
    attend.prepare(lengths)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        attend(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(*inputs)
    return graph, out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", DECODE_ATTENTIONS)
@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    ("kv_heads", "group", "head_dim", "max_length"),
    [(8, 8, 128, 4096), (1, 8, 128, 32768), (2, 32, 128, 512), (4, 4, 64, 1024), (1, 64, 128, 512)],
)
def test_back_ends_agree_on_a_gpu_also_when_replayed(
    name: str, kv_dtype: torch.dtype, kv_heads: int, group: int, head_dim: int, max_length: int
) -> None:
    if name == "flashinfer" and importlib.util.find_spec("flashinfer") is None:
        pytest.skip("FlashInfer is not installed")
    device, slots = torch.device("cuda"), 4
    keys, values = (x.to(device) for x in cache(slots, max_length, kv_heads, head_dim, kv_dtype))
    q = torch.randn(slots, kv_heads * group, head_dim, device=device).bfloat16()
    attend = make_decode_attention(
        name,
        device,
        num_heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        slots=slots,
        max_length=max_length,
        dtype=q.dtype,
        kv_dtype=kv_dtype,
    )
    before, after = [max_length, 1, 100, 65], [3, max_length, 64, 257]
    lengths = torch.tensor(before, dtype=torch.int32, device=device)
    graph, replayed = captured(attend, before, q, keys, values, lengths)
    for now in (before, after):
        lengths.copy_(torch.tensor(now))
        attend.prepare(now)
        graph.replay()
        expected = decode(q, keys, values, now)
        for out in (replayed, attend(q, keys, values, lengths)):
            torch.testing.assert_close(out.double(), expected, atol=2e-2, rtol=0)
