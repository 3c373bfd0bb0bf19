"""Whether a folder or GGUF file can be a model's, told at a glance.

Promises: what is missing is one line, in a moment. Refuses to know: tensors, tokenizers, the network.
"""

from pathlib import Path
from typing import Any

from foredraft.records import is_lfs, lfs_pointer, read_json, with_hint
from foredraft.shapes.absent import download, is_hub_id, missing_weights, no_config, no_files, no_folder
from foredraft.shapes.config import folder_name, from_config, read_config
from foredraft.shapes.counts import Shape
from foredraft.shapes.families import runnable
from foredraft.shapes.gguf import GgufFile, is_gguf
from foredraft.shapes.quantised import in_few_bits

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def check_folder(path: str | Path, *, weights: bool = True, tokenizer: bool = False, gguf: bool = True) -> None:
    """Raise ValueError unless `path` is a folder with a config.json that reads, and with weights and a tokenizer where asked for, or a
    GGUF file, which holds all of these, where `gguf` allows one.
    """
    folder = Path(path)
    if is_gguf(path):
        read_config(path)
        if gguf:
            return
        error = ValueError(
            f"{path}: a GGUF file, where a Hugging Face folder is needed, whose files engines load; convert it"
        )
        raise with_hint(error, f"foredraft convert {path} OUT/, then give OUT/")
    if not folder.is_dir():
        raise no_folder(str(path), folder)
    if problem := no_files(folder):
        raise problem
    read_config(folder)
    if weights and (problem := missing_weights(folder)):
        raise problem
    if tokenizer:
        check_tokenizer(folder)


def config_file(path: str | Path) -> Path:
    """Where the config of a folder or of a GGUF file stands."""
    return Path(path) if is_gguf(path) else Path(path) / "config.json"


def decodable(keys: dict[str, Any], path: str | Path) -> Shape:
    """The shape of a model that our decoder runs, of the keys that were read from its config, unfolded. Raises ValueError, one line that names
    the file, on any other.
    """
    file = config_file(path)
    if (how := keys.get("quantization_config")) and not in_few_bits(how):
        raise ValueError(
            f"{file}: quantization_config: quantised weights are not supported, but for eight bits a scale a "
            "row and four a scale a group (compressed-tensors, int-quantized and pack-quantized); give the original checkpoint"
        )
    shape = from_config(keys, folder_name(path), where=str(file))
    try:
        if "hidden_size" not in keys:
            raise ValueError("text_config: multimodal models are not supported")
        runnable(shape.family)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return shape


SAME_IDS = 0.99  # share of the ids that both have which must stand for one word: some special tokens go by other names


def check_same_tokenizer(target: str | Path, draft: str | Path) -> None:
    """Raise ValueError where the tokenizer of a draft's folder gives the ids of its target's to other words; nothing is said of folders that
    have none, or list no words.
    """
    if other := other_words(target, draft):
        error = ValueError(f"draft {draft}: its tokenizer is not the target's: {other} are other words")
        raise with_hint(error, "use a draft made for this target; a copied tokenizer.json would not mend it")


def other_words(target: str | Path, folder: str | Path) -> str | None:
    """How many ids mean other words in a folder than in its target's, "20 of 300 ids"; None where these are as good as none, or either of the
    two lists no words.
    """
    files = [Path(path) / TOKENIZER_FILES[0] for path in (target, folder)]
    if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return None
    theirs, ours = map(words_by_id, (target, folder))
    shared = (theirs or {}).keys() & (ours or {}).keys()
    if theirs is None or ours is None or (same := sum(theirs[i] == ours[i] for i in shared)) >= SAME_IDS * len(shared):
        return None
    return f"{len(shared) - same:,} of {len(shared):,} ids"


def words_by_id(path: str | Path) -> dict[int, str] | None:
    """The words of a folder's tokenizer.json, or of its vocab.json where it has none, or of a GGUF file; None where none are listed."""
    if is_gguf(path):
        return dict(enumerate(GgufFile(path).entries("tokenizer.ggml.tokens"))) or None
    if (file := Path(path) / TOKENIZER_FILES[0]).is_file():
        return vocabulary_in(file)
    file = Path(path) / "vocab.json"
    words = read_json(file) if file.is_file() else None
    return {i: word for word, i in words.items()} if isinstance(words, dict) else None


def vocabulary_in(file: Path) -> dict[int, str] | None:
    """The words of a tokenizer.json by their ids; None where it lists none. Raises ValueError where it is no JSON."""
    try:
        document = read_json(file)
        words = document["model"]["vocab"]
        by_id = (
            {i: word for word, i in words.items()}
            if isinstance(words, dict)
            else dict(enumerate(word for word, *_ in words))
        )
        return by_id | {token["id"]: token["content"] for token in document.get("added_tokens") or ()}
    except (KeyError, TypeError, AttributeError):
        return None


def check_tokenizer(folder: Path) -> None:
    """Raise ValueError unless a folder holds a tokenizer's files."""
    if not folder.is_dir():
        what = "it is a file" if folder.is_file() else "no such folder"
        error = ValueError(f"{folder}: no tokenizer ({what}); give a folder with {TOKENIZER_FILES[0]}")
        name = str(folder) if is_hub_id(str(folder)) else "OWNER/NAME"
        raise with_hint(
            error, f"for a model on the Hub: {download(name, 'tokenizer*', 'chat_template*', '*config.json')}"
        )
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if pointer := next((file for file in files if is_lfs(file)), None):
        raise lfs_pointer(pointer)
    if not files:
        cause = no_config(folder / "config.json") if not (folder / "config.json").is_file() else None
        if cause and getattr(cause, "__notes__", None):  # the model lies elsewhere, and the tokenizer with it
            raise cause
        error = ValueError(
            f"{folder}: no tokenizer (has none of {', '.join(TOKENIZER_FILES)}); copy tokenizer.json beside config.json"
        )
        raise with_hint(error, "save the tokenizer into the model's folder")
