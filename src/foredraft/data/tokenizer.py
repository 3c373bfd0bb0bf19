"""Tokenizers: training a byte-level BPE, loading one, keeping its files beside the tokens it made.

Promises: what is trained here turns any text into ids and back without loss, and loads with transformers'
AutoTokenizer. Refuses to know: what is done with the ids.
"""

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from foredraft import records
from foredraft.data.tokens import TOKENIZER
from foredraft.shapes.gguf import is_gguf
from foredraft.tokenization import of_folder

END, PAD = "<|endoftext|>", "<|pad|>"
BYTES = 256  # a byte-level BPE holds each byte as an id of its own
FILES = (
    TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "vocab.json", "merges.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip
WORD_FILES = (TOKENIZER, "tokenizer.model", "spiece.model", "vocab.json")  # one of which a tokenizer needs
# Turns as plain words; an answer begins after "Assistant:" and ends with the end token.
CHAT = (
    "{%- for message in messages -%}"
    "{%- if not loop.first %}{{ '\\n' }}{% endif -%}"
    "{{ message['role'] | capitalize + ': ' + message['content'] | trim }}"
    "{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif -%}"
)


def train(texts: Iterable[str], vocab_size: int, out: str | Path) -> int:
    """Train a byte-level BPE of at most `vocab_size` ids (end and padding tokens included), save it as the folder
    `out` with the chat template above, and give the ids it has: fewer where the texts have no more pairs to merge.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [END, PAD]
    if vocab_size < BYTES + len(special):
        raise ValueError(f"vocab {vocab_size} must be at least {BYTES + len(special)}: every byte, {END} and {PAD}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    with records.whole_folder(out) as folder:
        tokenizer.train_from_iterator(texts, trainer)
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
        )
        fast.chat_template = CHAT
        fast.save_pretrained(folder)
    return tokenizer.get_vocab_size()


def load(path: str | Path) -> Any:
    """Return the tokenizer in a folder or GGUF file; the network is never asked.

    Raises ValueError where there is none, or where it has no end token; Python that a folder brings is never run.
    """
    tokenizer = _of_gguf(path) if is_gguf(path) else of_folder(path)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{path}: the tokenizer has no eos_token, which ends documents; name one in tokenizer_config.json"
        )
    return tokenizer


def _of_gguf(path: str | Path) -> Any:
    from foredraft.text import tokenizer_of

    return tokenizer_of(path)


def num_ids(tokenizer: Any) -> int:
    """One more than the largest id, which with gaps is more than the number of words."""
    return max(tokenizer.get_vocab().values()) + 1


def twice_begun(ids: Sequence[int], bos_id: int | None) -> bool:
    """Whether ids begin with two beginning tokens: the tokenizer's own before a text that has it already."""
    return bos_id is not None and len(ids) > 1 and ids[0] == ids[1] == bos_id


def keep(tokenizer: Any, path: str | Path, folder: Path, template: str | None = None) -> str:
    """Copy the tokenizer's files at `path` into `folder`, or save it there, with `template`; give the sha256 of its tokenizer.json."""
    copy_files(path, folder)
    if not (folder / TOKENIZER).is_file():
        tokenizer.save_pretrained(folder)
    if template:  # this file goes before what tokenizer_config.json says
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return sha256(folder)


def copy_files(source: str | Path, folder: Path) -> None:
    """The tokenizer's files of `source` into `folder`."""
    for name in FILES:
        if (Path(source) / name).is_file():
            if records.is_lfs(Path(source) / name):
                raise records.lfs_pointer(Path(source) / name)
            shutil.copyfile(Path(source) / name, folder / name)


def vocabulary(folder: str | Path) -> dict[str, int] | None:
    """Words and their ids in a folder's tokenizer.json, or None where there is none that lists them."""
    try:
        tokenizer = records.read_json(Path(folder) / TOKENIZER)
        words = tokenizer["model"]["vocab"]
        ids = dict(words) if isinstance(words, dict) else {entry[0]: i for i, entry in enumerate(words)}
        return ids | {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or ()}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def sha256(folder: str | Path) -> str:
    """Of a folder's tokenizer.json; of a GGUF file, of what `foredraft convert` writes."""
    if is_gguf(folder):
        with TemporaryDirectory() as converted:
            _of_gguf(folder).save_pretrained(converted)
            return sha256(converted)
    path = Path(folder) / TOKENIZER
    if not path.is_file():
        raise ValueError(f"{path}: no such file; save the tokenizer there with save_pretrained of transformers")
    return hashlib.sha256(path.read_bytes()).hexdigest()
