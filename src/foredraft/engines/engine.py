"""What the other rooms ask of a serving engine: costs, a plan's settings, launch, loader rules, counters of its server.

A new engine is a file with a subclass of `ServingEngine` that overrides what it has, and a line in `ENGINES`. Refuses to know: torch,
how a schedule is found, how folders are written or servers asked.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from foredraft.engines.counters import RequestCounts, Totals
from foredraft.engines.loading import Fault, HeadFolder, HeadLoader
from foredraft.kinds import USUAL_HEAD, Kind
from foredraft.laws.passes import Efficiency
from foredraft.laws.stated import Accepted
from foredraft.records import DraftChoice, Machine, Plan, ScheduleStep
from foredraft.shapes import Shape

PLACEHOLDER = "path/to/draft"
STATED = ("bfloat16", "float16", "float32")  # dtypes of a plan that are also an engine's --dtype


class Simulation(NamedTuple):
    """Launch settings under which a server accepts as asked, and the variables of its environment."""

    settings: dict[str, Any]
    variables: dict[str, str]


class Adaptive(NamedTuple):
    """A length that follows the draft's confidence: what the engine calls it, whether it is one for each "sequence" (of verified tokens:
    all are drafted) or for the "batch", what it needs, and whether it `stops` drafting too; then it is a sequence's own in passes of up to
    `packed` tokens on a CPU, and elsewhere the batch's by the confidence of all, a pass being as long for each as for the longest.
    """

    setting: str
    by: str
    needs: str = ""
    stops: bool = False
    packed: int = 0


class SettingVersion(NamedTuple):
    """The first version of an engine in which a setting was seen, or the pull request that brought it, and where that is told."""

    setting: str
    version: str
    source: str


class ServerMetrics(NamedTuple):
    """Expressions over a server's page of metrics, in Prometheus' language, each over `{window}` where it is a rate: tokens per step, requests
    running and waiting, generated tokens per second, and steps per second that drafted ("" where none tells). `needs`: what switches the page on.
    """

    tokens_per_step: str
    running: str
    waiting: str
    tokens: str
    drafts: str = ""
    needs: str = ""


class ServingEngine:
    """One serving engine. `name`: as options, records and `Kind.engine_names` write it; `label`: as people do."""

    name: ClassVar[str]
    label: ClassVar[str]

    # Planning. `trees`: trees are weighed for it; `looks_up`: it runs a look-up before a draft, in settings that a plan can give;
    # `one_mode`: one lookahead for every load; `idle_draft`: at a schedule's 0 the draft's pass is made all the same; `maps_vocabularies`: it
    # runs draft models of another vocabulary, on the tokens that both have; `note`: what a plan for it assumes.
    trees: ClassVar[bool] = False
    looks_up: ClassVar[bool] = False
    one_mode: ClassVar[bool] = False
    idle_draft: ClassVar[bool] = False
    maps_vocabularies: ClassVar[bool] = False
    note: ClassVar[str | None] = None

    def efficiency(self, machine: Machine | None = None, dtype: str = "bfloat16") -> Efficiency:
        """What it reaches of the machine's peaks on weights stored in `dtype`, and its fixed costs."""
        return Efficiency()

    def draft_dtype(self, draft: Shape, dtype: str) -> str:
        """The type that it computes a draft in beside a target in `dtype`."""
        return dtype

    def adaptive(self, kind: Kind) -> Adaptive | None:
        """Its lengths that follow the confidence of a draft of `kind`, of chains; None where it has none."""
        return None

    def with_adaptive(self, settings: Mapping[str, Any], kind: Kind) -> dict[str, Any] | None:
        """Launch `settings` with such lengths switched on; None where settings alone do not."""
        return None

    def own_rates(self, machine: Machine) -> bool:
        """Whether the machine's record holds what this engine itself reaches there, with nothing else measured behind its costs."""
        return False

    # Kinds, by name, that it runs with a draft vocabulary of their own.
    draft_vocabularies: ClassVar[frozenset[str]] = frozenset({USUAL_HEAD.name})

    # A plan's settings. `plan_file`: what `plan --out` calls them; "" of an engine that takes none.
    plan_file: ClassVar[str] = ""

    def settings(self, draft: DraftChoice | None, schedule: Sequence[ScheduleStep], tensor: int) -> dict[str, Any]:
        """A schedule in the engine's own words, on groups of `tensor` devices; {} where nothing is to be speculated."""
        return {}

    # Deploying. `formats`: forms of a draft's folder that it serves, and their labels; `launch_file`: its settings there.
    # `token_map_flag`: names the file of the target's ids that an EAGLE-1/2 head may draft, "" of an engine that cuts no LM head for one.
    formats: ClassVar[Mapping[str, str]] = {}
    launch_file: ClassVar[str] = ""
    token_map_flag: ClassVar[str] = ""

    def chain(self, lookahead: int) -> dict[str, Any]:
        """Settings of a chain of `lookahead` tokens at every load."""
        raise NotImplementedError

    def launched(self, settings: Mapping[str, Any], kind: Kind, folder: str) -> dict[str, Any]:
        """`settings` for a draft of `kind` in `folder`."""
        raise NotImplementedError

    def lookahead(self, settings: Mapping[str, Any]) -> int:
        """The most tokens drafted in a step under `settings`."""
        raise NotImplementedError

    def serving_note(self, kind: Kind, settings: Mapping[str, Any], plan: Plan) -> str:
        """A card's last line on a planned schedule."""
        raise NotImplementedError

    def script(self, target: str, path: str, settings: Mapping[str, Any], plan: Plan | None) -> str:
        """The shell script that starts the server; `target`: the target's name, `path`: where it lies."""
        raise NotImplementedError

    def command(self, plan: Plan, target: str, draft: str | None) -> str:
        """The command line that serves `target` as `plan` says, with the draft of that name or in that folder; "" where there is none."""
        return ""

    def simulated(self, settings: Mapping[str, Any], accepted: Accepted) -> Simulation:
        """`settings` under which the engine accepts as asked whatever is drafted, with random weights where it can make them."""
        raise NotImplementedError

    # Running it: its settings' versions, the Python module that starts it, its image and whether that starts it by itself, its Helm chart and
    # where that is told, what to watch of it.
    versions: ClassVar[tuple[SettingVersion, ...]] = ()
    image: ClassVar[str] = ""
    image_starts: ClassVar[bool] = False
    module: ClassVar[str] = ""
    chart: ClassVar[str] = ""
    metrics: ClassVar[ServerMetrics | None] = None

    def by_batch(self, ranges: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
        """Settings that draft by running requests, of [first, last, lookahead]; of an engine of one mode its first that drafts."""
        raise NotImplementedError

    def drafting(self, settings: Mapping[str, Any], kind: Kind | None, method: str, draft: str) -> dict[str, Any]:
        """`settings` with their draft, which lies at `draft`: of a `kind` that it serves, else by the `method` that the user names."""
        raise NotImplementedError

    def arguments(self, target: str, settings: Mapping[str, Any]) -> list[str]:
        """The words of a command line that serve `target` under `settings`; {} without a draft."""
        raise NotImplementedError

    def replayed(self, settings: Mapping[str, Any], proposer: str) -> dict[str, Any]:
        """`settings` with a proposer of our own, a class by its dotted name. Raises ValueError where the engine takes none."""
        raise ValueError(f"--cpu: {self.label} takes no proposer of our own, as vLLM does")

    def ranges(self, settings: Mapping[str, Any]) -> list[list[int]]:
        """[first batch, last batch, lookahead] of settings; one lookahead for every batch is one range."""
        return [[1, 1, self.lookahead(settings)]]

    def settings_faults(self, settings: Mapping[str, Any], kind: Kind) -> Iterator[Fault]:
        """What is wrong with launch settings beside a draft."""
        yield from ()

    # Loading. `heads`: by kind's name; `unjudged`: kinds of head that it serves, whose loader is not known here. `strict`: stops at a tensor
    # it does not know, else skips it in silence; `equal_vocab`: refuses a draft model of another vocabulary size; `bias_key`: what a config's
    # `bias: true` does; `never_null`: keys whose null is a value to it, with what comes of that. `ties_lm_head`: a head's
    # `tie_word_embeddings` puts its embedding in the place of its LM head; `keeps_embedding`: a head's own table is read even where it is as
    # wide as its target's; `counts_entered`: it takes ids of hidden states in `eagle_config` for those of layers entered; `lacks`: switches
    # of an EAGLE-3 head's config that it has no place for.
    heads: ClassVar[Mapping[str, HeadLoader]] = {}
    unjudged: ClassVar[frozenset[str]] = frozenset()
    strict: ClassVar[bool] = False
    equal_vocab: ClassVar[bool] = False
    bias_key: ClassVar[str] = ""
    ties_lm_head: ClassVar[bool] = False
    keeps_embedding: ClassVar[bool] = True
    counts_entered: ClassVar[bool] = True
    lacks: ClassVar[tuple[str, ...]] = ()
    never_null: ClassVar[Mapping[str, str]] = {}

    def loads(self, kind: Kind) -> bool:
        """Whether it has a class for drafts of this kind."""
        return kind.role != "head" or kind.name in self.heads

    def norms_qk(self, kind: Kind) -> bool:
        """Whether it has a class for heads of this kind that norm queries and keys."""
        return kind.name in self.heads and self.heads[kind.name].qk_norm is not None

    def refusal(self, head: HeadFolder) -> Fault | None:
        """Why it reads no tensor of such a folder; None where it does."""
        return None

    def config_faults(self, head: HeadFolder) -> Iterator[Fault]:
        """What this loader alone would misread in a head's config."""
        yield from ()

    def name_faults(self, head: HeadFolder) -> Iterator[Fault]:
        """Names of tensors that this loader, or some of its versions, does not take for what they are."""
        yield from ()

    # Its server. `info_paths`: where it tells its settings, the first that answers; `request_fields`: asked for in requests of the
    # OpenAI API; `native_path`: its own API, which always tells its speculation.
    info_paths: ClassVar[tuple[str, ...]] = ()
    request_fields: ClassVar[Mapping[str, Any]] = {}
    salt_field: ClassVar[str] = "cache_salt"  # whose requests share no prefix cache with those of another value
    native_salt: ClassVar[str] = ""
    native_path: ClassVar[str | None] = None

    def answers(self, info: Mapping[str, Any]) -> bool:
        """Whether what a server tells of itself is this engine's."""
        return False

    def running(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an observation that a server's settings tell; {} where they tell nothing of speculation."""
        return {}

    def totals(self, page: str) -> Totals:
        """The running totals of a Prometheus page."""
        return Totals()

    def request_counts(self, event: Mapping[str, Any]) -> RequestCounts | None:
        """What an event of a stream, or a whole response, says of its request's speculation; None where it says nothing."""
        return None

    def native_body(self, words: str, max_tokens: int, temperature: float, *, stop: bool) -> dict[str, Any]:
        """The JSON of a streamed request to `native_path`."""
        raise NotImplementedError


def lines_of(flags: Sequence[str]) -> str:
    """Flags as further lines of a script."""
    return "".join(f" \\\n  {flag}" for flag in flags)


def dtype_flags(plan: Plan, kv_formats: Mapping[str, str]) -> list[str]:
    """The types of weights and KV cache where a plan states what an engine takes, the cache's in the engine's own words."""
    weights = [f"--dtype {plan.dtype}"] if plan.dtype in STATED else []
    kv_format = kv_formats.get(plan.kv_dtype or "")
    return weights + ([f"--kv-cache-dtype {kv_format}"] if kv_format else [])


def one_line(text: str) -> str:
    """For a comment."""
    return " ".join(text.split())


def quoted(path: str) -> str:
    """For inside double quotes and ${…:-…}."""
    return "".join(f"\\{letter}" if letter in '"$`\\}' else letter for letter in path)
