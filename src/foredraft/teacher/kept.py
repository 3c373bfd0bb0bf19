"""What a target said of texts, kept on disk, so that the next draft is measured without asking it again.

Promises: everything is found by what it is of (the target's weights and type, the texts, the settings), so that nothing serves
another's question; a file appears whole or not at all. Refuses to know: drafts.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from foredraft.data.tokens import Batch
from foredraft.decode.batch import Request
from foredraft.measure.bootstrap import Array
from foredraft.models.decoder import Decoder
from foredraft.records import write_bytes
from foredraft.teacher.feature_cache import digests, fingerprint
from foredraft.teacher.features import Features, FeatureSource, Online
from foredraft.teacher.teacher import Text

Named = dict[str, Tensor]


class Kept:
    """Of one target, below `folder`; without one nothing is kept and everything is asked."""

    def __init__(self, target: Decoder, folder: str | Path | None = None) -> None:
        self.target, self.folder = target, None if folder is None else Path(folder)
        self._of = f"{fingerprint(target)} {target.dtype}"

    def answers(self, requests: list[Request], make: Callable[[list[Request]], list[list[int]]]) -> list[list[int]]:
        """The target's own answers to requests, tokens of each."""
        about = [(one.prompt, one.max_tokens, sorted(one.stop_ids), one.sampling) for one in requests]

        def made() -> Named:
            found = make(requests)
            flat = torch.tensor([token for answer in found for token in answer], dtype=torch.int64)
            return {"tokens": flat, "lengths": torch.tensor([len(answer) for answer in found])}

        held = self._through("answers", repr(about).encode(), made)
        return [part.tolist() for part in held["tokens"].split(held["lengths"].tolist())]

    def costs(self, texts: Sequence[Text], make: Callable[[Sequence[Text]], Array]) -> Array:
        """Nats and tokens of each text, [D, 2]."""
        about = repr([(list(map(int, tokens)), list(map(bool, mask))) for tokens, mask in texts]).encode()
        return self._through("costs", about, lambda: {"costs": torch.from_numpy(make(texts))})["costs"].numpy()

    def features(self, streams: tuple[int, ...] | None = None) -> FeatureSource:
        """Of these streams and the final state, or of the final state alone; a file per batch."""
        alone = (self.target.shape.num_layers,)
        online = Online(self.target, streams := streams or alone)

        def source(batch: Batch) -> Features:
            def made() -> Named:
                found = online(batch)
                return {"final": found.final_BTW} | ({} if streams == alone else {"streams": found.streams_BTF})

            held = self._through("states", repr(streams).encode() + b"".join(digests(batch)), made)
            final = held["final"].to(batch.tokens_BT.device)
            return Features(held["streams"].to(final.device) if "streams" in held else final, final)

        return source

    def _through(self, kind: str, about: bytes, make: Callable[[], Named]) -> Named:
        if self.folder is None:
            return make()
        path = self.folder / f"{kind}-{sha256(self._of.encode() + about).hexdigest()[:32]}.safetensors"
        if not path.is_file():
            made = make()
            write_bytes(path, save({name: tensor.cpu().contiguous() for name, tensor in made.items()}))
            return made
        try:
            return load(path.read_bytes())
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged ({error}); delete it, and it is made again") from None
