"""The draft that the user names: what it is taken for, what refuses it, and an acceptance that is stated."""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from given import given

from foredraft import kinds
from foredraft.engines import ENGINES
from foredraft.laws.draws import Lattice
from foredraft.laws.stated import held_to, stated_acceptance
from foredraft.machines import machine
from foredraft.plan.at_hand import OVERLAP_POWER, draft_at_hand, shared_vocabulary, weighed
from foredraft.plan.candidates import Basis, public
from foredraft.plan.heads import heads
from foredraft.plan.plan import plan
from foredraft.plan.problem import PlanSettings
from foredraft.plan.trees import PUBLISHED
from foredraft.published.heads import head_named, heads_for, model_id, public_heads
from foredraft.records import Observation, Provenance, Workload, write_lines
from foredraft.shapes import shape

H100 = machine("H100")
QWEN, LLAMA = shape("Qwen3-8B"), shape("Llama-3.1-8B")


def basis(target=QWEN, engine="vllm"):
    return Basis(target, H100, (), 0.0, engine=engine)


# Public heads.


def test_public_heads_have_ids_of_the_hub_kinds_of_ours_and_sources():
    heads_there = public_heads()
    assert len({head.id for head in heads_there}) == len(heads_there) >= 100
    assert all(head.id.count("/") == 1 and head.target.count("/") == 1 and head.source for head in heads_there)
    assert {"eagle", "eagle3", "dflash", "dflash2", "dspark", "domino", "peagle"} == {head.kind for head in heads_there}


@pytest.mark.parametrize("head", [head for head in public_heads() if head.params], ids=lambda head: head.id)
def test_stated_sizes_of_public_heads_are_near_those_that_are_planned(head):
    """Cards round, and count an embedding or leave it out: within a factor of three, which another kind or target would miss."""
    try:
        target = shape(head.target)
    except ValueError:
        pytest.skip("a target of no known shape")
    assert head.shape(target).params == pytest.approx(head.params, rel=2)


def test_a_head_is_offered_for_its_own_target_alone():
    ids = {head.id for head in heads_for(LLAMA)}
    assert "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B" in ids
    assert not ids & {
        "yuhuili/EAGLE-LLaMA3-Instruct-8B",
        "yuhuili/EAGLE3-DeepSeek-R1-Distill-LLaMA-8B",
    }  # of the same sizes
    distilled = msgspec.structs.replace(LLAMA, name="DeepSeek-R1-Distill-Llama-8B")
    assert "yuhuili/EAGLE3-DeepSeek-R1-Distill-LLaMA-8B" in {head.id for head in heads_for(distilled)}


def test_a_head_is_known_by_its_id_in_whatever_case():
    assert head_named("z-lab/qwen3-8b-dflash-B16") is head_named("Qwen3-8B-DFlash-b16") is not None
    assert head_named("nobody/Qwen3-8B-DFlash-b16") is None
    assert model_id(shape("Qwen3-0.6B")) == "Qwen/Qwen3-0.6B"


# Every kind that the engine serves.


def weighed_by_method(target, engine):
    found, missing = heads(basis(target, engine))
    methods = {}
    for candidate in found:
        methods.setdefault(candidate.choice.method, []).append(candidate.choice)
    return methods, missing


def test_every_kind_that_the_engine_serves_is_weighed_where_there_is_one():
    on_vllm, missing = weighed_by_method(QWEN, "vllm")
    assert set(on_vllm) == {"eagle3", "dflash", "dflash2", "dspark", "peagle"}
    assert missing["Domino heads"] == "vLLM serves none"
    on_sglang, missing = weighed_by_method(QWEN, "sglang")
    assert set(on_sglang) == {"eagle3", "dflash", "dflash2", "dspark", "domino"}
    assert missing["P-EAGLE heads"] == "SGLang serves none"
    ours, missing = weighed_by_method(QWEN, "foredraft")
    assert set(ours) == {"eagle3", "dflash", "dspark"}
    assert {"DFlash2 heads", "MTP heads"} <= missing.keys()


def test_heads_to_download_cost_no_training_and_those_to_train_are_ours_to_train():
    methods, _ = weighed_by_method(QWEN, "vllm")
    to_download = [choice for choices in methods.values() for choice in choices if choice.hub_id]
    to_train = [choice for choices in methods.values() for choice in choices if not choice.hub_id]
    assert {choice.hub_id for choice in to_download} <= {head.id for head in heads_for(QWEN)}
    assert all(choice.training_flops == 0 and choice.trained_by == () for choice in to_download)
    assert all(choice.training_flops > 0 and choice.draft_tokens for choice in to_train)
    assert {choice.method: choice.trained_by for choice in to_train} == {"eagle3": (), "dflash": (), "dspark": ()}


def test_mtp_layers_of_the_checkpoint_are_weighed_at_no_cost():
    methods, _ = weighed_by_method(shape("DeepSeek-V3"), "vllm")
    (choice,) = methods["mtp"]
    assert (choice.training_flops, choice.hub_id, choice.params) == (
        0,
        None,
        float(given(shape("DeepSeek-V3").mtp_layers).params),
    )
    assert "mtp" not in weighed_by_method(QWEN, "vllm")[0]


def test_a_vocabulary_that_is_nearly_as_large_is_no_kin_in_another_family():
    assert public(shape("DeepSeek-V3")) == []  # 129,280 tokens, Llama 3's are 128,256
    assert "Qwen3-0.6B" in {model.name for model in public(shape("Qwen3-30B-A3B"))}
    assert "Qwen2.5-0.5B" in {model.name for model in public(shape("Qwen2.5-7B"))}  # padded to another number of rows


# What names a draft.


def test_a_draft_is_known_by_folder_id_kind_or_public_name(tmp_path):
    config = {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
              "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 1, "vocab_size": 128256,
              "draft_vocab_size": 32000, "max_position_embeddings": 2048}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert given(draft_at_hand(str(tmp_path), LLAMA)).kind is kinds.EAGLE3
    assert given(draft_at_hand("RedHatAI/Qwen3-8B-speculator.peagle", QWEN)).kind is kinds.P_EAGLE
    assert given(given(draft_at_hand("dspark", QWEN)).shape).num_layers == 5
    assert given(draft_at_hand("ngram", QWEN)).shape is None
    assert given(draft_at_hand("Qwen3-0.6B", QWEN)).kind is kinds.LM
    assert draft_at_hand(None, QWEN) is None


@pytest.mark.parametrize(
    ("target", "name", "message"),
    [
        ("Qwen3-8B", "z-lab/Qwen3-4B-DFlash-b16", "is a head for Qwen/Qwen3-4B"),
        ("Qwen3-8B", "mtp", "Qwen3-8B has no such layers"),
        ("Qwen3-8B", "AngelSlim/Qwen3-8B_eagle", "nearest heads: AngelSlim/Qwen3-8B_eagle3"),
        ("Qwen3-8B", "nowhere", "no shape named"),
    ],
)
def test_what_names_no_draft_of_the_target_is_refused(target, name, message):
    with pytest.raises(ValueError, match=message) as error:
        draft_at_hand(name, shape(target))
    assert "\n" not in str(error.value)


REFUSED = [
    (
        kinds.EAGLE3.shape(shape("Llama-3.1-70B")),
        LLAMA,
        "vllm",
        "hidden states of width 8,192, those of Llama-3.1-8B have 4,096",
    ),
    (
        kinds.DFLASH.shape(shape("Qwen3-8B")),
        msgspec.structs.replace(QWEN, num_layers=32),
        "vllm",
        "a target of 36 layers",
    ),
    (
        kinds.EAGLE3.shape(QWEN),
        msgspec.structs.replace(QWEN, vocab_size=128256),
        "vllm",
        "a vocabulary of 151,936 tokens",
    ),
    (shape("TinyLlama-1.1B"), QWEN, "sglang", "SGLang cannot verify one by the other; vLLM maps those"),
    (
        shape("Llama-3.2-1B"),
        shape("DeepSeek-V3"),
        "sglang",
        "a vocabulary of 128,256 tokens, DeepSeek-V3 one of 129,280",
    ),
    (kinds.DOMINO.shape(QWEN), QWEN, "vllm", "vLLM serves no Domino draft; SGLang would"),
    (kinds.P_EAGLE.shape(QWEN), QWEN, "sglang", "SGLang serves no P-EAGLE draft; vLLM would"),
]


@pytest.mark.parametrize(("draft", "target", "engine", "message"), REFUSED)
def test_a_draft_that_cannot_draft_for_the_target_is_refused(draft, target, engine, message):
    with pytest.raises(ValueError, match=message) as error:
        weighed(basis(target, engine), draft)
    assert "\n" not in str(error.value)


def test_a_vocabulary_padded_by_an_exporter_is_the_same():
    assert weighed(basis(shape("Qwen2.5-7B")), shape("Qwen2.5-0.5B")).choice.vocab_overlap is None


# Another vocabulary, which the engine maps.


def test_a_draft_of_another_vocabulary_loses_what_is_published_by_overlap():
    target = shape("Qwen2.5-7B")
    with pytest.raises(ValueError, match="hangs on the share of its tokens that both have"):
        weighed(basis(target), given(draft_at_hand("TinyLlama-1.1B", target)))
    accept = {}
    for overlap in (0.998, 0.798, 0.696):
        candidate = weighed(basis(target), given(draft_at_hand("TinyLlama-1.1B", target, vocab_overlap=overlap)))
        accept[overlap] = candidate.acceptance.draws(64, Lattice(0, 24, 32), frozenset())
        assert candidate.choice.vocab_overlap == overlap
        assert f"overlap^{OVERLAP_POWER:g}" in candidate.notes[-1]
    # α of vLLM#38174's pairs with this target, over that at 0.998
    assert np.allclose(accept[0.798] / accept[0.998], 0.25 / 0.61, rtol=0.03)
    assert np.allclose(accept[0.696] / accept[0.998], 0.15 / 0.61, rtol=0.03)


def test_overlap_is_read_off_tokenizers(tmp_path):
    for name, vocabulary in (
        ("target", {"a": 0, "b": 1, "c": 2}),
        ("draft", [["b", -1.0], ["c", -2.0], ["d", -3.0], ["e", -4.0]]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    assert shared_vocabulary(tmp_path / "target", tmp_path / "draft") == 0.5
    assert shared_vocabulary(tmp_path / "target", tmp_path) is None
    (tmp_path / "draft" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no vocabulary"):
        shared_vocabulary(tmp_path / "target", tmp_path / "draft")


# A stated acceptance.


def stated(text):
    candidate = weighed(basis(LLAMA), given(draft_at_hand("eagle3", LLAMA, accept=text)))
    return candidate, candidate.acceptance.draws(256, Lattice(0, 24, 32), frozenset())


def test_a_stated_length_holds_in_every_draw_and_widens_beyond():
    candidate, accept = stated("2.6@3")
    tau = 1 + np.cumsum(np.cumprod(accept, axis=1), axis=1)
    assert np.allclose(tau[:, 2], 2.6, atol=1e-6)
    spread = tau.std(axis=0)
    assert spread[3] < spread[5] < spread[7]
    assert "acceptance as stated, 2.6@3; beyond 3 drafted tokens by the position law" in candidate.notes[0]


def test_shares_by_position_hold_in_every_draw_and_widen_beyond():
    _, accept = stated("0.8,0.7,0.62")
    survival = np.cumprod(accept, axis=1)
    assert np.allclose(survival[:, :3], [0.8, 0.7, 0.62])
    assert 0 < survival[:, 3].std() < survival[:, 7].std()


def test_a_draft_that_is_never_accepted_can_be_stated():
    _, accept = stated("0.5,0")
    assert np.allclose(np.cumprod(accept, axis=1)[:, :4], [0.5, 0, 0, 0])
    extreme = held_to(np.full((2, 4), 0.5), stated_acceptance("4@3"))
    assert np.allclose(extreme[:, :3], 1.0)


def test_no_law_replaces_a_stated_acceptance_in_a_plan():
    load = Workload(input_len=512, output_len=256, concurrency=(1,))
    settings = PlanSettings(draws=64, max_lookahead=3, always=True)
    by_kind = [
        plan(LLAMA, H100, load, settings, draft=draft_at_hand(kind, LLAMA, accept="2.6@3"))
        for kind in ("eagle3", "dflash")
    ]
    for document in by_kind:
        (step,) = document.schedule
        assert step.lookahead == 3
        assert (step.tokens_per_step.low, step.tokens_per_step.high) == pytest.approx((2.6, 2.6), abs=1e-5)


def test_an_acceptance_of_no_named_draft_is_refused():
    with pytest.raises(ValueError, match="--accept is of one draft"):
        draft_at_hand(None, LLAMA, accept="2.6@3")
    with pytest.raises(ValueError, match="--accept must be"):
        draft_at_hand("eagle3", LLAMA, accept="often")


# What engines are told.


def settings_of(name, target, engine, **kwargs):
    load = Workload(input_len=512, output_len=256, concurrency=(1,))
    document = plan(
        target, H100, load, PlanSettings(engine=engine, draws=16, always=True, max_lookahead=16),
        draft=draft_at_hand(name, target, accept="0.95,0.9,0.85,0.8,0.75,0.7,0.65", **kwargs),
    )  # fmt: skip
    return document.settings[engine], document.schedule[0].lookahead


def test_engines_are_told_a_block_in_their_own_words():
    config, k = settings_of("z-lab/Qwen3-8B-DFlash-b16", QWEN, "vllm")
    assert (config["method"], config["model"], config["num_speculative_tokens"]) == (
        "dflash",
        "z-lab/Qwen3-8B-DFlash-b16",
        k,
    )
    assert k <= 15
    config, k = settings_of("RedHatAI/Qwen3-8B-speculator.peagle", QWEN, "vllm")
    assert (config["method"], config["parallel_drafting"]) == ("eagle3", True)
    flags, k = settings_of("z-lab/Qwen3-8B-DFlash-b16", QWEN, "sglang")
    assert (flags["--speculative-algorithm"], flags["--speculative-num-draft-tokens"]) == ("DFLASH", k + 1)
    assert "--speculative-num-steps" not in flags
    assert ENGINES["sglang"].lookahead(flags) == k
    flags, k = settings_of("deepseek-ai/dspark_qwen3_8b_block7", QWEN, "sglang")
    assert (flags["--speculative-algorithm"], flags["--speculative-dspark-block-size"]) == ("DSPARK", k)
    assert k <= 7


def test_layers_of_the_targets_checkpoint_need_no_path():
    config, _ = settings_of("mtp", shape("MiMo-7B"), "vllm")
    assert config["method"] == "mtp"
    assert "model" not in config
    flags, _ = settings_of("mtp", shape("MiMo-7B"), "sglang")
    assert flags["--speculative-algorithm"] == "NEXTN"
    assert "--speculative-draft-model-path" not in flags
    config, _ = settings_of("TinyLlama-1.1B", shape("Qwen2.5-7B"), "vllm", vocab_overlap=0.7)
    assert config["use_heterogeneous_vocab"] is True
    assert config["model"] == "TinyLlama/TinyLlama-1.1B-Chat-v1.0"


def test_a_chain_is_launched_as_a_block_where_the_draft_drafts_blocks():
    sglang = ENGINES["sglang"]
    for kind, flag, tokens in (
        (kinds.DFLASH, "--speculative-num-draft-tokens", 6),
        (kinds.DSPARK, "--speculative-dspark-block-size", 5),
        (kinds.EAGLE3, "--speculative-num-steps", 5),
    ):
        launched = sglang.launched(sglang.chain(5), kind, "draft")
        assert (launched["--speculative-algorithm"], launched[flag]) == (kind.engine_names["sglang"], tokens)
        assert sglang.lookahead(launched) == 5
        assert not list(sglang.settings_faults(launched, kind))


def test_what_to_do_for_a_named_draft_is_said_first():
    load, settings = Workload(input_len=512, output_len=256, concurrency=(1,)), PlanSettings(draws=16, always=True)
    for target, name, verb, words in (
        (QWEN, "z-lab/Qwen3-8B-DFlash-b16", "download", "hf download z-lab/Qwen3-8B-DFlash-b16"),
        (shape("MiMo-7B"), "mtp", "use", "mtp"),
        (QWEN, "ngram", "use", "ngram"),
    ):
        action = given(plan(target, H100, load, settings, draft=draft_at_hand(name, target)).action)
        assert action.verb == verb
        assert any(words in command for command in action.commands)
        assert "checkpoint" in action.why or name != "mtp"


# Drafts at hand beside all others.


def folder_of(head, path, rows=()):
    """A folder with the config of a head of QWEN, and what was measured of it."""
    config = {
        "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": head.hidden_size, "num_hidden_layers": 1,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 12288, "vocab_size": QWEN.vocab_size,
        "draft_vocab_size": 32000, "tie_word_embeddings": False, "target_hidden_size": QWEN.hidden_size,
    }  # fmt: skip
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    if rows:
        write_lines(path / "observations.jsonl", rows)
    return str(path)


def measured_head(tau, target_params):
    accept = (tau - 1) / 3
    return Observation(
        run="ours", target="as it was called there", method="eagle3", provenance=Provenance(source="test"), draft="ours", lookahead=3, topk=1,
        tree_nodes=3, temperature=0.0, tokens_per_step=tau, survival=(accept,) * 3, target_params=target_params,
    )  # fmt: skip


def beside(*folders):
    load = Workload(input_len=64, output_len=64, concurrency=(1,))
    drafts = [given(draft_at_hand(folder, QWEN)) for folder in folders]
    return plan(QWEN, H100, load, PlanSettings(draws=64, engine="vllm"), beside=drafts)


def test_a_draft_at_hand_is_weighed_by_the_rows_in_its_folder_and_costs_no_training(tmp_path):
    good = folder_of(QWEN, tmp_path / "good", [measured_head(3.97, float(QWEN.params))])
    planned = beside(good)
    draft = given(planned.draft)
    assert (draft.name, draft.training_flops, given(planned.action).verb) == (good, 0.0, "use")
    k3 = given(weighed(basis(), given(draft_at_hand(good, QWEN)))).acceptance.draws(
        64, np.random.default_rng(0), frozenset()
    )
    assert 1 + np.cumprod(np.median(k3, axis=0)[:3]).sum() == pytest.approx(3.97, abs=0.1)


def test_rows_of_another_target_in_its_folder_do_not_count(tmp_path):
    there = folder_of(QWEN, tmp_path / "there", [measured_head(3.97, 1e9)])
    bare = folder_of(QWEN, tmp_path / "bare")
    weighed_there, weighed_bare = (weighed(basis(), given(draft_at_hand(folder, QWEN))) for folder in (there, bare))
    assert weighed_there.notes[0] == weighed_bare.notes[0]


def test_a_poor_draft_at_hand_does_not_win(tmp_path):
    poor = folder_of(QWEN, tmp_path / "poor", [measured_head(1.03, float(QWEN.params))])
    assert given(beside(poor).draft).name != poor


def treed(row, tau):
    return msgspec.structs.replace(row, topk=4, tree_nodes=8, survival=None, tokens_per_step=tau)


def test_a_draft_at_hand_has_the_tail_of_its_own_trees_or_of_others_on_the_target_and_then_a_wide_one(tmp_path):
    chain = measured_head(1.8, float(QWEN.params))
    rows = {"flat": (treed(chain, 1.9),), "steep": (treed(chain, 2.2),), "chains": ()}
    folders = {name: folder_of(QWEN, tmp_path / name, [chain, *trees]) for name, trees in rows.items()}
    others = [msgspec.structs.replace(row, draft="another", target=QWEN.name) for row in (chain, treed(chain, 2.0))]
    tails = {
        name: weighed(replace(basis(), observations=others), given(draft_at_hand(folder, QWEN))).tail
        for name, folder in folders.items()
    }
    assert tails["flat"].middle < tails["chains"].middle < tails["steep"].middle < PUBLISHED.middle
    assert tails["flat"].sd < tails["chains"].sd == PUBLISHED.sd
    assert weighed(basis(), given(draft_at_hand(folders["chains"], QWEN))).tail == PUBLISHED


def test_trees_on_other_prompts_than_the_chains_say_nothing(tmp_path):
    chain = measured_head(1.8, float(QWEN.params))
    elsewhere = msgspec.structs.replace(treed(chain, 1.9), dataset="others")
    folder = folder_of(QWEN, tmp_path / "apart", [chain, elsewhere])
    assert weighed(basis(), given(draft_at_hand(folder, QWEN))).tail == PUBLISHED
