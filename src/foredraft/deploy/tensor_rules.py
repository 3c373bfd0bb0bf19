"""What a loader would skip, miss or misread among a draft's tensors.

Refuses to know: targets.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from foredraft.deploy.findings import BOTH, Finding, finding
from foredraft.deploy.folder import DraftFolder
from foredraft.engines.engine import ServingEngine
from foredraft.engines.loading import ExpectedTensors, Sizes, TensorShape, head_tensors, lacking, sizes_of
from foredraft.shapes.absent import SINGLE
from foredraft.shapes.families import prefixes
from foredraft.shapes.tensors import FLOATS, layer_of

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
MANY = 64  # layers that a config has beyond the file's: with more, no tensor is compared
SPARE = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")  # that every loader leaves out, and may


def tensor_rules(folder: DraftFolder, engine: ServingEngine) -> Iterator[Finding]:
    """Findings of names, shapes and types; of values too, which reads the whole file."""
    yield from _types(folder)
    if folder.kind.role != "head":
        yield from _model(folder, engine)
    elif not lacking(folder.config) and not folder.config.get("quantization_config"):
        yield from _head(folder, sizes := sizes_of(folder.config), engine)
        if folder.kind.own_lm_head:
            yield from _twins(folder, sizes)
            yield from _map(folder, sizes)
    yield from _finite(folder)


def _types(folder: DraftFolder) -> Iterator[Finding]:
    stated = folder.config.get("torch_dtype") or folder.config.get("dtype")
    kinds, others = {}, dict[str, list[str]]()
    quantised = bool(folder.config.get("quantization_config"))
    for name, stored in folder.checkpoint.stored.items():
        if name.split(".")[-1] in ("d2t", "t2d") or SPARE.search(name) or (quantised and name.endswith("_scale")):
            continue
        if stored.kind not in FLOATS:
            others.setdefault(stored.kind, []).append(name)
        kinds.setdefault(DTYPES.get(stored.kind), name)
    for kind, names in others.items() if not quantised else ():
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        yield Finding(
            code="dtype", where=names[0], effect=f"is {kind}{more}, which loaders cast or refuse", remedy=f"save weights as {', '.join(FLOATS)}",
        )  # fmt: skip
    kinds.pop(None, None)
    if stated and kinds and str(stated).removeprefix("torch.") not in (*kinds, "auto"):
        first = next(iter(kinds))
        yield Finding(
            code="dtype-key", where="torch_dtype", level="warning", effect=f"says {stated}, but the weights are {first}: --dtype auto casts them",
            remedy=f"write {first}",
        )  # fmt: skip
    if len(kinds) > 1:
        yield Finding(
            code="dtype-mixed", where=next(reversed(kinds.values())), level="warning",
            effect=f"weights are of {' and '.join(map(str, kinds))}: the engine casts all to one", remedy="save all in one type",
        )  # fmt: skip


def _model(folder: DraftFolder, engine: ServingEngine) -> Iterator[Finding]:
    """A standalone model against the tensors of its own config, which a decoder names."""
    try:
        import torch

        from foredraft.models.decoder import Decoder
        from foredraft.models.load import read_config, stored_name
    except ImportError:
        yield Finding(
            code="not-judged", where="config.json", level="note", effect="not judged: torch's modules name the tensors of an independent model",
            remedy="pip install 'foredraft[full]'",
        )  # fmt: skip
        return
    try:
        shape, model_config = read_config(folder.path)
        if shape.num_layers > _last(folder) + MANY:
            yield from _layer_count(folder, shape.num_layers)
            return
        if shape.draft_vocab_size:
            yield Finding(
                code="draft-vocab", where="draft_vocab_size", effect=f"is {shape.draft_vocab_size}: engines run a draft model over all its tokens",
                remedy="train one whose recipe leaves draft_vocab out",
            )  # fmt: skip
            return
        with torch.device("meta"):
            decoder = Decoder(shape, model_config)
    except (ValueError, TypeError) as error:
        yield Finding(
            code="config", where="config.json", effect=str(error), remedy="give a config of a supported family"
        )
        return
    places = prefixes(shape.family)
    prefix = next((p for p in places if f"{p}embed_tokens.weight" in folder.names), places[0])
    needed = {stored_name(name, shape, prefix): tuple(p.shape) for name, p in decoder.named_parameters()}
    tied: dict[str, TensorShape] = (
        {"lm_head.weight": (shape.vocab_size, shape.embed_width)} if shape.tie_embeddings else {}
    )
    yield from _compare(folder, ExpectedTensors(needed, tied), engine, shape.num_layers, shape.hidden_size)


def _head(folder: DraftFolder, sizes: Sizes, engine: ServingEngine) -> Iterator[Finding]:
    loader = engine.heads[folder.kind.name]
    prefixed = [name for name in folder.checkpoint.stored if name.startswith("model.")]
    if prefixed and not loader.prefixed:
        yield Finding(
            code="prefix", where=prefixed[0], engine=engine.name,
            effect=f"the loader puts model. before every name and so {'stops at it' if engine.strict else 'skips it in silence'}",
            remedy="save a head's tensors without model.",
        )  # fmt: skip
    for fault in engine.name_faults(folder):
        yield finding(fault, engine.name)
    if sizes.layers > _last(folder) + MANY:
        yield from _layer_count(folder, sizes.layers)
        return
    yield from _compare(
        folder, head_tensors(sizes, folder.kind, loader, folder.config), engine, sizes.layers, sizes.hidden
    )


def _compare(
    folder: DraftFolder, expected: ExpectedTensors, engine: ServingEngine, layers: int, hidden: int
) -> Iterator[Finding]:
    tensors = expected.needed | expected.optional
    judge = engine.name if folder.kind.role == "head" else BOTH
    yield from _layer_count(folder, layers)
    for name in expected.needed:
        if name not in folder.names and layer_of(name) <= _last(folder):  # else of a layer that is missing altogether
            yield _missing(name, folder, engine, judge)
    for name, stored in folder.names.items():
        if name not in tensors and not SPARE.search(name) and not layer_of(name) >= layers:
            yield _unknown(name, stored, folder, engine, judge)
    yield from _shapes(folder, tensors, hidden, judge)


def _last(folder: DraftFolder) -> int:
    """The last layer that the file has anything of; -1 for none."""
    return max(map(layer_of, folder.names), default=-1)


def _layer_count(folder: DraftFolder, layers: int) -> Iterator[Finding]:
    stored = 1 + _last(folder)
    if stored != layers:
        does = (
            "the others run on whatever memory held"
            if stored < layers
            else "the rest stops the loader or is left out in silence"
        )
        yield Finding(
            code="layer-count", where="num_hidden_layers", effect=f"is {layers}, but the file has tensors of {stored} layers: {does}",
            remedy=f"write {stored}, or save all layers",
        )  # fmt: skip


_LACKS = {
    "lm_head.weight": "lm-head", "fc.bias": "fc-bias", "embed_tokens.weight": "embedding", "d2t": "d2t-missing",
    "fc.weight": "fc", "norm.weight": "final-norm",
}  # fmt: skip


def _missing(name: str, folder: DraftFolder, engine: ServingEngine, judge: str) -> Finding:
    """A loader leaves such a parameter as memory held it or as it was initialised; none says so."""
    effect = "is missing: the loader goes on with random values, without a word"
    remedy, code = f"save it under this name into {SINGLE}", _LACKS.get(name, "missing")
    twin = re.fullmatch(r"layers\.([1-9]\d*)\.(input_layernorm|hidden_norm)\.weight", name)
    if code == "fc-bias":
        effect, remedy = (
            f"is missing: {engine.label}'s fc has a bias and keeps a random one",
            "write zeros, or export it by foredraft deploy",
        )
    elif code == "embedding":
        effect = "is missing: the target's table is of another width and cannot be shared"
    elif code == "d2t-missing":
        effect = "is missing: draft ids are taken for target ids, so that nothing is accepted"
        remedy = "save the offsets target id less draft id, int64"
    elif twin and folder.kind.own_lm_head:
        code = "twin-norm"
        effect = f"is missing: {engine.label} norms layer {twin[1]} by this name, and the norm stays at ones"
        remedy = "write input_layernorm and hidden_norm of layers from 1 on, equal"
    elif name.startswith(("fc_norm.", "input_norm.")):
        code = "fc-norm"
    return Finding(code=code, where=name, engine=judge, effect=effect, remedy=remedy)


def _unknown(name: str, stored: str, folder: DraftFolder, engine: ServingEngine, judge: str) -> Finding:
    head, own_lm_head = folder.kind.role == "head", folder.kind.own_lm_head
    who = engine.label if head else "the loader"
    does = f"is unknown: {who} {'stops at it' if engine.strict or not head else 'skips it in silence'}"
    code, remedy, level = "unknown", "rename it as its loader does, or leave it out", "error"
    if name == "fc.bias":
        zero = not bool(folder.checkpoint.array(stored).any())
        code, does = (
            "fc-bias",
            f"is {'zeros' if zero else 'not zero'}: {engine.label}'s fc has no bias and drops it in silence",
        )
        remedy, level = "leave it out (train without one)", "warning" if zero else "error"
    elif name.endswith(".bias"):
        code, remedy = "bias-dropped", "write attention_bias true"
        does = "is dropped in silence: the config gives this layer no bias"
    elif name == "layers.0.input_layernorm.weight" and head and not own_lm_head:
        code, remedy = "layer0-norm", f"leave it out: layer 0 of an {folder.kind.label} head norms nothing"
    elif name == "lm_head.weight" and head and not own_lm_head:
        code, remedy = "lm-head-spare", f"leave it out: an {folder.kind.label} head reads the target's"
        level = "error" if engine.strict else "warning"
    elif name in ("d2t", "t2d") and own_lm_head:
        code, remedy = "d2t-spare", "leave d2t and t2d out of a head over the whole vocabulary"
        does = f"maps nothing in a head over the whole vocabulary, and {engine.label} stops at it"
    elif name in ("d2t", "t2d") and head:
        code, remedy = "d2t-eagle", "export it by foredraft deploy, which leaves it out or writes the engine's own map"
    return Finding(code=code, where=stored, engine=judge, effect=does, remedy=remedy, level=level)


def _shapes(folder: DraftFolder, tensors: Mapping[str, TensorShape], hidden: int, judge: str) -> Iterator[Finding]:
    """Where stored shapes are not the config's. Of a wrong hidden_size, which makes all wrong, only that is told."""
    fc = folder.stored("fc.weight") or folder.stored("norm.weight") or folder.stored("model.norm.weight")
    if fc is not None and fc.shape[0] != hidden:
        yield Finding(
            code="hidden-size", where="hidden_size", engine=judge, effect=f"is {hidden}, but the tensors are {fc.shape[0]} wide: the loader stops",
            remedy=f"write {fc.shape[0]}",
        )  # fmt: skip
        return
    for name, shape in tensors.items():
        stored = folder.stored(name)
        if stored is None or stored.shape == shape:
            continue
        width = sizes_of(folder.config).target_hidden if folder.kind.own_lm_head else 0
        if name == "fc.weight" and width and stored.shape[1:] and stored.shape[1] % width == 0:
            num, built = stored.shape[1] // width, shape[1] // width
            yield Finding(
                code="stream-count", where=folder.names[name], engine=judge,
                effect=f"joins {num} hidden states, but the loader builds it for {built} and stops: it counts num_aux_hidden_states or the ids "
                "of eagle_config",
                remedy=f"write num_aux_hidden_states {num} (into transformer_layer_config, where there is one)",
            )  # fmt: skip
        elif name == "t2d":
            yield Finding(
                code="t2d", where="t2d", level="warning", effect=f"is {list(stored.shape)}, but vocab_size makes it {list(shape)}; engines skip it",
                remedy="make it from d2t",
            )  # fmt: skip
        else:
            code, remedy = _wrong(name)
            yield Finding(
                code=code, where=folder.names[name], engine=judge, remedy=remedy,
                effect=f"is {list(stored.shape)}, but the config makes it {list(shape)}: the loader stops",
            )  # fmt: skip


def _wrong(name: str) -> tuple[str, str]:
    if name in ("lm_head.weight", "d2t"):
        return "draft-vocab", "write draft_vocab_size (and vocab_size) as the tensors have it"
    if name in ("embed_tokens.weight", "t2d") or name.endswith("embed_tokens.weight"):
        return "vocab", "write vocab_size as the target has it"
    if name == "fc.weight":
        return "target-size", "write target_hidden_size and the number of hidden states as fc has them"
    return "shape", "write the sizes of the config as the tensors have them"


def _twins(folder: DraftFolder, sizes: Sizes) -> Iterator[Finding]:
    for i in range(1, sizes.layers):
        pair = [f"layers.{i}.{name}.weight" for name in ("input_layernorm", "hidden_norm")]
        if all(name in folder.names for name in pair):
            first, second = (folder.checkpoint.array(folder.names[name]) for name in pair)
            if not np.array_equal(first, second):
                yield Finding(
                    code="twin-norm-differs", where=folder.names[pair[1]], effect=f"differs from {pair[0]}: engines disagree about which counts",
                    remedy="write the trained norm under both names",
                )  # fmt: skip


def _map(folder: DraftFolder, sizes: Sizes) -> Iterator[Finding]:
    """d2t holds offsets, target id less draft id; t2d marks the same tokens."""
    stored = folder.stored("d2t")
    if stored is None:
        return
    if stored.kind != "I64":
        yield Finding(
            code="d2t-kind", where="d2t", effect=f"is {stored.kind}", remedy="save it as int64",
            level="error" if stored.kind[0] != "I" else "warning",
        )  # fmt: skip
        if stored.kind[0] != "I":
            return
    offsets = folder.checkpoint.array(folder.names["d2t"]).ravel().astype(np.int64)
    ids = offsets + np.arange(len(offsets))
    if len(ids) and (ids.min() < 0 or ids.max() >= sizes.vocab):
        absolute = int(offsets.min()) >= 0 and int(offsets.max()) < sizes.vocab
        remedy = (
            "it seems to hold the ids themselves: subtract the draft's" if absolute else "save target id less draft id"
        )
        yield Finding(
            code="d2t-range", where="d2t", remedy=remedy,
            effect=f"leads to ids {int(ids.min())} to {int(ids.max())} of a vocabulary of {sizes.vocab}",
        )  # fmt: skip
        return
    if len(np.unique(ids)) != len(ids):
        yield Finding(
            code="d2t-twice", where="d2t", effect=f"names {len(ids) - len(np.unique(ids))} tokens twice: of two logits one is lost",
            remedy="name each token once; offsets are target id less draft id",
        )  # fmt: skip
    yield from _mask(folder, ids, sizes)


def _mask(folder: DraftFolder, ids: NDArray[np.int64], sizes: Sizes) -> Iterator[Finding]:
    stored = folder.stored("t2d")
    if stored is None or stored.shape != (sizes.vocab,):
        return
    mask = np.zeros(sizes.vocab, dtype=bool)
    mask[ids] = True
    if not np.array_equal(folder.checkpoint.array(folder.names["t2d"]).astype(bool), mask):
        yield Finding(
            code="t2d", where="t2d", effect="does not mark the tokens of d2t: one of the two is of another vocabulary", remedy="make it from d2t",
        )  # fmt: skip
    if stored.kind != "BOOL":
        yield Finding(
            code="t2d-kind", where="t2d", level="warning",
            effect=f"is {stored.kind}: engines skip it, but whoever picks columns by it takes 0 and 1 for ids",
            remedy="save it as bool",
        )  # fmt: skip


def _finite(folder: DraftFolder) -> Iterator[Finding]:
    for name, stored in folder.checkpoint.stored.items():
        if stored.kind in FLOATS and not bool(np.isfinite(folder.checkpoint.array(name)).all()):
            yield Finding(
                code="not-finite", where=name, effect="holds nan or inf, and every token behind it is lost",
                remedy="export the last good checkpoint; float16 overflows beyond 65504",
            )  # fmt: skip
