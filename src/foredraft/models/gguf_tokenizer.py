"""The tokenizer in a GGUF file's metadata, as a transformers tokenizer.

Promises: ids are those of the model's original tokenizer as far as the file tells it: words, merges, how text is cut before they apply,
tokens matched whole, the beginning token, the chat template. What cannot be known to be right is an error. Refuses to know: weights.

Two sorts are read: byte-level BPE ("gpt2") and SentencePiece BPE ("llama"), whose merges follow from the words' scores.
"""

from pathlib import Path
from typing import Any, NamedTuple

from foredraft.records import with_hint
from foredraft.shapes.gguf import GgufFile

_CONTROL, _USER_DEFINED = 3, 4  # types of tokens that are matched whole; 1 normal, 2 unknown, 5 unused, 6 a byte
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _Cut(NamedTuple):
    """How text is cut before merges apply: by a pattern, None for GPT-2's. `digits`: each by itself, first. `whole`: a piece that is a
    word is not merged together (tokenizers' `ignore_merges`). `bos`: texts begin with it where the file is silent. `nfc`: normalised first.
    """

    pattern: str | None = None
    digits: bool = False
    whole: bool = False
    bos: bool = False
    nfc: bool = False


# By `tokenizer.ggml.pre`; sources: tokenizer.json of Llama 3, Qwen2, Mistral Nemo, SmolLM2 and StarCoder, and llama.cpp's src/llama-vocab.cpp.
CUTS = (
    dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _Cut(_LLAMA3, whole=True, bos=True))
    | dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _Cut(_QWEN2, nfc=True))
    | {"tekken": _Cut(_TEKKEN, whole=True, bos=True), "gpt-2": _Cut()}
    | dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), _Cut(digits=True))
)  # fmt: skip


def gguf_tokenizer(path: str | Path) -> Any:
    """The tokenizer of the file at `path`, a `PreTrainedTokenizerFast`. Raises ValueError, one line, where the file does not hold it."""
    from transformers import PreTrainedTokenizerFast

    file = GgufFile(path)
    tokens = file.entries("tokenizer.ggml.tokens")
    if not tokens:
        raise file.fail("holds no tokenizer (tokenizer.ggml.tokens); convert the model to GGUF again")
    kind = file.need("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise _unknown(file, f"its tokenizer is of the sort {kind!r} (have {', '.join(builders)})")
    backend, bos_default = builders[kind](file, tokens)
    ids = {name: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL.items()}
    special = {name: tokens[token] for name, token in ids.items() if token is not None and token < len(tokens)}
    _match_whole(backend, file, tokens, set(special.values()))
    _frame(backend, file, special, bos_default)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    tokenizer.bos_token, tokenizer.eos_token = special.get("bos_token"), special.get("eos_token")
    template = file.metadata.get("tokenizer.chat_template")
    if template:
        tokenizer.chat_template = template
    return tokenizer


_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def _unknown(file: GgufFile, problem: str) -> ValueError:
    error = file.fail(f"{problem}; give the original's tokenizer")
    return with_hint(
        error, f"foredraft convert {file.path} OUT/ --tokenizer DIR, a folder with the original's tokenizer.json"
    )


def _byte_level(file: GgufFile, tokens: list[str]) -> tuple[Any, bool]:
    """The backend of a byte-level BPE, and whether texts begin with the beginning token where the file is silent."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    name = file.metadata.get("tokenizer.ggml.pre")
    if name in (None, "default"):  # files of before April 2024 do not say
        name = {"qwen2": "qwen2", "qwen3": "qwen2"}.get(file.architecture, name)
    if name not in CUTS:
        raise _unknown(
            file, f"how its tokenizer cuts text is not known: tokenizer.ggml.pre {name!r} (have {', '.join(CUTS)})"
        )
    cut = CUTS[name]
    merges = _merges(file)
    backend = _bpe(file, _byte_words(file, tokens), merges, ignore_merges=cut.whole, fuse_unk=False)
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut.digits else []
    if cut.pattern:
        steps.append(pre_tokenizers.Split(Regex(cut.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.pattern is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    if cut.nfc:
        backend.normalizer = normalizers.NFC()
    return backend, cut.bos


def _bpe(file: GgufFile, words: dict[str, int], merges: list[tuple[str, str]], **rules: Any) -> Any:
    """The backend of words and merges. Raises ValueError where a merge makes no word."""
    from tokenizers import Tokenizer, models

    try:
        return Tokenizer(models.BPE(vocab=words, merges=merges, **rules))
    except Exception as error:  # tokenizers raises no narrower one
        raise file.fail(f"its merges do not fit its words ({error}); convert the model to GGUF again") from None


def _byte_words(file: GgufFile, tokens: list[str]) -> dict[str, int]:
    """Words with their ids, those that merges make in the spelling of bytes, those that are matched whole as they stand."""
    letters = _byte_letters()
    alphabet, types = set(letters.values()), file.entries("tokenizer.ggml.token_type") or [1] * len(tokens)
    return {
        token
        if kind in (_CONTROL, _USER_DEFINED) or set(token) <= alphabet
        else "".join(letters[byte] for byte in token.encode()): i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
    }


def _byte_letters() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable ones of Latin-1 stand for themselves, the others for letters from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _sentencepiece(file: GgufFile, tokens: list[str]) -> tuple[Any, bool]:
    """The backend of a SentencePiece BPE, as transformers' LlamaTokenizer builds it; texts begin with the beginning token."""
    from tokenizers import decoders, pre_tokenizers

    words = {token: i for i, token in enumerate(tokens)}
    merges = _merges(file) or _merges_of(file, tokens, words)
    backend = _bpe(file, words, merges, fuse_unk=True, byte_fallback=True)
    prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if prefix else "never", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(content=" ", left=1)] if prefix else [])])
    return backend, True


def _merges(file: GgufFile) -> list[tuple[str, str]]:
    """The merges that the file lists, the first to apply first."""
    pairs = (merge.partition(" ") for merge in file.entries("tokenizer.ggml.merges"))
    return [(left, right) for left, _, right in pairs]


def _merges_of(file: GgufFile, tokens: list[str], words: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to put a word together out of two others, the words of the highest score first, as transformers orders them."""
    scores = file.entries("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise file.fail("holds neither merges nor scores of its words; convert the model to GGUF again")
    merges = []
    for token, score in zip(tokens, scores, strict=True):
        halves = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs = sorted(
            (pair for pair in halves if pair[0] in words and pair[1] in words),
            key=lambda pair: (words[pair[0]], words[pair[1]]),
        )
        merges += [(score, pair) for pair in pairs]
    merges.sort(key=lambda merge: (merge[0], len(merge[1][0]), len(merge[1][1])), reverse=True)
    return [pair for _, pair in merges]


def _match_whole(backend: Any, file: GgufFile, tokens: list[str], special: set[str]) -> None:
    """Control tokens are special, the user's own are not; texts are not normalised for either."""
    from tokenizers import AddedToken

    types = file.entries("tokenizer.ggml.token_type") or [1] * len(tokens)
    named = [(token, kind == _CONTROL or token in special) for token, kind in zip(tokens, types, strict=True)
             if kind in (_CONTROL, _USER_DEFINED) or token in special]  # fmt: skip
    backend.add_tokens([AddedToken(token, normalized=False, special=control) for token, control in named])


def _frame(backend: Any, file: GgufFile, special: dict[str, str], bos_default: bool) -> None:
    """Beginning and end tokens around each text, as the file asks for."""
    from tokenizers import processors

    bos = special.get("bos_token") if file.metadata.get("tokenizer.ggml.add_bos_token", bos_default) else None
    eos = special.get("eos_token") if file.metadata.get("tokenizer.ggml.add_eos_token", False) else None
    if bos is None and eos is None:
        return
    single = [*([f"{bos}:0"] if bos else []), "$A:0", *([f"{eos}:0"] if eos else [])]
    pair = [*single, *(part.replace(":0", ":1").replace("$A", "$B") for part in single)]
    framed = [(token, backend.token_to_id(token)) for token in dict.fromkeys((bos, eos)) if token]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=framed)
