"""Drafts in eight bits and in four: what is stored is what is read, by our kernels as it stands and by torch in the draft's type."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_kernels import CONFIG, FAMILIES, SMALL, _compiled, _no_grad, by_torch, random_decoder  # noqa: F401 (two are fixtures)
from torch import Tensor

from foredraft import shapes
from foredraft.decode.batch import Request
from foredraft.decode.drafters import drafter_for
from foredraft.decode.engine import Engine
from foredraft.deploy.check import check
from foredraft.deploy.export import ExportSettings, export
from foredraft.models import four_bits
from foredraft.models.checkpoint import Checkpoint
from foredraft.models.decoder import cut
from foredraft.models.draft_vocab import offsets
from foredraft.models.eight_bits import EightBits
from foredraft.models.forward import causal_mask
from foredraft.models.heads import load_head, new_head, save_head
from foredraft.models.linear import Linear, linear
from foredraft.models.load import load
from foredraft.models.save import save

KINDS = ["eagle", "eagle3", "dflash", "dspark"]


def test_each_row_is_rounded_to_the_nearest_of_its_own() -> None:
    weight = torch.randn(9, 64) * torch.logspace(-6, 6, 9)[:, None]
    weight[3] = 0
    eight = EightBits.of(weight)
    off = (eight.weight - weight).abs()
    assert bool((off <= 0.5001 * eight.scale[:, None]).all())
    assert eight.values.abs().amax(1).tolist() == [127, 127, 127, 0, 127, 127, 127, 127, 127]
    again = EightBits.of(eight.weight)
    assert torch.equal(again.values, eight.values)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 13, 61])
def test_a_product_is_that_of_the_matrix_it_stands_for(rows: int, dtype: torch.dtype) -> None:
    """And a row's bits are the same alone."""
    for out, size in ((7, 32), (101, 96), (130, 160)):
        x, eight, bias = (
            torch.randn(rows, size).to(dtype),
            EightBits.of(torch.randn(out, size)),
            torch.randn(out).to(dtype),
        )
        weight = eight.weight.to(dtype)
        for more in (None, bias):
            exact = x.double() @ eight.weight.double().T + (0 if more is None else more.double())
            product = linear(x, weight, more, eight)
            assert (product - exact).abs().max() <= (1e-5 if dtype == torch.float32 else 0.01) * exact.abs().max()
            assert torch.equal(linear(x[:1], weight, more, eight), product[:1])


def test_four_bits_are_packed_as_compressed_tensors_packs_them() -> None:
    """By hand: eight numbers a word, each raised by 8, the first in the lowest bits; a scale for each 32."""
    weight = torch.tensor([[7.0, -7, 0, 1, -1, 2, 3, -7] * 4 + [14.0, -14, 0, 0, 2, 4, 6, 8] * 4])
    parts = four_bits.packed(weight, "w")
    assert {name: (part.dtype, tuple(part.shape)) for name, part in parts.items()} == {
        "w_packed": (torch.int32, (1, 8)), "w_scale": (torch.bfloat16, (1, 2)), "w_shape": (torch.int64, (2,)),
    }  # fmt: skip
    assert parts["w_packed"][0].tolist() == [0x1BA7981F] * 4 + [0xCBA9881F - 2**32] * 4
    assert parts["w_scale"].tolist() == [[1, 2]]
    assert parts["w_shape"].tolist() == [1, 64]
    assert torch.equal(four_bits.unpacked(parts["w_packed"], parts["w_scale"]), weight)


def test_four_bits_lie_within_the_steps_of_their_group() -> None:
    """And the scales chosen are better than each group's largest number as ±7."""
    weight = torch.randn(9, 96) * torch.logspace(-6, 6, 9)[:, None]
    weight[3] = 0
    parts = four_bits.packed(weight, "w")
    read = four_bits.unpacked(parts["w_packed"], parts["w_scale"])
    assert not read[3].any()
    error = (read - weight).unflatten(1, (-1, 32)).square().sum(-1)
    plain = (weight.unflatten(1, (-1, 32)).abs().amax(-1) / 7).clamp(min=1e-30)[..., None]
    rounded = (weight.unflatten(1, (-1, 32)) / plain).round() * plain - weight.unflatten(1, (-1, 32))
    assert bool((error <= 1.02 * rounded.square().sum(-1)).all())  # bfloat16 rounds a scale by up to 0.4 %
    assert error.sum(1)[4] < 0.97 * rounded.square().sum((1, 2))[4]


@pytest.mark.parametrize(
    ("name", "broken", "said"),
    [
        ("w_packed", torch.zeros(2, 8), "w_packed is F32"),
        ("w_packed", torch.zeros(2, 8, 1, dtype=torch.int32), "w_packed is I32"),
        ("w_scale", torch.zeros(3, 2), "w_scale must hold a number for each group"),
        ("w_scale", torch.zeros(2, 3), "w_scale must hold a number for each group"),
        ("w_scale", torch.zeros(2, 0), "w_scale must hold a number for each group"),
        ("w_scale", torch.zeros(2, 2, dtype=torch.int32), "w_scale must hold a number for each group"),
    ],
)
def test_a_broken_matrix_of_four_bits_is_named(name: str, broken: Tensor, said: str, tmp_path: Path) -> None:
    save_file(four_bits.packed(torch.randn(2, 64), "w") | {name: broken}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        Checkpoint(tmp_path)


def as_read(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """What a matrix is read as that was stored so."""
    if dtype == four_bits.INT4 and four_bits.fits(weight):
        parts = four_bits.packed(weight, "w")
        weight = four_bits.unpacked(parts["w_packed"], parts["w_scale"])
    elif dtype == four_bits.INT4:
        return weight.bfloat16().float()
    return EightBits.of(weight).weight


@pytest.mark.parametrize("dtype", [torch.int8, four_bits.INT4], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, "lm"])
def test_what_is_stored_is_what_is_read(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    target = random_decoder(FAMILIES["llama"])
    if kind == "lm":
        draft: Any = random_decoder(FAMILIES["llama"] | {"num_hidden_layers": 1})
        save(draft.state_dict(), draft.shape, draft.config, tmp_path, dtype=dtype)
        read: Any = load(tmp_path)
    else:
        draft = new_head(target, kind, draft_vocab=range(40))
        save_head(draft, tmp_path, dtype=dtype)
        read = load_head(tmp_path, target)
    stored, matrices = load_file(tmp_path / "model.safetensors"), 0
    for (name, weight), (_, before) in zip(read.named_parameters(), draft.named_parameters(), strict=True):
        if weight.dim() == 2:
            assert torch.equal(weight, as_read(before, dtype)), name
            matrices += dtype == torch.int8 or four_bits.fits(before)
        else:
            assert torch.equal(weight, before.bfloat16().float()), name
    few = {torch.int8: torch.int8, four_bits.INT4: torch.int32}[dtype]
    assert sum(tensor.dtype == few for tensor in stored.values()) == matrices
    assert all(part.eight for part in read.modules() if isinstance(part, Linear) and four_bits.fits(part.weight))
    assert shapes.from_config(tmp_path).weight_format == {torch.int8: "int8-g0", four_bits.INT4: "int4-g32"}[dtype]


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("rows", [4, 45])
def test_a_model_runs_by_kernel_as_by_torch(
    rows: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, and a prompt whose rows lie in the lanes."""
    model = random_decoder(CONFIG | {"model_type": "llama", "attention_bias": True})
    save(model.state_dict(), model.shape, model.config, tmp_path, dtype=torch.int8)
    read = load(tmp_path, dtype)
    tokens, places = torch.randint(0, 101, (1, rows)), torch.arange(rows)[None]

    def run() -> Tensor:
        at = "none" if rows > 32 else "all"
        return read(tokens, places, read.new_cache(1, 64), mask_BTS=causal_mask(places, rows), logits=at).final_BTC

    ours = run()
    by_torch(monkeypatch)
    theirs = run()
    assert not torch.equal(ours, theirs)
    assert (ours - theirs).abs().max() <= SMALL[dtype] * theirs.abs().max()


@pytest.mark.parametrize("dtype", [torch.int8, four_bits.INT4], ids=str)
@pytest.mark.parametrize("kind", ["eagle", "eagle3", "dspark", "lm"])
def test_a_draft_in_few_bits_is_run_in_bfloat16_beside_any_target(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Its text is plain decoding's, and the rows that it borrows of its target's LM head are in eight bits too."""
    target = random_decoder(FAMILIES["llama"])
    if kind == "lm":  # of a draft vocabulary, as the zoo's, which its tensors tell from a head
        draft = cut(random_decoder(FAMILIES["llama"] | {"num_hidden_layers": 1}), offsets(range(0, 101, 2), 101))
        save(draft.state_dict(), draft.shape, draft.config, tmp_path, dtype=dtype)
    else:
        save_head(new_head(target, kind, draft_vocab=range(40)), tmp_path, dtype=dtype)
    requests = [Request(tuple(range(2 + i, 9 + i)), 12) for i in range(3)]
    drafter: Any = drafter_for(target, str(tmp_path), 3, 64)
    assert drafter.cache.kv.dtype == torch.bfloat16
    drafted = Engine(target, drafter, lookahead=3, max_batch=3, max_context=32).generate(requests)
    plain = Engine(target, max_batch=3, max_context=32).generate(requests)
    assert [each.answer for each in drafted] == [each.answer for each in plain]
    model = drafter.model if kind == "lm" else drafter.head
    assert model.lm_head is not None or model.gathered.eight is not None


def test_a_weight_that_learns_is_no_more_in_eight_bits(tmp_path: Path) -> None:
    target = random_decoder(FAMILIES["llama"])
    save_head(new_head(target, "eagle"), tmp_path, dtype=torch.int8)
    head = load_head(tmp_path, target)
    assert head.in_eight
    head.requires_grad_(True)
    assert not head.in_eight
    x = torch.randn(2, 128)
    before = head.fc(x)
    head.fc.weight.mul_(2)
    assert torch.allclose(head.fc(x), 2 * before, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int8, four_bits.INT4], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_engines_get_sixteen_bits(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    target = random_decoder(FAMILIES["llama"])
    save(target.state_dict(), target.shape, target.config, tmp_path / "target", more={"eos_token_id": 2})
    head = new_head(target, kind)
    save_head(head, tmp_path / "draft", dtype=dtype)
    (found,) = {finding.code: finding for finding in check(tmp_path / "draft", tmp_path / "target")}.values()
    assert (found.code, found.level) == ("quantised", "warning")
    assert "foredraft deploy" in found.remedy
    export(tmp_path / "draft", tmp_path / "target", tmp_path / "out", ExportSettings())
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_bytes())
    written = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in written.values() if tensor.is_floating_point()} == {torch.bfloat16}
    name = next(name for name in written if name.endswith("mlp.up_proj.weight"))
    up = dict(head.named_parameters())["layers.0.mlp.up_proj.weight"]
    assert torch.equal(written[name], as_read(up, dtype).bfloat16())


@pytest.mark.parametrize(
    "change",
    [{"format": "pack-quantized"}, {"num_bits": 4}, {"strategy": "group"}, {"input_activations": {"num_bits": 8}}],
)
def test_other_quantisations_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    model = random_decoder(FAMILIES["llama"])
    save(model.state_dict(), model.shape, model.config, tmp_path, dtype=torch.int8)
    keys = json.loads((tmp_path / "config.json").read_bytes())
    how = keys["quantization_config"]
    group = how["config_groups"]["group_0"]
    for key, value in change.items():
        (how if key == "format" else group if key == "input_activations" else group["weights"])[key] = value
    (tmp_path / "config.json").write_text(json.dumps(keys))
    with pytest.raises(
        ValueError, match="quantised weights are not supported, but for eight bits a scale a row and four"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("lm_head.weight_scale"), "lm_head.weight is I8"),
        (lambda tensors: tensors.update({"lm_head.weight_scale": torch.ones(1)}), "a number for each row"),
    ],
)
def test_scales_are_one_a_row(change: Any, message: str, tmp_path: Path) -> None:
    model = random_decoder(FAMILIES["llama"])
    save(model.state_dict(), model.shape, model.config, tmp_path, dtype=torch.int8)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
