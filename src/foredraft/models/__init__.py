"""Transformers as the engine and the trainer need them: a decoder for the public families, draft heads, their files.

Promises: logits and hidden states equal transformers' for every family it loads, and what it cannot load is a one-line
error. Refuses to know: sampling, scheduling, losses, tokenizers.

Shape letters, the suffixes of tensor names in this room:

    B batch          T tokens of this pass     S cache slots       V vocabulary (a draft head's: its own)
    C hidden size    N query heads             K key/value heads   D head_dim
    F width of the target features a head reads                    R rows picked out of T
"""

from foredraft.models.cache import KVCache
from foredraft.models.decoder import Decoder
from foredraft.models.forward import Output
from foredraft.models.heads import load_head, new_head, save_head
from foredraft.models.load import load

__all__ = ["Decoder", "KVCache", "Output", "load", "load_head", "new_head", "save_head"]
