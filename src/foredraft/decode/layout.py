"""Where the nodes of a proposal stand in the target's pass: their positions, their cache slots, and what each sees.

Promises: a node sees its text, its ancestors and itself, whatever else is in the batch. Refuses to know: models, and
what becomes of the nodes.

Shapes: B sequences, N nodes with the root, S slots read.
"""

import numpy as np
import torch
from torch import Tensor

from foredraft.decode.proposals import Proposal
from foredraft.decode.verify import depths
from foredraft.models.forward import causal_mask


def lay_out(proposal: Proposal, cached: list[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Positions [B, N], slots [B, N] and mask [B, N, S] of root and nodes; `cached` slots of each sequence are filled."""
    num = proposal.tokens.shape[1] + 1
    width = max(cached) + num
    base_B1 = torch.tensor(cached, device=device)[:, None]
    slots_BN = base_B1 + torch.arange(num, device=device)
    if proposal.chain:
        return slots_BN, slots_BN, causal_mask(slots_BN, width)
    sees_BNN = ancestors(proposal.parents).to(device)
    mask_BNS = (torch.arange(width, device=device) < base_B1)[:, None].repeat(1, num, 1)
    mask_BNS.scatter_(2, slots_BN[:, None].expand(sees_BNN.shape), sees_BNN)
    levels = torch.tensor([depths(row) for row in proposal.parents], device=device)
    return base_B1 + levels, slots_BN, mask_BNS


def ancestors(parents: list[list[int]]) -> Tensor:
    """Which nodes each node sees, root and itself included, [B, N, N] bool; padding sees the root and itself."""
    up_BW = np.array(parents, dtype=int).reshape(len(parents), -1).clip(min=-1) + 1
    batch, width = up_BW.shape
    sees = np.tile(np.eye(width + 1, dtype=np.float32), (batch, 1, 1))
    sees[np.arange(batch)[:, None], np.arange(1, width + 1), up_BW] = 1
    reach = 1
    while reach < width:  # each squaring doubles how far up a node sees
        sees, reach = np.minimum(sees @ sees, 1), 2 * reach
    return torch.from_numpy(sees > 0)
