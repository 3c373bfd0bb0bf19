"""Kinds of draft: every spelling has one kind, and a folder is told by its tensors before its config's words."""

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
    [("samd_eagle2", kinds.EAGLE), ("eagle3_gqa", kinds.EAGLE3), ("dspark-2", kinds.BLOCK)],
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
def test_a_shape_has_the_layers_asked_for(kind):
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
        ({"architectures": ["Eagle3Speculator"]}, [], kinds.EAGLE3),
        ({"architectures": ["LlamaForCausalLMEagle"]}, [], kinds.EAGLE),
        ({"architectures": ["EagleLlamaForCausalLM"]}, [], kinds.EAGLE),
        ({"architectures": None}, [], kinds.LM),
    ],
)
def test_a_checkpoint_is_told_by_tensors_then_config(config, tensors, kind):
    assert kinds.of_checkpoint(config, tensors) is kind


def _choice(kind, method=None):
    return DraftChoice(kind=kind, name="head", method=method, params=1.0, non_embedding_params=1.0)


def test_a_plans_draft_has_one_kind():
    drafts = [_choice("lookup"), _choice("lm"), _choice("head", "eagle"), _choice("head", "eagle3")]
    assert [kinds.of_choice(draft) for draft in drafts] == [kinds.NGRAM, kinds.LM, kinds.EAGLE, kinds.EAGLE3]


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (_choice("head"), "draft.method is missing"),
        (_choice("head", "medusa"), "must be lookup or one of lm, eagle, eagle3, got 'medusa'"),
        (_choice("tree"), "got 'tree'"),
    ],
)
def test_a_plans_draft_of_no_kind_is_refused(draft, message):
    with pytest.raises(ValueError, match=message):
        kinds.of_choice(draft)
