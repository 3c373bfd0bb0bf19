"""Public draft heads, and public models by the name of their shape, with their ids on the Hugging Face Hub.

Promises: an id stands with where it was read. Refuses to know: how well a head drafts (`observations`), which of them is worth weighing.
"""

import difflib
import re
from functools import cache
from importlib.resources import files

import msgspec

from foredraft import kinds, shapes
from foredraft.kinds import Kind
from foredraft.records import Record, require
from foredraft.shapes import Shape


class PublicHead(Record, frozen=True):
    """A head that can be downloaded. `id`: on the Hub; `target`: whose hidden states it reads; `kind`: by the name of a `Kind`.

    What its source does not say is None: `num_layers`, `params`, `block` (tokens that a pass drafts), `context` (tokens that it is made
    or advised for), `licence`. `derived`: its target was trained on from a public model of the same shape, whose head it is not.
    `measured_as`: what measurements call it, where not by its id.
    """

    id: str
    target: str
    kind: str
    source: str
    num_layers: int | None = None
    params: float | None = None
    block: int | None = None
    context: int | None = None
    licence: str | None = None
    derived: bool = False
    measured_as: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        require(self, positive=("num_layers", "params", "block", "context"))
        kinds.of_name(self.kind)

    @property
    def of_kind(self) -> Kind:
        return kinds.of_name(self.kind)

    def is_for(self, target: Shape) -> bool:
        """Whether `target` is the model that it was made for, by name; date codes of a release are not told apart."""
        if _bare(self.target) == _bare(target.name):
            return True
        known = _known(target.name)
        return not self.derived and known is not None and known == _known(self.target)

    def shape(self, target: Shape) -> Shape:
        """Its shape beside its target, in its own name. Raises ValueError where its kind has none."""
        shape = self.of_kind.shape(target, self.num_layers)
        fields: dict = {"name": self.id}
        if self.block and shape.head and shape.head.block:
            fields["head"] = msgspec.structs.replace(shape.head, block=self.block)
        if self.context:
            fields["max_position_embeddings"] = self.context
        return msgspec.structs.replace(shape, **fields)


class _Table(Record, frozen=True):
    heads: tuple[PublicHead, ...]
    models: dict[str, str]


@cache
def _table() -> _Table:
    return msgspec.json.decode((files("foredraft.published") / "heads.json").read_bytes(), type=_Table)


def public_heads() -> tuple[PublicHead, ...]:
    """Every head that ships as a fact with the package."""
    return _table().heads


def heads_for(target: Shape) -> list[PublicHead]:
    """The public heads that were made for `target`."""
    return [head for head in public_heads() if head.is_for(target)]


def head_named(name: str) -> PublicHead | None:
    """The public head of that id, with or without its organisation, in whatever case; None where there is none.

    Raises ValueError where several organisations have one of that name.
    """
    key = name.strip().rstrip("/").lower()
    alike = [head for head in public_heads() if key in (head.id.lower(), head.id.rsplit("/", 1)[-1].lower())]
    if len(alike) > 1:
        raise ValueError(f"{name} could be {' or '.join(head.id for head in alike)}: give the whole id")
    return alike[0] if alike else None


def nearest_heads(name: str) -> list[str]:
    """The ids most like `name`."""
    ids = {head.id.rsplit("/", 1)[-1].lower(): head.id for head in public_heads()}
    near = difflib.get_close_matches(name.rsplit("/", 1)[-1].lower(), ids, n=3, cutoff=0.6)
    return [ids[key] for key in near]


def model_id(shape: Shape) -> str | None:
    """The id of the public model of that shape's name; None where it is not known."""
    return _table().models.get(shape.name)


@cache
def _known(name: str) -> str | None:
    """The name of the shape of a public model; None of one that is not known."""
    return shapes.shape(name).name if shapes.known_name(name) else None


@cache
def _bare(name: str) -> str:
    """A model's name without its organisation and its chat stage."""
    words = re.split(r"[^a-z0-9.]+", name.rsplit("/", 1)[-1].lower())
    return "-".join(word for word in words if word not in ("instruct", "chat", "it", "hf", "meta"))
