"""The light rooms stay light, and rooms know only what they should: checked by running them without torch and by reading imports."""

import ast
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import foredraft
from foredraft import records
from foredraft.data.token_writer import TokenWriter

ROOT = Path(foredraft.__file__).parent

BLOCK = """
import sys

HEAVY = {"torch", "transformers", "matplotlib", "safetensors"}
sys.modules["torch"] = None

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ImportError(f"{name} is heavy")

sys.meta_path.insert(0, Block())
"""
VERBS = """
from foredraft.api import fit, plan
from foredraft.plan.problem import PlanSettings
from foredraft.published import document, observations
from foredraft.records import Workload
from foredraft.validate import validate

rows = observations()
load = Workload(input_len=64, output_len=64, concurrency=(1, 8))
made = plan("Llama-3.1-8B", "H100", load, PlanSettings(draws=8))
fits, _ = fit(rows, draws=8)
found = validate([row for row in rows if "inferencex" in document(row.provenance.source)])
assert made.schedule and fits and found.curves
assert not {name for name in sys.modules if name.split(".")[0] in HEAVY and sys.modules[name]}
print("light")
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


def test_plan_fit_and_validate_run_where_heavy_packages_cannot_be_imported():
    done = run(BLOCK + VERBS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "light\n"


@pytest.mark.parametrize("name", ["torch", "torch.nn", "transformers", "matplotlib.pyplot"])
def test_the_block_blocks(name):
    """Negative control: there an import of any of them fails."""
    done = run(BLOCK + f"import {name}")
    assert done.returncode != 0
    assert "ImportError" in done.stderr or "ModuleNotFoundError" in done.stderr


def test_a_bare_import_of_every_light_room_loads_nothing_heavy():
    light = [
        "records",
        "shapes",
        "machines",
        "published.tables",
        "laws.fit",
        "plan.plan",
        "validate",
        "data.prepare",
        "data.regenerate",
        "cli",
    ]
    code = "import sys, " + ", ".join(f"foredraft.{name}" for name in light)
    done = run(code + "\nprint([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


# The import DAG. A room is a folder or file of the package; every import counts, inside functions too.

# room -> the rooms it may import besides itself; a dotted name allows that module alone.
MAY = {
    "__init__": set(),
    "records": set(),
    "hardware": set(),
    "recipe": {"records"},
    "runs": {"records", "recipe"},
    "shapes": {"records"},
    "machines": {"records", "shapes"},
    "draft_words": set(),
    "feature_layers": set(),
    "kinds": {"records", "shapes", "draft_words"},
    "published": {"records", "shapes", "kinds", "engines"},
    "laws": {"records", "shapes", "machines", "kinds"},
    "engines": {"records", "shapes", "machines", "kinds", "laws"},
    "plan": {"records", "shapes", "machines", "published", "kinds", "laws", "engines"},
    "validate": {
        "records",
        "shapes",
        "machines",
        "published",
        "kinds",
        "laws",
        "engines",
        "plan.evidence",
        "plan.cells",
        "plan.levels",
        "plan.served",
    },
    "report": {"records", "shapes", "machines", "published", "kinds", "laws", "validate", "plan.sdsl"},
    "page": {"records", "shapes", "machines", "published", "kinds", "laws.conditions", "engines", "plan", "report"},
    "models": {"records", "hardware", "shapes", "kinds", "feature_layers"},
    "decode": {"records", "shapes", "kinds", "models"},
    "tokenization": {"records", "shapes", "template_limits"},
    "template_limits": set(),
    "text": {"records", "shapes", "kinds", "models", "decode", "tokenization"},
    "data": {"records", "shapes", "text", "decode", "tokenization", "published.opened"},
    "serving": {"records", "runs", "shapes", "kinds", "engines", "data.prompts", "data.sources"},
    "calibrate": {"records", "shapes", "kinds", "laws", "engines", "serving", "data.prompts"},
    "teacher": {"records", "shapes", "kinds", "models", "decode", "data"},
    "train": {
        "records",
        "recipe",
        "runs",
        "hardware",
        "shapes",
        "kinds",
        "feature_layers",
        "models",
        "decode",
        "data",
        "teacher",
    },
    "measure": {
        "records",
        "runs",
        "serving",
        "hardware",
        "shapes",
        "kinds",
        "engines",
        "models",
        "decode",
        "text",
        "data",
        "teacher",
    },
    "deploy": {
        "records",
        "runs",
        "shapes",
        "kinds",
        "laws.acceptance",
        "laws.stated",
        "engines",
        "models",
        "data.tokenizer",
    },
    "sweep": {"records", "recipe", "kinds"},
    "packaged": {"records"},
    "tour_outcome": {"records", "runs", "kinds"},
    "tour": {"records", "shapes", "kinds", "text", "models", "decode", "packaged", "tour_outcome"},
    "api": {
        "records",
        "recipe",
        "shapes",
        "kinds",
        "machines",
        "text",
        "laws",
        "plan",
        "data",
        "decode",
        "train",
        "measure",
    },
}


def imported(source: str, module: str) -> set[str]:
    """Modules of the package that `source` imports anywhere, without the package's own name: "laws.fit", "records".

    Of `from foredraft.laws import fit` both "laws" and "laws.fit" might be meant: the longest that is a module counts.
    """
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = f"foredraft.{module}".split(".")[: -node.level]
                base = ".".join([*parents, *([base] if base else [])])
            modules |= {f"{base}.{alias.name}" for alias in node.names}
    ours = {name.removeprefix("foredraft.") for name in modules if name.startswith("foredraft.")}
    return {_module(name) for name in ours}


def _module(name: str) -> str:
    """The longest beginning of a dotted name that is a file or folder of the package; else its first word."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:end])
        if path.is_dir() or path.with_suffix(".py").is_file():
            return ".".join(parts[:end])
    return parts[0] if parts[0] in MAY else "__init__"


def trespasses(source: str, module: str) -> set[str]:
    """The imports of `module` (dotted, without the package) that its room may not have."""
    room = module.split(".")[0]
    if room in ("cli", "__main__"):
        return set()
    allowed = MAY[room] | {room, "__init__"}
    return {
        name
        for name in imported(source, module)
        if not any(name == free or name.startswith(free + ".") for free in allowed)
    }


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_what_it_may(module):
    assert trespasses(MODULES[module].read_text(encoding="utf-8"), module) == set()


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_the_command_line(module):
    if module.split(".")[0] not in ("cli", "__main__"):
        names = imported(MODULES[module].read_text(encoding="utf-8"), module)
        assert "cli" not in {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    ("module", "source", "bad"),
    [
        ("records", "from foredraft.shapes import Shape", {"shapes"}),
        ("records", "import msgspec", set()),
        ("shapes", "def f():\n    from foredraft.laws import fit", {"laws.fit"}),
        ("laws.cost", "from foredraft.plan.evidence import names", {"plan.evidence"}),
        ("laws.cost", "from foredraft import validate, records", {"validate"}),
        ("laws.cost", "import foredraft.report.style", {"report.style"}),
        ("laws.cost", "from ..plan import search", {"plan.search"}),
        ("plan.search", "from foredraft.report import sdsl", {"report.sdsl"}),
        ("plan.search", "from foredraft.laws import cost\nfrom foredraft.plan import sdsl", set()),
        ("validate.curves", "from foredraft.plan.search import rank", {"plan.search"}),
        ("validate.curves", "from foredraft.plan.evidence import names", set()),
        ("report.sdsl", "from foredraft.plan import sdsl", set()),
        ("report.plan", "from foredraft.plan import search", {"plan.search"}),
        ("report.plan", "if True:\n    from foredraft.cli.main import main", {"cli.main"}),
    ],
)
def test_the_reader_of_imports_sees_a_trespass(module, source, bad):
    """Negative controls, and what is allowed."""
    assert trespasses(source, module) == bad


def test_rooms_import_each_other_in_no_circle():
    edges = {}
    for module, path in MODULES.items():
        room = module.split(".")[0]
        names = {name.split(".")[0] for name in imported(path.read_text(encoding="utf-8"), module)}
        edges.setdefault(room, set()).update(names - {room, "__init__"})
    order: list[str] = []
    while remaining := {room: needs - set(order) for room, needs in edges.items() if room not in order}:
        free = [room for room, needs in remaining.items() if not needs & set(edges)]
        assert free, f"a circle among {sorted(remaining)}"
        order += free
    assert order.index("records") < order.index("laws") < order.index("plan") < order.index("cli")


@pytest.mark.parametrize("verb", ["plan", "fit", "train", "measure", "load_engine"])
def test_a_verb_stands_on_the_packages_face_whatever_was_imported_before(verb):
    code = f"import foredraft.plan.search as search, foredraft.api\nassert search.PlanSettings\nassert callable(foredraft.{verb})"
    done = run(f"import foredraft\nassert callable(foredraft.{verb})\n{code}\nfrom foredraft import {verb}")
    assert done.returncode == 0, done.stderr


def test_plan_on_the_packages_face_plans():
    call = 'foredraft.plan("Llama-3.1-8B", "H100", Workload(input_len=64, output_len=64, concurrency=(1,)))'
    done = run(f"{BLOCK}\nimport foredraft\nfrom foredraft.records import Workload\nprint({call}.target)")
    assert done.stdout == "Llama-3.1-8B\n", done.stderr


def test_a_head_is_checked_where_heavy_packages_cannot_be_imported(tmp_path):
    """`deploy check` of a head, its values too; a model's tensors are said to be not judged."""
    numpy = pytest.importorskip("safetensors.numpy")
    import numpy as np

    config = {
        "architectures": ["LlamaForCausalLMEagle"], "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "torch_dtype": "float32",
    }  # fmt: skip
    head, model = tmp_path / "head", tmp_path / "model"
    for folder, tensors in (
        (head, {"fc.weight": np.full((16, 32), np.nan, np.float32)}),
        (model, {"model.norm.weight": np.ones(16, np.float32)}),
    ):
        folder.mkdir()
        (folder / "config.json").write_text(
            json.dumps(config if folder == head else config | {"architectures": ["LlamaForCausalLM"]})
        )
        numpy.save_file(tensors, folder / "model.safetensors")
    verb = "from foredraft.cli import main\nmain.app(['deploy', 'check', {!r}, '--json'], standalone_mode=False)"
    checked, unjudged = (run(f"{BLOCK}\n{verb.format(str(folder))}") for folder in (head, model))
    assert "not-finite" in {finding["code"] for finding in json.loads(checked.stdout)}, checked.stderr
    assert "not-judged" in {finding["code"] for finding in json.loads(unjudged.stdout)}, unjudged.stderr


DRY_RUN = """
import sys
from foredraft.cli import main
main.app(WORDS, standalone_mode=False)
assert not {name for name in sys.modules if name.split(".")[0] in HEAVY and sys.modules[name]}
"""
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 512,
}  # fmt: skip
STAGE = {"tokens": 8192, "length": 128, "batch": 4, "learning_rate": 1e-3}


def token_folder(path: Path, vocab_size: int) -> Path:
    with ExitStack() as files:
        writer = TokenWriter(path, vocab_size, 0, files)
        for _ in range(16):
            writer.add(np.arange(128)[::-1], np.ones(128))
        writer.finish("0" * 64, (), None)
    return path


@pytest.mark.parametrize(
    "model", [{"kind": "eagle3"}, {"kind": "eagle", "draft_vocab": 64}, {"kind": "dspark"}, {"kind": "dflash", "block": 4},
    {"kind": "lm", "params": 1e5}]
)  # fmt: skip
def test_a_dry_run_of_training_needs_no_torch_and_no_weights(tmp_path, model):
    """Sizes, tokens, passes over the data, disk and time of each kind of draft; data of another vocabulary is refused."""
    target, data = tmp_path / "target", token_folder(tmp_path / "data", 256)
    records.write(target / "config.json", LLAMA)
    records.write(tmp_path / "recipe.json", {"model": model, "stages": [STAGE]})
    words = [
        "train",
        str(tmp_path / "recipe.json"),
        "--dry-run",
        "--json",
        "--target",
        str(target),
        "--data",
        str(data),
    ]
    done = run(BLOCK + f"WORDS = {words!r}" + DRY_RUN)
    assert done.returncode == 0, done.stderr
    needs = json.loads(done.stdout)
    assert needs["params"] > 0
    assert needs["passes"] == [[str(data), 4.0]]
    assert 0 < needs["time_s"]["low"] < needs["time_s"]["high"]
    assert needs["disk_bytes"] > needs["params"]
    assert any("numpy" in note for note in needs["notes"])
    words[-1] = str(token_folder(tmp_path / "other", 300))
    assert "vocabulary of 300" in run(BLOCK + f"WORDS = {words!r}" + DRY_RUN).stderr


def test_a_dry_run_on_a_gpu_says_what_it_needs(tmp_path):
    records.write(tmp_path / "target/config.json", LLAMA)
    records.write(tmp_path / "recipe.json", {"model": {"kind": "eagle3"}, "stages": [STAGE]})
    words = [
        "train",
        str(tmp_path / "recipe.json"),
        "--dry-run",
        "--device",
        "cuda",
        "--target",
        str(tmp_path / "target"),
    ]
    done = run(BLOCK + f"WORDS = {words!r}" + DRY_RUN)
    assert done.returncode != 0
    assert "torch" in done.stderr
