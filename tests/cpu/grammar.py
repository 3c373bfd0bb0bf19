"""A language small enough to learn in seconds: each token has one likely successor; with a chance it is any other."""

from pathlib import Path

import numpy as np

from foredraft import records
from foredraft.data.tokens import TokenData

VOCAB, DOCUMENT, NOISE = 64, 50, 0.1
CONFIG = {
    "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip


def write_folder(path: Path, tokens: int = 20000, seed: int = 0, noise: float = NOISE) -> Path:
    """A token folder of documents of `DOCUMENT` tokens, each ended by id 0; every eighth token is masked out."""
    rng, successor = np.random.default_rng(seed), np.random.default_rng(7).permutation(VOCAB - 1) + 1
    ids = rng.integers(1, VOCAB, tokens)
    for i in range(1, tokens):
        if rng.random() > noise:
            ids[i] = successor[ids[i - 1] - 1]
    ids[DOCUMENT - 1 :: DOCUMENT] = 0
    mask = np.ones(tokens, dtype="u1")
    mask[::8] = 0
    offsets = np.append(np.arange(0, tokens, DOCUMENT), tokens)
    path.mkdir(parents=True)
    ids.astype("<u2").tofile(path / "tokens.bin")
    mask.tofile(path / "mask.bin")
    offsets.astype("<i8").tofile(path / "documents.bin")
    data = TokenData(
        version=1, vocab_size=VOCAB, eos_id=0, tokenizer_sha256="none", dtype="uint16", num_tokens=tokens,
        num_documents=len(offsets) - 1, raw_tokens=tokens, regenerated_tokens=0, predicted_tokens=int(mask.sum()),
        sources=(),
    )  # fmt: skip
    records.write(path / "data.json", data)
    return path
