"""Targets that our decoder does not know teach heads: through transformers, or from files that a serving engine wrote."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from grammar import write_folder
from safetensors.torch import load_file, save_file
from torch import Tensor

from foredraft import records
from foredraft.data.tokens import Packing, TokenFolder
from foredraft.models.heads import load_head
from foredraft.models.load import load
from foredraft.recipe import DFlash, DSpark, Eagle, Eagle3, EvalSchedule, HeadModel, LanguageModel, Recipe, Stage
from foredraft.teacher.hidden_states import OnlineHiddenStates
from foredraft.teacher.state_files import StateFiles, StateFolder
from foredraft.teacher.transformers_target import TransformersFolder
from foredraft.train.devices import Devices
from foredraft.train.launch import launch
from foredraft.train.sizes import TeacherChoice

VOCAB, LENGTH = 64, 24
LAYERS = 4
GROUPED = {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
TARGETS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "gpt-neox": ("GPTNeoXConfig", {}),  # partial rotation, LayerNorm, names of its own
    "qwen3-moe": ("Qwen3MoeConfig", GROUPED | EXPERTS | {"head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        GROUPED | {"head_dim": 8, "final_logit_softcapping": 0.5},
    ),  # scaled embedding, capped logits
    "phi": ("PhiConfig", {}),  # an LM head with a bias
    "llama4": ("Llama4TextConfig", GROUPED | {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48}),
    "granite": ("GraniteConfig", GROUPED | {"logits_scaling": 4.0}),
}
"""Names of configs of transformers, with what they need."""


def write_target(folder: Path, kind: str) -> Path:
    name, more = TARGETS[kind]
    config = getattr(transformers, name)(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        max_position_embeddings=128, bos_token_id=None, eos_token_id=None, pad_token_id=None, initializer_range=0.3, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases that do something
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("targets")
    return lambda kind: root / kind if (root / kind).is_dir() else write_target(root / kind, kind)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("tokens")
    return write_folder(root / "train", tokens=1500), write_folder(root / "held_out", tokens=500, seed=1)


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch):
    """The rate of the machine's products, which takes half a second to measure, is not looked at here."""
    monkeypatch.setattr("foredraft.train.launch.matmul_rate", lambda *_: 1e9)


def recipe(model: HeadModel, *, length: int = LENGTH, steps: int = 6, within_documents: bool = False) -> Recipe:
    stage = Stage(tokens=steps * 8 * length, length=length, batch=8, learning_rate=1e-2, schedule="constant")
    watch = EvalSchedule(log_every=1, held_out_every=steps, held_out_tokens=8 * length, save_every=steps, lookahead=2)
    return Recipe(
        model=model, stages=(stage,), precision="float32", watch=watch, within_documents=within_documents,
        loss={"soft_ce": 1.0} if isinstance(model, Eagle | Eagle3) else {},
    )  # fmt: skip


def trained(
    folders: tuple[Path, Path], out: Path, run: Recipe, target: Path, teacher: TeacherChoice | None = None
) -> dict[str, Tensor]:
    launch(run, out, Devices(), data=[folders[0]], held_out=folders[1], target=target, teacher=teacher)
    return load_file(out / "final/model.safetensors")


def logged(out: Path, key: str) -> list[float]:
    return [line[key] for text in (out / "metrics.jsonl").read_text().splitlines() if key in (line := json.loads(text))]


def alike(one: dict[str, Tensor], two: dict[str, Tensor], within: float = 1e-4) -> bool:
    assert one.keys() == two.keys()
    return all(float((one[name].double() - two[name].double()).abs().max()) < within for name in one)


THROUGH = TeacherChoice("transformers")

# Through transformers


@pytest.mark.parametrize("kind", TARGETS)
def test_logits_of_the_teacher_are_the_models_own(kind: str, target: Callable[[str], Path]):
    """Whatever its class does to its embedding, its last state or its logits; a cached place's argmax and sum are of these logits too."""
    folder, tokens = target(kind), torch.randint(0, VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))
    teacher, model = TransformersFolder(folder).load(), transformers.AutoModelForCausalLM.from_pretrained(folder)
    output = teacher(tokens, hidden_states=(1, LAYERS))
    with torch.no_grad():
        expected = model(tokens, output_hidden_states=True)
    for index, state in zip((1, LAYERS), output.hidden_states, strict=True):
        torch.testing.assert_close(state, expected.hidden_states[index])
    logits = teacher.logits_form(output.final_BTC @ teacher.head_weight_VC.T)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(teacher.embed_tokens.weight, model.get_input_embeddings().weight, rtol=0, atol=0)


def test_a_family_of_ours_teaches_the_same_head(
    target: Callable[[str], Path], folders: tuple[Path, Path], tmp_path: Path
):
    """States, losses, held-out figures and the trained head, through transformers and our decoder."""
    folder, tokens = target("llama"), torch.randint(0, VOCAB, (2, 40))
    ours, theirs = load(folder), TransformersFolder(folder).load()
    for one, two in zip(
        ours(tokens, hidden_states=(0, 2, 4)).hidden_states,
        theirs(tokens, hidden_states=(0, 2, 4)).hidden_states,
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    run = recipe(Eagle3(unroll=2, feature_layers=(1, 2, 3)), within_documents=True)
    one = trained(folders, tmp_path / "ours", run, folder)
    two = trained(folders, tmp_path / "theirs", run, folder, THROUGH)
    assert alike(one, two)
    for key in ("loss", "held_out_loss", "held_out_tokens_per_step"):
        assert logged(tmp_path / "ours", key) == pytest.approx(logged(tmp_path / "theirs", key), abs=1e-4), key


HEADS: list[tuple[str, HeadModel]] = [
    ("gpt-neox", Eagle3(unroll=2, feature_layers=(1, 2, 3), draft_vocab=40)),
    ("qwen3-moe", DSpark(layers=1, block=3, rank=4, feature_layers=(1, 3), anchors=0.3, mask_token=1)),
    ("gemma2", Eagle()),
    ("phi", DFlash(layers=1, block=3, feature_layers=(1, 2), anchors=0.3, mask_token=1)),
]


@pytest.mark.parametrize(("kind", "model"), HEADS, ids=[f"{kind}-{type(model).__name__}" for kind, model in HEADS])
def test_a_head_of_an_unknown_family_learns(
    kind: str, model: HeadModel, target: Callable[[str], Path], folders: tuple[Path, Path], tmp_path: Path
):
    """What is held out says how much is accepted; the trained head is one beside its target."""
    weights = trained(folders, out := tmp_path / "run", recipe(model, steps=8), target(kind), THROUGH)
    losses = logged(out, "loss")
    assert losses[-1] < losses[0]
    assert all(1 <= value <= 3 for value in logged(out, "held_out_tokens_per_step"))
    head = load_head(out / "final", TransformersFolder(target(kind)).load())
    assert all(torch.equal(head.state_dict()[name], weights[name]) for name in ("fc.weight",))


def test_cached_states_teach_what_computed_ones_do(
    target: Callable[[str], Path], folders: tuple[Path, Path], tmp_path: Path
):
    """And the run goes on from its checkpoint."""
    run, given = recipe(HEADS[0][1], steps=4), {"data": [folders[0]], "target": target("gpt-neox"), "teacher": THROUGH}
    launch(run, tmp_path / "online", Devices(), **given)
    launch(run, tmp_path / "cached", Devices(), features=tmp_path / "states", **given)
    assert logged(tmp_path / "cached", "loss") == pytest.approx(logged(tmp_path / "online", "loss"), rel=1e-4)
    assert launch(run, tmp_path / "cached", Devices(), features=tmp_path / "states", **given).step == 4


def test_documents_are_put_to_the_target_alone(target: Callable[[str], Path], folders: tuple[Path, Path]):
    teacher = TransformersFolder(target("gpt-neox")).load()
    packing = Packing(TokenFolder.open(folders[0]), 64, 0, True)
    batch = packing.batch(0, 3)
    states = OnlineHiddenStates(teacher, (2,), within_documents=True)(batch)
    seen = set()
    for row in range(3):
        for document in batch.documents_BT[row].unique():
            here = batch.documents_BT[row] == document
            alone = teacher(batch.tokens_BT[row][here][None], hidden_states=(2,))
            torch.testing.assert_close(states.aux_BTF[row][here], alone.hidden_states[0][0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(states.final_BTW[row][here], alone.final_BTC[0], rtol=1e-4, atol=1e-5)
            seen.add(int(here.sum()))
    assert len(seen) > 2
    whole = OnlineHiddenStates(teacher, (2,))(batch)
    assert (whole.aux_BTF - states.aux_BTF).abs().max() > 1e-2, "negative control: a neighbour changes states"


def test_a_quantised_target_teaches(tmp_path: Path):
    """FP8 with scales by block, which transformers unpacks where there is no GPU: the states of the weights that it stands for."""
    folder, plain = write_target(tmp_path / "fp8", "llama"), write_target(tmp_path / "plain", "llama")
    weights, config = load_file(folder / "model.safetensors"), records.read(dict, folder / "config.json")
    unpacked = {name: tensor.bfloat16() for name, tensor in weights.items()}
    for name in [name for name in weights if "proj" in name]:
        scale = weights[name].abs().max() / 448
        weights[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = scale.reshape(1, 1)
        unpacked[name] = (weights[name].float() * scale).bfloat16()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(unpacked, plain / "model.safetensors", metadata={"format": "pt"})
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config))
    tokens = torch.arange(12)[None]
    one, two = (TransformersFolder(path).load(torch.bfloat16)(tokens).final_BTC for path in (folder, plain))
    torch.testing.assert_close(one, two)


def test_logits_that_are_not_of_the_last_state_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_target(tmp_path / "odd", "llama")
    forward = transformers.LlamaForCausalLM.forward

    def squared(self: Any, *words: Any, **options: Any) -> Any:
        output: Any = forward(self, *words, **options)
        output.logits = output.logits**2
        return output

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", squared)
    with pytest.raises(ValueError, match="its logits are not its LM head times its last hidden state"):
        TransformersFolder(folder).load()


# Files of a serving engine


def write_states(
    folder: Path,
    target: Path,
    tokens: TokenFolder,
    layers: tuple[int, ...],
    *,
    whole: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """As vLLM's connector writes them, a lock beside each: the last layer's states before the norm. Not `whole`: without the end token."""
    model, before_norm = transformers.AutoModelForCausalLM.from_pretrained(target), []
    norm: Any = getattr(model.base_model, "norm", None) or model.base_model.final_layer_norm
    norm.register_forward_pre_hook(lambda _, inputs: before_norm.append(inputs[0]))
    folder.mkdir(parents=True)
    for index in range(tokens.data.num_documents):
        ids = torch.from_numpy(tokens.document(index)[0].astype("int64"))
        ids = ids if whole else ids[:-1]
        with torch.no_grad():
            states = [*model(ids[None], output_hidden_states=True).hidden_states]
        states[LAYERS] = before_norm.pop()
        stacked = torch.stack([states[layer][0] for layer in layers], 1).contiguous()
        save_file({"token_ids": ids, "hidden_states": stacked.to(dtype)}, folder / f"hs_{index}.safetensors")
        (folder / f"hs_{index}.safetensors.lock").touch()
    return folder


STATES = (1, 2, 3, LAYERS)


@pytest.fixture(scope="module")
def written(
    target: Callable[[str], Path], folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("written")

    def states(kind: str) -> Path:
        if not (root / kind).is_dir():
            for part, folder in zip(("train", "held_out"), folders, strict=True):
                write_states(root / kind / part, target(kind), TokenFolder.open(folder), STATES, whole=part == "train")
        return root / kind

    return states


def test_files_of_states_teach_what_transformers_teaches(
    target: Callable[[str], Path], written: Callable[[str], Path], folders: tuple[Path, Path], tmp_path: Path
):
    """Windows that are documents, so that both see the same; the end token's state, which half of the files lack, teaches nothing."""
    kind, model = "gemma2", Eagle3(unroll=2, feature_layers=(1, 2, 3))
    run = recipe(model, length=50, steps=4, within_documents=True)
    one = trained(folders, tmp_path / "run", run, target(kind), THROUGH)
    two = trained(folders, tmp_path / "files", run, target(kind), TeacherChoice(str(written(kind)), STATES))
    assert alike(one, two)
    for key in ("loss", "held_out_loss", "held_out_tokens_per_step"):
        assert logged(tmp_path / "run", key) == pytest.approx(logged(tmp_path / "files", key), abs=1e-4), key


def test_states_in_bfloat16_teach_what_wider_ones_do_and_prompts_without_answers_teach_nothing(
    target: Callable[[str], Path], written: Callable[[str], Path], folders: tuple[Path, Path], tmp_path: Path
):
    """bfloat16, as a server has them; the first 8 documents are prompts whose answers are missing: they have states, and no labels."""
    kind, run = "llama", recipe(Eagle3(unroll=2, feature_layers=(1, 2, 3)), length=50, steps=4, within_documents=True)
    shutil.copytree(folders[0], tmp_path / "train")
    tokens = TokenFolder.open(tmp_path / "train")
    mask = tokens.mask.copy()
    mask[: int(tokens.offsets[8])] = 0
    mask.tofile(tmp_path / "train/mask.bin")
    for name, dtype in (("wide", torch.float32), ("narrow", torch.bfloat16)):
        write_states(tmp_path / name / "train", target(kind), tokens, STATES, dtype=dtype)
        write_states(tmp_path / name / "held_out", target(kind), TokenFolder.open(folders[1]), STATES, dtype=dtype)
        choice = TeacherChoice(str(tmp_path / name), STATES)
        trained((tmp_path / "train", folders[1]), tmp_path / f"run-{name}", run, target(kind), choice)
    wide, narrow = (logged(tmp_path / f"run-{name}", "loss") for name in ("wide", "narrow"))
    assert narrow == pytest.approx(wide, rel=0.02)
    assert narrow != wide
    whole = logged(tmp_path / "run-wide", "held_out_loss")
    assert logged(tmp_path / "run-narrow", "held_out_loss") == pytest.approx(whole, rel=0.02)


def test_a_file_of_states_that_is_none_is_told(
    target: Callable[[str], Path], folders: tuple[Path, Path], tmp_path: Path
):
    """Cut off, of speculators' first format or packed by vLLM's online connector, of other names, types or shapes."""
    tokens, neox = TokenFolder.open(folders[0]), target("gpt-neox")
    states = write_states(tmp_path / "states", neox, tokens, STATES)
    file, packing = states / "hs_3.safetensors", Packing(tokens, LENGTH, 0, True)
    whole, tensors = file.read_bytes(), load_file(file)

    def read() -> None:
        folder = StateFolder(neox, states, STATES)
        StateFiles(folder, None, (1, 2, 3), [(packing, len(packing))])  # type: ignore[arg-type]

    read()
    others: dict[str, dict[str, Tensor]] = {
        r"lacks token_ids, and holds hidden_states, input_ids, loss_mask": {
            "hidden_states": tensors["hidden_states"], "input_ids": tensors["token_ids"], "loss_mask": torch.ones(len(tensors["token_ids"])),
        },
        r"token_ids F32 \[50\] and hidden_states F32, not integers": tensors | {"token_ids": tensors["token_ids"].float()},
        r"token_ids I64 \[1, 50\]": tensors | {"token_ids": tensors["token_ids"][None].clone()},
        r"hidden_states is \[50, 128\], not \[tokens 50, states 4, width 32\]": tensors | {"hidden_states": tensors["hidden_states"].flatten(1)},
        r"hidden_states is \[49, 4, 32\]": tensors | {"hidden_states": tensors["hidden_states"][:-1].clone()},
        r"hidden_states I8, not": tensors | {"hidden_states": tensors["hidden_states"].to(torch.int8)},
    }  # fmt: skip
    for words, other in others.items():
        save_file(other, file)
        with pytest.raises(ValueError, match=rf"hs_3\.safetensors: .*{words}"):
            read()
    for cut in (0, 5, 60, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"hs_3\.safetensors: truncated or corrupt"):
            read()
    file.write_bytes(whole)
    os.mkfifo(states / "hs_99.safetensors")
    with pytest.raises(ValueError, match=r"hs_99\.safetensors: is a pipe"):
        read()
    for ending, words in ((".safetensors.zst", "its .zst files are packed"), (".pt", "its .pt files are pickles")):
        shutil.rmtree(states)
        states.mkdir()
        (states / f"hs_0{ending}").write_bytes(whole)
        with pytest.raises(ValueError, match=f"holds no safetensors files of hidden states; {words}") as caught:
            read()
        assert caught.value.__notes__


def test_a_window_in_the_midst_of_a_document_has_that_documents_states(
    target: Callable[[str], Path], written: Callable[[str], Path], folders: tuple[Path, Path]
):
    folder = StateFolder(target("gpt-neox"), written("gpt-neox"), STATES)
    packing = Packing(TokenFolder.open(folders[0]), 70, 0, True)
    source = StateFiles(folder, tables := folder.load(), (2, 4), [(packing, len(packing))])
    teacher = TransformersFolder(target("gpt-neox")).load()
    begins = packing.windows(0, 4) * 70
    states = source(packing.batch(0, 4))
    for row, begin in enumerate(begins):
        first = int(begin) // 50
        documents = [
            torch.from_numpy(packing.folder.document(first + i)[0].astype("int64")) for i in range(3) if first + i < 30
        ]
        whole = torch.cat([teacher(ids[None], hidden_states=(2, 4)).final_BTC[0] for ids in documents])
        here = whole[int(begin) - 50 * first :][:70]
        torch.testing.assert_close(states.final_BTW[row], here, rtol=1e-4, atol=1e-5)
    assert any(int(begin) % 50 for begin in begins)
    torch.testing.assert_close(tables.head_weight_VC, teacher.head_weight_VC)
    with pytest.raises(ValueError, match="is not run here; its hidden states are on file"):
        tables(packing.batch(0, 1).tokens_BT)


# What cannot be is told


def refused(
    words: str,
    folders: tuple[Path, Path],
    tmp_path: Path,
    target: Path,
    teacher: TeacherChoice,
    run: Recipe,
    **more: Any,
) -> None:
    with pytest.raises(ValueError, match=words):
        launch(run, tmp_path / "run", Devices(), data=[folders[0]], target=target, teacher=teacher, **more)
    assert not (tmp_path / "run").exists()


def test_what_files_lack_is_told(
    target: Callable[[str], Path], written: Callable[[str], Path], folders: tuple[Path, Path], tmp_path: Path
):
    neox, states, model = target("gpt-neox"), written("gpt-neox"), Eagle3(feature_layers=(1, 2, 3))
    run, choice = recipe(model, within_documents=True), TeacherChoice(str(states), STATES)
    train_only = TeacherChoice(str(states / "train"), STATES)
    cases: list[tuple[str, TeacherChoice, Recipe, dict[str, Any]]] = [
        ("within_documents must be true", choice, recipe(model), {}),
        ("are on file already", choice, run, {"features": tmp_path / "states"}),
        ("holds no states of 10 of the 10 documents of", train_only, run, {"held_out": folders[1]}),
        (
            r"holds states \[1, 2, 3, 4\], and the head reads \[1, 2, 0\]",
            choice,
            recipe(Eagle3(feature_layers=(1, 2, 0)), within_documents=True),
            {},
        ),
        (
            r"is \[\d+, 4, 32\], not \[tokens \d+, states 5, width 32\]",
            TeacherChoice(str(states), (0, *STATES)),
            run,
            {},
        ),
        (
            "--state-layers 1,2: states 0 to 4 of gpt-neox, the last, 4, among them",
            TeacherChoice(str(states), (1, 2)),
            run,
            {},
        ),
        ("no such folder; --teacher takes foredraft, transformers or a folder", TeacherChoice("nowhere"), run, {}),
        ("--state-layers names the states in a folder of files", TeacherChoice("transformers", (1,)), run, {}),
        ("holds no safetensors files", TeacherChoice(str(folders[0]), STATES), run, {}),
    ]
    for words, teacher, case, more in cases:
        refused(words, folders, tmp_path, neox, teacher, case, **more)


def test_the_command_line_says_what_is_possible(
    cli: Callable[..., Any], target: Callable[[str], Path], folders: tuple[Path, Path], tmp_path: Path
):
    records.write(tmp_path / "eagle3.json", recipe(Eagle3(feature_layers=(1, 2, 3)), within_documents=True))
    records.write(
        tmp_path / "lm.json", Recipe(model=LanguageModel(params=1e5), stages=recipe(Eagle()).stages, loss={"kl": 1.0})
    )
    words = ("train", tmp_path / "eagle3.json", "--target", target("gpt-neox"), "--dry-run")
    done = cli(*words)
    assert done.returncode == 2
    assert "--teacher transformers" in done.stderr.split("hint:")[1]
    done = cli(*words, "--teacher", "transformers", "--json")
    assert done.returncode == 0, done.stderr
    through = json.loads(done.stdout)
    assert through["params"] > 0
    assert through["frozen_params"] == pytest.approx(target_params(target("gpt-neox")), rel=0.3)
    (tmp_path / "states").mkdir()
    on_file = json.loads(cli(*words, "--teacher", tmp_path / "states", "--state-layers", "1,2,3,4", "--json").stdout)
    assert on_file["flops"] < through["flops"]
    assert on_file["memory_bytes"] < through["memory_bytes"]
    done = cli(*words, "--teacher", "transformers", "--shard")
    assert "--shard spreads targets of our own decoder" in done.stderr
    done = cli("train", tmp_path / "lm.json", "--target", target("llama"), "--dry-run", "--teacher", "transformers")
    assert "--teacher is for draft heads" in done.stderr


def target_params(folder: Path) -> int:
    return sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())


def test_no_code_of_a_folder_is_run(target: Callable[[str], Path], tmp_path: Path):
    folder = write_target(tmp_path / "custom", "llama")
    config = records.read(dict, folder / "config.json") | {
        "model_type": "strange",
        "auto_map": {"AutoConfig": "code.Config"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(ValueError, match=r"transformers [\d.]+ cannot run it"):
        TransformersFolder(folder)
    assert not (tmp_path / "ran").exists()
