"""The loop and language models: equal to transformers step by step, equal for any split of a batch, stopping in time."""

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from grammar import CONFIG, VOCAB, write_folder
from typer.testing import CliRunner

from foredraft import records, shapes
from foredraft.cli.main import app
from foredraft.models import Decoder, load
from foredraft.models.decoder import new_decoder
from foredraft.models.layers import model_config_of
from foredraft.models.save import config_of
from foredraft.recipe import Eagle, Eagle3, EvalSchedule, LanguageModel, Recipe, Stage
from foredraft.records import Estimate
from foredraft.teacher import attention
from foredraft.train.checkpoints import RunningLoss, State
from foredraft.train.devices import Devices
from foredraft.train.from_plan import from_plan
from foredraft.train.language_model import LanguageModelObjective
from foredraft.train.launch import launch, open_data
from foredraft.train.loop import Stopped, diverged, train, with_loss
from foredraft.train.objectives import trainee_of
from foredraft.train.optimiser import CpuMuon, rate

STEP = 8 * 32  # tokens
QUIET = EvalSchedule(log_every=1, held_out_every=10**6, save_every=10**6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    return write_folder(root / "train"), write_folder(root / "held_out", tokens=4000, seed=1)


def recipe(steps=20, **changes):
    fields = {
        "model": LanguageModel(config=CONFIG),
        "stages": (Stage(tokens=steps * STEP, length=32, batch=8, learning_rate=1e-2),),
        "precision": "float32",
        "watch": QUIET,
    }
    return Recipe(**(fields | changes))


def run(trained_recipe, out, folders, **options):
    return launch(trained_recipe, out, Devices(), data=[folders[0]], **options)


def lines(out, key="loss"):
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in logged if key in line]


# The same as transformers.


def test_twenty_losses_are_those_of_transformers_llama(folders, tmp_path):
    """Same weights, data, order, schedule and AdamW: transformers' model in a loop of a few lines."""
    transformers = pytest.importorskip("transformers")
    trained_recipe = recipe()
    data, stage = open_data(trained_recipe, [folders[0]], None), trained_recipe.stages[0]
    objective = trainee_of(trained_recipe, None).objective(data, Devices())
    start = tmp_path / "start"
    objective.save(start, objective.trained.state_dict())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).train()
    groups = [[p for p in theirs.parameters() if (p.dim() > 1) == wide] for wide in (True, False)]
    adam = torch.optim.AdamW(
        [{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}],
        betas=trained_recipe.betas,
        weight_decay=trained_recipe.weight_decay,
    )
    expected_losses = []
    for step in range(stage.steps):
        batch = data.stages[0].batch(step * stage.batch, stage.batch)
        labels = batch.tokens_BT.masked_fill(~batch.mask_BT, -100)
        loss = theirs(input_ids=batch.tokens_BT, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), trained_recipe.clip)
        for group in adam.param_groups:
            group["lr"] = rate(stage, step)
        adam.step()
        adam.zero_grad()
        expected_losses.append(float(loss.detach()))
    run(trained_recipe, tmp_path / "run", folders)
    assert len(expected_losses) == 20
    assert expected_losses[-1] < expected_losses[0] - 0.5  # it learns, so that an error would show
    assert lines(tmp_path / "run") == pytest.approx(expected_losses, abs=1e-4)


FAMILIES = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "llama3": {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "seed_oss": {"model_type": "seed_oss", "head_dim": 16},
    "opt": {"model_type": "opt", "num_key_value_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "opt-350m": {"model_type": "opt", "num_key_value_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_has_equal_logits_in_transformers_and_here(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = CONFIG | FAMILIES[name]
    shape = shapes.from_config(config)
    decoder = new_decoder(shape, model_config_of(config, shape), seed=1)
    with torch.no_grad():
        for parameter in decoder.parameters():  # so that norms and biases are seen too
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    LanguageModelObjective(decoder, {"ce": 1.0}, length=32).save(tmp_path, decoder.state_dict())
    tokens = torch.randint(0, VOCAB, (2, 24), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        their_logits, our_logits = theirs(input_ids=tokens).logits, decoder(tokens).logits_BTV
        again = load(tmp_path)(tokens).logits_BTV
    torch.testing.assert_close(our_logits, their_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again, our_logits, rtol=0, atol=0)
    written = json.loads((tmp_path / "config.json").read_bytes())
    assert msgspec.structs.replace(shapes.from_config(written, "x"), name=shape.name) == shape
    assert config_of(shape, model_config_of(written, shape)) | {"dtype": "float32"} == written


def test_new_weights_are_spread_as_transformers_spreads_them():
    shape = shapes.from_config(CONFIG | {"hidden_size": 128, "intermediate_size": 256, "attention_bias": True})
    decoder = new_decoder(shape, model_config_of(CONFIG, shape), seed=0)
    for name, parameter in decoder.named_parameters():
        if parameter.dim() > 1:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.05), name
        else:
            assert parameter.eq(0.0 if name.endswith("bias") else 1.0).all(), name


@pytest.mark.parametrize("length", [1, 5, 128, 129, 300])
@pytest.mark.parametrize("heads", [4, 2])
def test_attention_in_blocks_is_attention(length, heads):
    generator = torch.Generator().manual_seed(length)
    shape = (2, 4, length, 8), (2, heads, length, 8), (2, heads, length, 8)
    parts = [torch.randn(size, generator=generator).requires_grad_() for size in shape]
    blocks = attention.attend(0, parts[0], parts[1], parts[2])
    q, k, v = parts
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(blocks, attended)
    towards = torch.randn(blocks.shape, generator=generator)
    for our_gradient, their_gradient in zip(
        *(torch.autograd.grad(x, parts, towards) for x in (blocks, attended)), strict=True
    ):
        torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-5)


# One update for any split of a batch.


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_micro_batches_of_any_size_give_the_same_run(micro_batch, folders, tmp_path):
    stage = recipe().stages[0]
    run(recipe(), tmp_path / "whole", folders)
    split = msgspec.structs.replace(stage, micro_batch=micro_batch)
    run(recipe(stages=(split,)), tmp_path / "split", folders)
    assert lines(tmp_path / "split") == pytest.approx(lines(tmp_path / "whole"), abs=2e-5)


def test_in_half_precision_the_run_is_nearly_the_same(folders, tmp_path):
    run(recipe(), tmp_path / "float32", folders)
    run(recipe(precision="bfloat16"), tmp_path / "bfloat16", folders)
    wide, narrow = lines(tmp_path / "float32"), lines(tmp_path / "bfloat16")
    assert narrow == pytest.approx(wide, abs=0.05)
    assert narrow != pytest.approx(wide, abs=1e-6)  # it did compute otherwise


def test_masked_tokens_teach_nothing(folders, tmp_path):
    """A window whose masked tokens are replaced gives the same loss at the places before them."""
    trained_recipe = recipe()
    data = open_data(trained_recipe, [folders[0]], None)
    objective = trainee_of(trained_recipe, None).objective(data, Devices())
    batch = data.stages[0].batch(0, 4)
    first = objective.loss(batch, 0)
    assert float(first.weight) == float(batch.mask_BT[:, 1:].sum()) < batch.tokens_BT[:, 1:].numel()
    last = batch._replace(mask_BT=batch.mask_BT.clone())
    last.mask_BT[:, -1] = False
    other = last._replace(tokens_BT=last.tokens_BT.clone())
    other.tokens_BT[:, -1] = (other.tokens_BT[:, -1] + 1) % VOCAB
    torch.testing.assert_close(objective.loss(last, 0).total, objective.loss(other, 0).total, rtol=0, atol=0)
    unmasked = [part._replace(mask_BT=torch.ones_like(batch.mask_BT)) for part in (last, other)]
    assert not torch.equal(*(objective.loss(part, 0).total for part in unmasked))


def test_within_documents_nothing_leaks_across_their_ends(folders):
    trained_recipe = recipe(within_documents=True)
    data = open_data(trained_recipe, [folders[0]], None)
    batch = data.stages[0].batch(0, 8)
    assert (batch.documents_BT[:, -1] > 0).any()
    losses = []
    for apart in (True, False):
        objective = trainee_of(msgspec.structs.replace(trained_recipe, within_documents=apart), None).objective(
            data, Devices()
        )
        pair = []
        for shift in (0, 1):  # other tokens in every window's first document
            tokens = torch.where(batch.documents_BT == 0, (batch.tokens_BT + shift) % VOCAB, batch.tokens_BT)
            mask = batch.mask_BT & (batch.documents_BT > 0)
            mask[:, 1:] &= batch.documents_BT[:, 1:] == batch.documents_BT[:, :-1]
            pair.append(float(objective.loss(batch._replace(tokens_BT=tokens, mask_BT=mask), 0).total))
        losses.append(pair)
    assert losses[0][0] == losses[0][1]
    assert losses[1][0] != losses[1][1]


# Learning.


def test_it_learns_the_grammar_and_saves_best_last_and_on_the_way(folders, tmp_path):
    watch = EvalSchedule(log_every=5, held_out_every=20, held_out_tokens=2048, save_every=20, keep=1, export_at=(5000,))
    state = run(recipe(steps=100, watch=watch), tmp_path, folders, held_out=folders[1])
    held_out_lines = lines(tmp_path, "held_out_loss")
    noise = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1 / VOCAB))  # what is left when the successors are known
    assert len(held_out_lines) == 6
    assert held_out_lines[0] == pytest.approx(math.log(VOCAB), abs=0.1)
    assert held_out_lines[-1] < held_out_lines[0] - 1.5
    assert held_out_lines[-1] > noise - 0.3
    assert state.best is not None
    assert state.best.loss == min(held_out_lines)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["best.json", "step-00000100"]
    tokens = torch.arange(1, 20)[None]
    early, final = (load(tmp_path / name)(tokens).logits_BTV for name in ("exports/tokens-5000", "final"))
    assert early is not None
    assert final is not None
    assert not torch.equal(early, final)


@pytest.mark.parametrize(("few", "off"), [("int8", 200), ("int4", 3)])
def test_exports_in_few_bits_are_the_same_weights_rounded(few, off, folders, tmp_path):
    for name in ("float32", few):
        run(recipe(steps=5, watch=EvalSchedule(export_dtype=name)), tmp_path / name, folders)
    whole, rounded = (load(tmp_path / name / "final") for name in ("float32", few))
    assert (whole.in_eight, rounded.in_eight) == (False, True)
    for (name, weight), (_, other) in zip(whole.named_parameters(), rounded.named_parameters(), strict=True):
        assert torch.allclose(weight, other, atol=float(weight.abs().max()) / off), name
        assert torch.equal(weight, other) == bool((weight == weight.bfloat16()).all() and weight.dim() == 1), name


def test_distillation_raises_the_acceptance_it_is_trained_on(folders, tmp_path):
    """A target that knows the grammar; a draft of one layer learns its distribution from tv alone, no text's label among it."""
    run(recipe(steps=100), tmp_path / "target", folders)
    small = CONFIG | {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32}
    watch = EvalSchedule(log_every=1, held_out_every=100, held_out_tokens=2048, save_every=1000, lookahead=3)
    trained_recipe = recipe(steps=100, model=LanguageModel(config=small), loss={"tv": 0.5, "kl": 0.5}, watch=watch)
    run(trained_recipe, tmp_path / "draft", folders, target=tmp_path / "target/final", held_out=folders[1])
    accept, tau = lines(tmp_path / "draft", "accept_prob"), lines(tmp_path / "draft", "held_out_tokens_per_step")
    assert accept[0] < 0.3
    assert accept[-1] > 0.6
    assert tau[-1] > tau[0] + 0.5
    with pytest.raises(ValueError, match="give --target"):
        run(trained_recipe, tmp_path / "alone", folders)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_learns_what_it_can_draft(tied, folders, tmp_path):
    """Half the vocabulary: the loss is that of the target's and the text's tokens it has, the run lowers it and saves a draft of that half."""
    small = CONFIG | {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32, "tie_word_embeddings": tied}
    half = recipe(steps=40, model=LanguageModel(config=small, draft_vocab=VOCAB // 2))
    data = open_data(half, [folders[0]], None)
    objective, target = (
        trainee_of(half, None).objective(data, Devices()),
        new_decoder(shapes.from_config(CONFIG), model_config_of(CONFIG, shapes.from_config(CONFIG)), 3),
    )
    trained = objective.trained
    assert isinstance(trained, Decoder)
    batch, ids = data.stages[0].batch(0, 4), trained.draft_ids
    assert ids is not None
    assert len(ids) == VOCAB // 2
    logits, labels = trained(batch.tokens_BT).logits_BTV[:, :-1], batch.tokens_BT[:, 1:].contiguous()
    p = target(batch.tokens_BT).logits_BTV[:, :-1]
    places = {
        "ce": torch.isin(labels, ids) & batch.mask_BT[:, 1:],
        "kl": torch.isin(p.argmax(-1), ids) & batch.mask_BT[:, 1:],
    }
    log_p, log_q = p[..., ids].log_softmax(-1), logits.log_softmax(-1)
    there = torch.searchsorted(ids, labels).clamp(max=len(ids) - 1)
    terms = {"ce": -log_q.gather(-1, there[..., None])[..., 0], "kl": (log_p.exp() * (log_p - log_q)).sum(-1)}
    for name, taught in (("ce", None), ("kl", target)):
        objective = LanguageModelObjective(trained, {name: 1.0}, length=32, target=taught)
        loss = objective.loss(batch, 0)
        assert 0 < loss.weight < places[name].numel()
        assert loss.weight == places[name].sum()
        torch.testing.assert_close(loss.total, (terms[name] * places[name]).sum(), rtol=1e-4, atol=1e-3)
    run(half, tmp_path, folders, held_out=folders[1])
    held_out_lines, saved = lines(tmp_path, "held_out_loss"), load(tmp_path / "final")
    assert held_out_lines[-1] < held_out_lines[0] - 0.5
    assert saved.draft_ids is not None
    assert saved.draft_ids.tolist() == ids.tolist()
    assert saved(batch.tokens_BT).logits_BTV.shape[-1] == VOCAB // 2
    again = recipe(model=LanguageModel(init=str(tmp_path / "final"), draft_vocab=8))
    with pytest.raises(ValueError, match=r"has a draft vocabulary of \d+ already; leave it out"):
        trainee_of(again, None)


def test_stages_go_on_from_each_other(folders, tmp_path):
    stage = recipe().stages[0]
    two = recipe(stages=(stage, msgspec.structs.replace(stage, learning_rate=1e-3, tokens=5 * STEP)))
    state = run(two, tmp_path / "two", folders)
    run(recipe(), tmp_path / "one", folders)
    assert (state.step, state.stage, state.tokens) == (25, 2, 25 * STEP)
    assert lines(tmp_path / "two")[:20] == lines(tmp_path / "one")
    assert lines(tmp_path / "two")[-1] < lines(tmp_path / "one")[10]
    rates = lines(tmp_path / "two", "learning_rate")
    assert max(rates[20:]) == pytest.approx(1e-3)


# Stopping.


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(value, folders, tmp_path, monkeypatch):
    trained_recipe = recipe(watch=EvalSchedule(log_every=1, save_every=5))
    data = open_data(trained_recipe, [folders[0]], None)
    objective = trainee_of(trained_recipe, None).objective(data, Devices())
    good = objective.loss

    def loss(batch, step):
        good_loss = good(batch, step)
        return good_loss._replace(total=good_loss.total * (value if step == 7 else 1.0))

    monkeypatch.setattr(objective, "loss", loss)
    with pytest.raises(Stopped, match=r"not finite.*at step 7; the last good checkpoint is .*step-00000005"):
        train(trained_recipe, objective, data, tmp_path, Devices(), 1e12)
    assert all(parameter.isfinite().all() for parameter in objective.trained.parameters())
    assert len(lines(tmp_path)) == 7
    train(
        trained_recipe, trainee_of(trained_recipe, None).objective(data, Devices()), data, tmp_path, Devices(), 1e12
    )  # and goes on from there
    assert lines(tmp_path, "step") == list(range(1, 21))


def test_a_run_that_diverges_stops(folders, tmp_path):
    trained_recipe = recipe(steps=400, clip=1e9, weight_decay=0.0)
    wild = msgspec.structs.replace(trained_recipe.stages[0], learning_rate=30.0, warmup=0.0, schedule="constant")
    with pytest.raises(Stopped, match=r"diverges.*no checkpoint yet; lower learning_rate"):
        run(msgspec.structs.replace(trained_recipe, stages=(wild,)), tmp_path, folders)


def course_of(losses):
    course = None
    for loss in losses:
        course = with_loss(course, loss)
        if diverged(course):
            return True
    return False


def test_divergence_is_told_from_noise():
    falling = [9 - 6 * i / 100 for i in range(100)]
    assert not course_of(falling)
    assert not course_of([*falling, *([4.5, 2.0] * 200)])
    assert not course_of([*falling, 50.0, *([3.0] * 50)])  # one bad batch
    assert course_of([*falling, *([8.0] * 60)])
    assert course_of([2.0, *([4.0] * 100)])
    assert not course_of([2.0, *([2.5] * 1000)])


def test_where_nothing_is_to_be_predicted_the_run_stops(folders, tmp_path):
    masked = tmp_path / "masked"
    masked.mkdir()
    for path in folders[0].iterdir():
        (masked / path.name).write_bytes(bytes(path.stat().st_size) if path.name == "mask.bin" else path.read_bytes())
    with pytest.raises(Stopped, match="no token is to be predicted"):
        launch(recipe(), tmp_path / "run", Devices(), data=[masked])


def test_a_step_without_a_label_moves_nothing_and_the_run_goes_on(folders, tmp_path):
    sparse = tmp_path / "sparse"
    sparse.mkdir()
    for path in folders[0].iterdir():
        (sparse / path.name).write_bytes(path.read_bytes())
    mask = np.fromfile(sparse / "mask.bin", np.uint8)
    mask[np.arange(len(mask)) // 512 % 2 == 0] = 0
    mask.tofile(sparse / "mask.bin")
    stage = Stage(tokens=64 * 32, length=32, batch=1, learning_rate=1e-2)
    watch = msgspec.structs.replace(QUIET, log_every=1)
    order = recipe(stages=(stage,), watch=watch, seed=1)  # whose first window has a label
    launch(order, tmp_path / "run", Devices(), data=[sparse])
    losses, norms = lines(tmp_path / "run"), lines(tmp_path / "run", "gradient_norm")
    assert len(losses) == 64
    assert 10 < len(set(norms)) < 54, "steps without a label say what the last one with labels found"
    assert np.isfinite(losses).all()


# Settings.


def test_rates_rise_and_fall_as_the_schedules_say():
    def rates(**fields):
        stage = Stage(tokens=100 * 8, length=8, batch=1, learning_rate=2.0, warmup=0.1, final=0.1, **fields)
        return [rate(stage, step) for step in range(stage.steps)]

    for schedule in ("cosine", "wsd", "constant"):
        scheduled = rates(schedule=schedule)
        assert scheduled[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
        assert len(scheduled) == 100
    assert rates(schedule="constant")[10:] == [2.0] * 90
    assert rates(schedule="cosine")[54] == pytest.approx(2.0 * 0.55)
    assert rates(schedule="cosine")[-1] == pytest.approx(0.2)
    flat = rates(schedule="wsd", cooldown=0.5)
    assert flat[10:55] == pytest.approx([2.0] * 45)
    assert flat[-1] == pytest.approx(0.2)
    assert flat[77] == pytest.approx(2.0 * (1 - 0.9 * 23 / 45))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": {"kind": "lm", "params": 1e6}, "stages": [{"tokens": 1e6, "batches": 4}]}', "batches"),
        (
            '{"model": {"kind": "lm", "params": 1e6}, "stages": [{"tokens": 1e6}], "loss": {"mse": 1}}',
            "loss must be one of",
        ),
        ('{"model": {"kind": "lm", "params": 1e6}, "stages": []}', "stages must hold"),
        ('{"model": {"kind": "lm", "params": 1e6}, "stages": [{"tokens": 10}]}', "must cover one step"),
        ('{"model": {"kind": "lm"}, "stages": [{"tokens": 1e6}]}', "exactly one of params, config and init"),
        ('{"model": {"kind": "mamba"}, "stages": [{"tokens": 1e6}]}', "mamba"),
        (
            '{"model": {"kind": "lm", "params": 1e6}, "stages": [{"tokens": 1e6, "schedule": "step"}]}',
            "schedule must be",
        ),
        ('{"model": {"kind": "lm", "params": -1}, "stages": [{"tokens": 1e6}]}', "params must be positive"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused_with_its_field(text, message):
    with pytest.raises(ValueError, match=message):
        records.decode(Recipe, text)


PLAN = {
    "objective": "throughput", "engine": "vllm", "target": "x", "machine": "H100", "devices": 1, "dtype": "bfloat16",
    "workload": {"input_len": 1, "output_len": 1, "concurrency": [1]},
    "speedup": {"value": 2.0, "low": 1.5, "high": 2.5, "unit": "x", "source": "law"},
    "schedule": [{
        "concurrency": 1, "running": 1.0, "lookahead": 4, "topk": 1, "tree_nodes": 4,
        **{key: {"value": 3.1, "low": 2.8, "high": 3.3, "unit": "", "source": "law"}
           for key in ("tokens_per_step", "speedup", "output_tok_s", "tpot_s", "ttft_s")},
    }],
    "draft": {"kind": "lm", "name": "d", "params": 3e4, "non_embedding_params": 2e4, "draft_tokens": 5e6},
}  # fmt: skip


def planned(**draft):
    return records.decode(records.Plan, msgspec.json.encode(PLAN | {"draft": PLAN["draft"] | draft}))


def test_a_plan_becomes_a_recipe_of_its_own_sizes_and_budget():
    planned_recipe = from_plan(planned())
    assert planned_recipe.model == LanguageModel(params=2e4)
    assert planned_recipe.tokens == pytest.approx(5e6, rel=0.01)
    assert planned_recipe.predicted is not None
    assert planned_recipe.predicted.tokens_per_step == Estimate(value=3.1, low=2.8, high=3.3, unit="", source="law")
    sizes = {"num_layers": 2, "hidden_size": 64, "params": 3e4 + 64 * 100, "non_embedding_params": 3e4}
    head = from_plan(planned(kind="head", method="eagle3", **sizes), 2)
    assert head.model == Eagle3(layers=2, draft_vocab=100)
    assert [stage.tokens for stage in head.stages] == pytest.approx([4.5e6, 5e5])
    assert [stage.learning_rate for stage in head.stages] == pytest.approx([20e-4, 10e-4])
    assert head.stages[0].steps > 800, "a small budget takes small steps, not few"
    assert from_plan(planned(kind="head", method="eagle", **sizes), 2).model == Eagle(layers=2)
    assert from_plan(planned(kind="head", method="eagle", draft_vocab=64, **sizes)).model == Eagle(
        layers=2, draft_vocab=64
    )
    assert from_plan(planned(draft_vocab=64)).model == LanguageModel(params=2e4, draft_vocab=64)
    with pytest.raises(ValueError, match="plan again"):
        from_plan(planned(kind="head", name="EAGLE-3 head", **sizes))
    with pytest.raises(ValueError, match="needs no training"):
        from_plan(planned(kind="lookup"))
    with pytest.raises(ValueError, match="draft_tokens"):
        from_plan(planned(draft_tokens=None))


def test_a_dry_run_says_what_a_run_takes_and_starts_none(folders, tmp_path):
    records.write(tmp_path / "recipe.json", recipe())
    command = ["train", str(tmp_path / "recipe.json"), "--dry-run", "--json", "--out", str(tmp_path / "run")]
    needs = json.loads(CliRunner().invoke(app, command).stdout)
    shape = shapes.from_config(CONFIG)
    assert (
        needs["params"]
        == shape.params
        == sum(p.numel() for p in new_decoder(shape, model_config_of(CONFIG, shape), 0).parameters())
    )
    assert needs["tokens"] == 20 * STEP
    assert needs["flops"] == pytest.approx(20 * STEP * 3 * shape.flops_per_token(16.5))
    assert needs["time_s"]["low"] < needs["time_s"]["value"] < needs["time_s"]["high"]
    assert not (tmp_path / "run").exists()
    run(recipe(watch=EvalSchedule(save_every=5, keep=2)), tmp_path / "run", folders)
    used = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*.safetensors"))
    assert needs["disk_bytes"] / 2 < used < needs["disk_bytes"]


def test_a_dry_run_of_a_plan_tells_its_prediction(checkpoint, tmp_path):
    (tmp_path / "Plan.json").write_bytes(
        msgspec.json.encode(PLAN | {"draft": PLAN["draft"] | {"non_embedding_params": 6e4}})
    )
    command = ["train", str(tmp_path / "Plan.json"), "--dry-run", "--target", str(checkpoint)]
    output = CliRunner().invoke(app, command).stdout
    assert "3.10 (2.80 to 3.30, 90%) at lookahead 4" in output


def test_data_of_another_vocabulary_is_refused(folders, tmp_path):
    small = recipe(model=LanguageModel(config=CONFIG | {"vocab_size": 32}))
    with pytest.raises(ValueError, match="vocab_size is 32"):
        run(small, tmp_path, folders)


def test_tensorboard_is_asked_for_by_name_where_it_is_missing(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        run(recipe(watch=EvalSchedule(tensorboard=True)), tmp_path, folders)


def test_the_state_of_a_run_is_plain_json(folders, tmp_path):
    state = run(recipe(steps=5), tmp_path, folders)
    saved = records.read(State, tmp_path / "checkpoints/step-00000005/state.json")
    assert saved.step == state.step == 5
    assert isinstance(saved.course, RunningLoss)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    assert Path(tmp_path / "final/config.json").is_file()


@pytest.mark.parametrize("shape", [(48, 96), (96, 48)], ids=["wide", "tall"])
def test_muon_on_a_cpu_steps_as_torchs_does_but_for_bfloat16s_rounding(shape):
    generator = torch.Generator().manual_seed(0)
    weight, *gradients = torch.randn(4, *shape, generator=generator)
    moves = []
    for kind in (torch.optim.Muon, CpuMuon):
        parameter = torch.nn.Parameter(weight.clone())
        optimiser = kind([parameter], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimiser.step()
        moves.append(parameter.detach() - weight)
    assert (moves[1] - moves[0]).norm() < 0.02 * moves[0].norm()  # bfloat16 rounds by up to 0.4 %, five times over
