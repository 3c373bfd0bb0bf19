"""A Hugging Face folder into OpenVINO's format, weights in float32; runs where optimum-intel is installed.

python export_openvino.py SOURCE OUT [LAYER LAYER LAYER]

The layers are those that the hidden states of an EAGLE-3 head enter. OpenVINO GenAI names the layers they leave, and for targets of fewer
than ten layers wants them stated in the head's file.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def main(source: str, out: str, *layers: str) -> None:
    command = [
        Path(sys.executable).with_name("optimum-cli"), "export", "openvino", "--model", source, "--task", "text-generation-with-past",
        "--weight-format", "fp32",
    ]  # fmt: skip
    # An EAGLE-3 head is loaded by a class of optimum-intel's own, which passes for remote code.
    subprocess.run([*command, *(["--trust-remote-code"] if layers else []), out], check=True)
    if layers:
        _state_layers(Path(out), [int(layer) - 1 for layer in layers])


def _state_layers(folder: Path, layers: list[int]) -> None:
    import openvino

    with tempfile.TemporaryDirectory(dir=folder) as beside:
        model = openvino.Core().read_model(folder / "openvino_model.xml")
        model.set_rt_info(layers, ["hidden_layers_list"])
        openvino.save_model(model, Path(beside) / "openvino_model.xml", compress_to_fp16=False)
        del model
        for name in ("openvino_model.xml", "openvino_model.bin"):
            shutil.move(Path(beside) / name, folder / name)


if __name__ == "__main__":
    main(*sys.argv[1:])
