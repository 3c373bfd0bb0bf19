"""Tables: the field's column names are recognised, a blank is missing and never 0, and a bad cell is named with its place."""

import re

import pytest

from foredraft.published import document, observations
from foredraft.published.tables import COLUMNS, read_csv, read_table
from foredraft.records import Observation


def table(tmp_path, text: str, name: str = "t.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_table(path)


def only(tmp_path, text: str) -> Observation:
    rows, _ = table(tmp_path, text)
    assert len(rows) == 1
    return rows[0]


def refusal(tmp_path, text: str) -> str:
    with pytest.raises(ValueError, match=r"^t\.csv") as error:
        table(tmp_path, text)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("column", "field", "cell", "value"),
    [
        *((name, "tokens_per_step", "2.5", 2.5) for name in (
            "tau", "Tau", "acceptance_length", "Acceptance Length", "mean_acceptance_length", "accept_length", "accept-length", "AL",
        )),
        *((name, "lookahead", "3", 3) for name in ("num_speculative_tokens", "k", "K", "num_steps", "speculative_num_steps", "gamma")),
        *((name, "concurrency", "8", 8) for name in ("concurrency", "max_concurrency", "Max Concurrency")),
        *((name, "batch_size", "8", 8) for name in ("batch_size", "bs", "batch")),
        *((name, "output_tok_s", "812.5", 812.5) for name in (
            "output_throughput", "throughput", "tok_s", "tok/s", "tokens/s", "tokens_per_second", "tps",
        )),
        ("mean_ttft_ms", "ttft_s", "250", 0.25),
        ("mean_tpot_ms", "tpot_s", "12.5", 0.0125),
        ("mean_itl_ms", "itl_s", "8", 0.008),
        ("speedup", "speedup", "1.7x", 1.7),
        ("isl", "input_len", "512", 512.0),
        ("tp_size", "tensor_parallel", "4", 4),
        ("gpu", "machine", "H100", "H100"),
    ],
)  # fmt: skip
def test_column_names_and_units(tmp_path, column, field, cell, value):
    outcome = "" if field in ("tokens_per_step", "output_tok_s", "speedup") else ",alpha"
    rows, unknown = table(tmp_path, f"model,method,{column}{outcome}\nT,eagle3,{cell}{',0.5' if outcome else ''}\n")
    assert getattr(rows[0], field) == pytest.approx(value)
    assert unknown == []


def test_every_alias_reads_into_its_field_and_no_two_fields_share_one():
    names = [name for aliases in COLUMNS.values() for name in aliases]
    assert len(names) == len(set(names))
    assert set(COLUMNS) <= set(Observation.__struct_fields__)


def test_unrecognised_columns_are_returned_and_not_guessed(tmp_path):
    rows, unknown = table(tmp_path, "model,method,k,tau,Magic Number\nT,eagle3,2,2.1,9\n")
    assert unknown == ["Magic Number"]
    assert rows[0].tokens_per_step == 2.1


def test_of_two_columns_for_one_field_the_second_is_reported(tmp_path):
    rows, unknown = table(tmp_path, "model,method,k,tau,acceptance_length\nT,eagle3,2,2.1,2.9\n")
    assert (rows[0].tokens_per_step, unknown) in ((2.1, ["acceptance_length"]), (2.9, ["tau"]))


def test_joint_and_conditional_acceptance_by_position(tmp_path):
    joint = only(tmp_path, "model,method,k,per_position_acceptance_pct\nT,eagle3,3,80;60;30\n")
    assert joint.survival == pytest.approx((0.8, 0.6, 0.3))
    chained = only(tmp_path, "model,method,k,per_position_conditional_acceptance\nT,eagle3,3,0.8;0.75;0.5\n")
    assert chained.survival == pytest.approx((0.8, 0.6, 0.3))
    listed = only(tmp_path, 'model,method,k,per_position_acceptance\nT,eagle3,3,"[0.8, 0.6, 0.3]"\n')
    assert listed.survival == pytest.approx((0.8, 0.6, 0.3))


def test_rising_joint_acceptance_is_refused_and_the_same_conditional_one_is_not(tmp_path):
    assert "rise" in refusal(tmp_path, "model,method,k,per_position_acceptance_pct\nT,eagle3,2,50;80\n")
    fine = only(tmp_path, "model,method,k,per_position_conditional_acceptance_pct\nT,eagle3,2,50;80\n")
    assert fine.survival == pytest.approx((0.5, 0.4))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model,k,tau\nT,1,1.5\nT,2,nan\n", ("t.csv:3", "tau", "nan")),
        ("model,k,tau\nT,2,inf\n", ("t.csv:2", "tau")),
        ("model,k,tau\nT,2,high\n", ("t.csv:2", "tau", "high")),
        ("model,k,tau\nT,two,2.0\n", ("t.csv:2", "k", "two")),
        ("model,k,tau\nT,2.5,2.0\n", ("t.csv:2", "k", "2.5", "whole")),
        ("model,k,tau\n\nT,1,1.5\n\nT,2,x\n", ("t.csv:5", "tau")),
        ("model,k,tau\nT,2,0.4\n", ("t.csv:2", "tokens_per_step")),
        ("model,k,alpha\nT,2,72%\n", ("t.csv:2", "accept_prob")),
        ("model,k,tau\nT,1,1.5\n,,\n", ("t.csv:3", "empty")),
        ("model,k,tau\n", ("no rows",)),
        ("", ("no rows",)),
        ("model,k,colour\nT,2,red\n", ("no outcome column",)),
        ("model,method,k,throughput\nT,eagle3,2,1,234\n", ("t.csv:2", "more cells")),
        ("model,method,accepted,drafted,tau\nT,eagle3,9,8,2\n", ("t.csv:2", "accepted")),
        ("model,method,k,per_position_acceptance\nT,eagle3,2,high;low\n", ("t.csv:2", "per_position_acceptance")),
        ("model,method,k,per_position_acceptance\nT,eagle3,2,0.5;nan\n", ("t.csv:2", "survival")),
        ("model,method,k,throughput\nT,eagle3,2,-4\n", ("t.csv:2", "output_tok_s")),
        ("model,method,k,throughput\nT,eagle3,2,0\n", ("t.csv:2", "output_tok_s")),
    ],
)  # fmt: skip
def test_faults_are_one_line_with_file_row_and_column(tmp_path, text, words):
    message = refusal(tmp_path, text)
    assert all(word in message for word in words), message


def test_a_length_that_changes_from_step_to_step_is_named_and_another_word_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "k,concurrency,throughput,accept_length\n16,64,1588,4.35\nadaptive,64,4508,3.76\ndynamic tree,1,90,3\n"
    )
    reading = read_csv(path, path.read_bytes())
    assert [row.lookahead for row in reading.rows] == [16]
    assert reading.unused == {
        "its k is no number but 'adaptive'": ["3"],
        "its k is no number but 'dynamic tree'": ["4"],
    }
    path.write_text("k,concurrency,throughput\nseven,64,1588\n")
    with pytest.raises(ValueError, match=r"t\.csv:2: column k: 'seven' is not a"):
        read_csv(path, path.read_bytes())


def test_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    row = only(tmp_path, "\ufefftau,model,k,method\n2.5,T,3,eagle3\n")
    assert row.tokens_per_step == 2.5


def test_blank_is_missing_and_zero_is_zero(tmp_path):
    row = only(tmp_path, "model,method,k,tau,mean_ttft_ms,draft,concurrency,temperature\nT,eagle3,3,2.5, ,,,0\n")
    assert (row.ttft_s, row.draft, row.concurrency, row.accepted) == (None, None, None, None)
    assert row.temperature == 0.0
    zero = only(tmp_path, "model,method,k,tau,mean_ttft_ms\nT,eagle3,3,2.5,0\n")
    assert zero.ttft_s == 0.0


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("model,method,k,throughput\nT,eagle3,0,100\n", "none"),
        ("model,method,k,throughput\nT,eagle3,1,100\n", "eagle3"),
        ("model,method,k,throughput\nT,Vanilla,,100\n", "none"),
        ("model,method,k,throughput\nT,EAGLE-3,2,100\n", "eagle3"),
        ("model,method,k,throughput\nT,baseline,,100\n", "none"),
        ("model,throughput\nT,100\n", "none"),
        ("model,k,throughput\nT,2,100\n", "unstated"),
        ("model,draft_model,throughput\nT,D,100\n", "unstated"),
        ("model,method,throughput\nT,PLD,100\n", "ngram"),
        ("model,method,throughput\nT,Medusa (2 heads),100\n", "medusa"),
    ],
)
def test_method_is_spelled_one_way_and_k_0_is_none(tmp_path, text, method):
    assert only(tmp_path, text).method == method


def test_sglang_counts_the_root_of_the_tree(tmp_path):
    row = only(tmp_path, "model,method,num_steps,topk,num_draft_tokens,accept_length\nT,eagle3,3,1,4,2.5\n")
    assert (row.lookahead, row.topk, row.tree_nodes, row.drafted, row.draft_tokens) == (3, 1, 3, None, None)


def test_draft_tokens_is_a_counter_beside_accepted_tokens_and_training_tokens_otherwise(tmp_path):
    counter = only(tmp_path, "model,method,k,draft_tokens,accepted_tokens,tau\nT,eagle3,3,300,170,2.7\n")
    assert (counter.drafted, counter.accepted, counter.draft_tokens) == (300, 170, None)
    trained = only(tmp_path, "model,method,k,draft_tokens,tau\nT,eagle3,3,8e8,2.7\n")
    assert (trained.drafted, trained.draft_tokens) == (None, 8e8)


@pytest.mark.parametrize("k", ["", ",k"])
def test_vllm_counters_are_no_tree_and_no_chain(tmp_path, k):
    cells = "model,method,num_drafts,num_draft_tokens,num_accepted_tokens,tau"
    row = only(tmp_path, f"{cells}{k}\nT,eagle3,100,300,170,2.7{',3' if k else ''}\n")
    assert (row.steps, row.drafted, row.accepted) == (100, 300, 170)
    assert (row.lookahead, row.tree_nodes) == (3 if k else None, None)


def test_totals_become_means_per_request(tmp_path):
    row = only(tmp_path, "model,method,n_requests,input_tokens,output_tokens,throughput\nT,none,80,8000,16000,55\n")
    assert (row.input_len, row.output_len) == (100.0, 200.0)


def test_source_goes_down_the_column_and_defaults_to_the_file(tmp_path):
    rows, _ = table(tmp_path, "model,k,tau,source\nT,1,1.5,\nT,2,2.0,arXiv:1 Table 2\nT,3,2.2,same\n")
    assert [row.provenance.source for row in rows] == ["t.csv", "arXiv:1 Table 2", "arXiv:1 Table 2"]


def test_shipped_observations_read_and_say_where_they_come_from():
    rows = observations()
    assert len(rows) > 1000
    assert all(row.provenance.source and row.provenance.trust != "own" for row in rows)
    assert len({document(row.provenance.source) for row in rows}) >= 8
    assert len({row.run for row in rows}) == len(rows)


def test_a_shipped_source_is_of_the_world_outside():
    """Named as a stranger can look it up: no word of where its numbers were kept before."""
    words = re.compile(r"\bin store\b|\bstored\b|digest|\bvia \w+\d", re.IGNORECASE)
    told = {f"{row.provenance.source} {row.provenance.note or ''}" for row in observations()}
    assert not [line for line in told if words.search(line)]
    assert words.search("arXiv:2505.07858 via uni042 digest")


def test_units_in_parentheses_are_not_part_of_a_name(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("Target,Concurrency (clients),K,Throughput (tok/s)\nA,2,0,100\n")
    (row,), unread = read_table(path)
    assert (row.concurrency, row.output_tok_s, row.method, unread) == (2, 100.0, "none", [])
