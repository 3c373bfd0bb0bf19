"""An untrained head that begins by passing its target's state on, to train from as a recipe's `init`.

    python recipes/smollm2/begin.py TARGET DATA OUT [--kind eagle|eagle3|dflash|dspark] [--layers L] [--draft-vocab N]
        [--feature-layers 2,15,27] [--rank R] [--block K]

Its fusing layer is the identity on the last of the states that it reads, beside weights a tenth of the usual deviation; an EAGLE-3 head also takes
the target's final norm. DATA: the token folder whose labels choose the draft vocabulary. Of SmolLM2, whose states
are hundreds of times as large in some dimensions as in most, an EAGLE-2 head so begun had a loss of 1.07 and 1.33 at steps 25 and 30 of 1,024 tokens
where one of plain weights had 1.17 and 1.37 on the same windows (one seed; no longer run was compared).

A head of blocks sees the context through its keys and values alone. It gets as many key heads as query heads, so that a value is as wide as a
state, and its first layer looks at the latest tokens: whatever a row holds, query and key are nearly one vector, so that only the distance between
them tells. A DSpark head of one layer so begun agreed with the first token of 0.23 of held-out blocks after 200,192 tokens of answers, one of plain
weights with 0.15 (391 steps of 512 tokens, 7·10^-4; one seed each).
"""

import argparse
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.data.draft_vocab import most_frequent
from foredraft.data.tokens import TokenFolder
from foredraft.models.block_head import BlockHead
from foredraft.models.heads import HEADS, new_head, save_head
from foredraft.models.load import load

SAMPLE, TEXT = 4, 512  # texts, and tokens of each, that a block head's beginning is computed from
SKIPPED = 20  # first tokens of each, whose states are unlike all others
SHARPNESS = 3.0  # of the look back: of 300 tokens the latest has 0.08 of the weight at 1 and 0.75 at 3, counted for 64 wide heads of SmolLM2's rope
RIDGE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description="An untrained head that passes its target's state on; see the file's head."
    )
    parser.add_argument("target", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=tuple(HEADS), default="eagle")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--draft-vocab", type=int, default=8192)
    parser.add_argument("--feature-layers", type=lambda text: tuple(int(layer) for layer in text.split(",")))
    parser.add_argument("--rank", type=int, help="of a DSpark head's correction")
    parser.add_argument("--block", type=int, help="tokens that a block head drafts in a pass")
    given = parser.parse_args()
    target, folder = load(given.target), TokenFolder.open(given.data)
    options = {name: value for name in ("rank", "block") if (value := getattr(given, name)) is not None}
    head: Any = new_head(
        target, given.kind, given.layers, most_frequent(folder, given.draft_vocab), feature_layers=given.feature_layers,
        **options,
    )  # fmt: skip
    if isinstance(head, BlockHead):
        head = with_all_key_heads(head)
        look_back(head, folder)
    else:
        pass_state_on(head)
    save_head(head, given.out)


@torch.no_grad()
def pass_state_on(head: Any) -> None:
    """Set an EAGLE head's fusing layer, and an EAGLE-3 head's norm, so."""
    fuse_as_last_state(head)
    if not head.predicts_hidden_state:
        head.norm.weight.copy_(head.target.norm.weight)


def fuse_as_last_state(head: Any) -> None:
    """Make the fusing layer nearly the identity on the last of the states."""
    width = head.fc.weight.shape[0]
    head.fc.weight.mul_(0.1)[:, -width:].add_(torch.eye(width, device=head.fc.weight.device))


def with_all_key_heads(head: BlockHead) -> BlockHead:
    """A head like this one with a key head for each query head, its weights drawn anew."""
    wider = head.hollow(msgspec.structs.replace(head.shape, num_kv_heads=head.shape.num_heads))
    wider.initialise(seed=0)
    return wider


@torch.no_grad()
def look_back(head: Any, folder: TokenFolder) -> None:
    """Set a block head's first layer so that a row takes over the states of the tokens just before its block.

    Its last norm is the size of what the target's gives, since values are normed as the target norms what its LM head reads.
    """
    width, half = head.shape.hidden_size, head.shape.head_dim // 2
    if len(folder.tokens) < SAMPLE * TEXT or head.shape.num_heads * head.shape.head_dim != width:
        raise SystemExit(
            f"a block head begins from {SAMPLE * TEXT} tokens of data, and where its query heads are together as wide as a state"
        )
    texts = torch.from_numpy(folder.tokens[: SAMPLE * TEXT].astype("int64")).reshape(SAMPLE, TEXT)
    states = torch.cat(head.target(texts, hidden_states=head.feature_layers, logits="none").hidden_states, -1).float()
    fuse_as_last_state(head)
    weight = head.target.norm.weight.float()
    size = F.rms_norm(head.fc(states), (width,), weight)[:, SKIPPED:].square().mean().sqrt()
    head.hidden_norm.weight.copy_(weight / size)
    head.norm.weight.fill_(size)

    layer, counts = head.layers[0], torch.bincount(torch.from_numpy(folder.tokens[:].astype("int64")))
    embedded = layer.input_layernorm(head.embed(torch.arange(head.shape.vocab_size)).float())
    weights = F.pad(counts.float(), (0, head.shape.vocab_size - len(counts)))
    weights[head.mask_token] = weights.sum() / 3
    attention, direction = layer.self_attn, torch.cat((torch.ones(half), torch.zeros(half)))
    contexts = head.combine(states)[:, SKIPPED:].flatten(0, 1)
    for matrix, read in (
        (attention.q_proj.weight, constant(embedded, weights)),
        (attention.k_proj.weight, constant(contexts, torch.ones(len(contexts)))),
    ):
        matrix.mul_(0.5).unflatten(0, (head.shape.num_heads, -1)).add_(direction[:, None] * read)
    attention.q_norm.weight.fill_(SHARPNESS)
    for matrix in (attention.v_proj.weight, attention.o_proj.weight):
        matrix.mul_(0.5).add_(torch.eye(width))


def constant(rows_nC: Tensor, weights_n: Tensor) -> Tensor:
    """The vector whose product with any of the rows is nearly one: least squares, weighted."""
    squares_CC = rows_nC.T @ (weights_n[:, None] * rows_nC)
    ridge_CC = RIDGE * squares_CC.diagonal().mean() * torch.eye(len(squares_CC))
    return torch.linalg.solve(squares_CC + ridge_CC, weights_n @ rows_nC)


if __name__ == "__main__":
    main()
