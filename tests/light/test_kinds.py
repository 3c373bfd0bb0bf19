"""Kinds of draft: every spelling has one kind, and a folder is told by its tensors before its config's words."""

import json

import pytest

from foredraft import kinds, shapes
from foredraft.records import DraftChoice

TARGET = shapes.shape("Llama-3.1-8B")


def test_no_spelling_has_two_kinds():
    spelt = [method for kind in kinds.KINDS for method in kind.methods]
    assert len(spelt) == len(set(spelt)) == len(kinds.LABELS)


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.name)
def test_a_kind_is_found_by_its_name_and_by_its_spellings(kind):
    assert kinds.of_name(kind.name) is kind
    assert all(kinds.of_method(method) is kind for method in kind.methods)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("samd_eagle2", kinds.EAGLE),
        ("eagle3_gqa", kinds.EAGLE3),
        ("dspark-2", kinds.DSPARK),
        ("eagle_3_1", kinds.EAGLE3),
        ("dflash_d_pace", kinds.DFLASH),
        ("dfly", kinds.DFLASH),
        ("dflare", kinds.DFLASH),
        ("p_eagle", kinds.P_EAGLE),
        ("mtp_post_trained", kinds.MTP),
        ("dflash2", kinds.DFLASH2),
        ("domino", kinds.DOMINO),
    ],
)
def test_a_method_is_told_by_its_words(method, kind):
    assert kinds.of_method(method) is kind


def test_an_unknown_method_is_a_head_without_a_shape():
    kind = kinds.of_method("ngram_table")
    assert kind.role == "head"
    with pytest.raises(ValueError, match="a shape for method ngram_table"):
        kind.shape(TARGET)
    with pytest.raises(ValueError, match="kind must be one of"):
        kinds.of_name("ngram_table")


@pytest.mark.parametrize("kind", [kind for kind in kinds.KINDS if kind.parts], ids=lambda kind: kind.name)
def test_a_shape_has_the_layers_asked_for_and_the_usual_ones(kind):
    assert kind.shape(TARGET).num_layers == kind.usual_layers
    shape = kind.shape(TARGET, 2)
    assert (shape.num_layers, shape.hidden_size) == (2, TARGET.hidden_size)


@pytest.mark.parametrize(
    ("config", "tensors", "kind"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, ["model.embed_tokens.weight", "lm_head.weight"], kinds.LM),
        ({"architectures": ["LlamaForCausalLM"]}, ["fc.weight", "layers.0.mlp.up_proj.weight"], kinds.EAGLE),
        ({"architectures": ["LlamaForCausalLM"]}, ["model.fc.weight", "model.norm.weight"], kinds.EAGLE3),
        ({"architectures": ["LlamaForCausalLM"]}, ["fc.weight", "d2t"], kinds.EAGLE3),
        ({"architectures": ["LlamaForCausalLM"], "draft_vocab_size": 32000}, ["fc.weight"], kinds.EAGLE3),
        ({"architectures": ["LlamaForCausalLM"], "draft_vocab_size": 32000}, [], kinds.EAGLE3),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, [], kinds.EAGLE3),
        (
            {"architectures": ["LlamaForCausalLMEagle"], "draft_vocab_size": 8000},
            ["fc.weight", "d2t", "t2d"],
            kinds.EAGLE,
        ),
        (
            {"architectures": ["LlamaForCausalLMEagle"], "draft_vocab_size": 8000},
            ["fc.weight", "lm_head.weight", "d2t"],
            kinds.EAGLE3,
        ),
        (
            {"architectures": ["LlamaForCausalLM"], "draft_vocab_size": 8000},
            ["model.embed_tokens.weight", "d2t"],
            kinds.LM,
        ),
        (
            {"architectures": ["LlamaForCausalLM"], "draft_vocab_size": 8000},
            ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "d2t"],
            kinds.LM,
        ),
        (
            {"architectures": ["LlamaForCausalLM"], "draft_vocab_size": 8000},
            ["embed_tokens.weight", "fc.weight", "d2t"],
            kinds.EAGLE3,
        ),
        ({"architectures": ["Eagle3Speculator"]}, [], kinds.EAGLE3),
        ({"architectures": ["LlamaForCausalLMEagle"]}, [], kinds.EAGLE),
        ({"architectures": ["EagleLlamaForCausalLM"]}, [], kinds.EAGLE),
        ({"architectures": None}, [], kinds.LM),
        ({"architectures": ["DFlashDraftModel"]}, ["fc.weight", "norm.weight"], kinds.DFLASH),
        ({"architectures": ["DFlash2DraftModel"]}, [], kinds.DFLASH2),
        ({"architectures": ["DFlashDraftModel"]}, ["candidate_selector.predecessor_codebook"], kinds.DFLASH2),
        ({"architectures": ["Qwen3DSparkModel"]}, [], kinds.DSPARK),
        ({"architectures": ["DFlashDraftModel"], "dflash_config": {"projector_type": "domino"}}, [], kinds.DOMINO),
        ({"architectures": ["DFlashDraftModel"]}, ["prefix_gru.weight_ih_l0"], kinds.DOMINO),
        ({"architectures": ["PEagleDraftModel"], "draft_vocab_size": 32000}, ["fc.weight", "d2t"], kinds.P_EAGLE),
        ({"architectures": ["Eagle3Speculator"], "speculators_model_type": "peagle"}, [], kinds.P_EAGLE),
        ({"architectures": ["DeepseekV3ForCausalLMNextN"]}, [], kinds.MTP),
    ],
)
def test_a_checkpoint_is_told_by_tensors_then_config(config, tensors, kind):
    assert kinds.of_checkpoint(config, tensors) is kind


def _choice(kind, method=None):
    return DraftChoice(kind=kind, name="head", method=method, params=1.0, non_embedding_params=1.0)


def test_a_plans_draft_has_one_kind():
    drafts = [_choice("lookup"), _choice("lm"), *(_choice("head", name) for name in ("eagle", "eagle3", "dspark"))]
    assert [kinds.of_choice(draft) for draft in drafts] == [
        kinds.NGRAM,
        kinds.LM,
        kinds.EAGLE,
        kinds.EAGLE3,
        kinds.DSPARK,
    ]


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (_choice("head"), "draft.method is missing"),
        (_choice("head", "medusa"), "must be lookup or one of lm, eagle, eagle3, mtp, dflash, .*, got 'medusa'"),
        (_choice("tree"), "got 'tree'"),
    ],
)
def test_a_plans_draft_of_no_kind_is_refused(draft, message):
    with pytest.raises(ValueError, match=message):
        kinds.of_choice(draft)


# z-lab's Qwen3-8B-DFlash-b16, as published.
DFLASH_CONFIG = {
    "architectures": ["DFlashDraftModel"], "attention_bias": False, "block_size": 16, "head_dim": 128, "hidden_size": 4096,
    "dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]}, "intermediate_size": 12288,
    "max_position_embeddings": 40960, "model_type": "qwen3", "num_attention_heads": 32, "num_hidden_layers": 5,
    "num_key_value_heads": 8, "num_target_layers": 36, "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 151936,
}  # fmt: skip


def _folder(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return kinds.shape_of_folder(tmp_path)


def test_a_published_head_of_blocks_is_read_as_its_kind_builds_it(tmp_path):
    shape, target = _folder(tmp_path, DFLASH_CONFIG), shapes.shape("Qwen3-8B")
    built = kinds.DFLASH.shape(target)
    assert kinds.of_shape(shape) is kinds.DFLASH
    assert (shape.head, shape.params) == (built.head, built.params)
    assert (shape.target_num_layers, shape.max_position_embeddings) == (36, 40960)
    assert shape.params == pytest.approx(1.05e9, rel=0.005)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"dflash_config": {"target_layer_ids": [1, 9, 17, 25, 33, 34, 35, 30]}}, "hidden_states", 8),
        ({"block_size": 8}, "block", 7),
        ({"sample_from_anchor": True}, "block", 16),
        ({"speculators_config": {"proposal_methods": [{"speculative_tokens": 5}]}}, "block", 5),
        ({"draft_vocab_size": 32000}, "own_lm_head", True),
        ({"architectures": ["Qwen3DSparkModel"], "block_size": 7}, "block", 7),
        ({"architectures": ["Qwen3DSparkModel"], "markov_rank": 64}, "rank", 64),
        ({"architectures": ["Qwen3DSparkModel"], "markov_rank": 0}, "chain", ()),
    ],
)
def test_what_a_head_of_blocks_says_of_itself_stands(tmp_path, changes, field, value):
    shape = _folder(tmp_path, DFLASH_CONFIG | changes)
    assert getattr(shape.head, field) == value


def test_trainers_that_count_hidden_states_as_target_layers_are_not_taken_at_their_word(tmp_path):
    assert _folder(tmp_path, DFLASH_CONFIG | {"num_target_layers": 5}).target_num_layers is None
    both = DFLASH_CONFIG | {"num_target_layers": 5, "target_num_hidden_layers": 36}
    assert _folder(tmp_path, both).target_num_layers == 36


def test_a_sliding_head_has_the_parts_of_its_kind_too(tmp_path):
    sliding = {
        "architectures": ["DFlash2DraftModel"],
        "sliding_window": 2048,
        "use_sliding_window": True,
        "max_window_layers": 0,
    }
    windowed = _folder(tmp_path, DFLASH_CONFIG | sliding)
    full = _folder(tmp_path, DFLASH_CONFIG | {"architectures": ["DFlash2DraftModel"]})
    assert windowed.params == full.params
    assert windowed.cache_bytes(8192) < full.cache_bytes(8192)


@pytest.mark.parametrize("model_type", ["llama4_text", "mistral"])
def test_the_first_layer_of_a_stated_stack_is_as_wide_as_a_plain_one(tmp_path, model_type):
    """Sliding layers, and families that are counted layer by layer."""
    sizes = {
        "hidden_size": 320, "intermediate_size": 896, "num_hidden_layers": 1, "num_attention_heads": 5, "num_key_value_heads": 5,
        "head_dim": 64, "vocab_size": 4096, "draft_vocab_size": 1024, "architectures": ["LlamaForCausalLMEagle3"],
    }  # fmt: skip
    stated = _folder(tmp_path, sizes | {"model_type": model_type})
    plain = _folder(tmp_path, sizes | {"model_type": "llama"})
    assert stated.blocks
    assert stated.params == plain.params


def test_a_head_on_the_last_hidden_state_alone_has_a_narrow_fc(tmp_path):
    sizes = {
        "hidden_size": 320, "intermediate_size": 896, "num_hidden_layers": 1, "num_attention_heads": 5, "vocab_size": 4096,
        "draft_vocab_size": 1024, "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama",
    }  # fmt: skip
    last = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [], "use_aux_hidden_state": False}}
    assert (_folder(tmp_path, sizes).fc_params, _folder(tmp_path, sizes | last).fc_params) == (3 * 320**2, 320**2)


def test_a_draft_behind_a_look_up_is_spelt_once_and_is_a_kind_of_its_own() -> None:
    assert kinds.parted("DIR") == ("DIR", None)
    assert kinds.parted("a/b+ngram") == ("a/b", kinds.Lookup())
    assert kinds.parted("a+ngram:2") == ("a", kinds.Lookup(2))
    assert kinds.parted("a+ngram:4,9") == ("a", kinds.Lookup(4, 9))
    assert kinds.parted("a+ngrams") == ("a+ngrams", None)
    for words in ("a+ngram:0", "a+ngram:2,0", "a+ngram+ngram", "ngram+ngram"):
        with pytest.raises(ValueError, match="ngram"):
            kinds.parted(words)
    kind = kinds.of_method("eagle3+ngram")
    assert (kind.name, kind.role, kind.parts) == ("eagle3+ngram", "mixed", None)
    assert "eagle3+ngram" not in kinds.EAGLE3.methods
    assert kinds.role_of("draft_model+ngram") == "mixed"
