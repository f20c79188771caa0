"""Measures everything in docs/cost.md on a CPU, in parts of a few minutes, and fills the page.

    python tools/bench.py --output_dir runs/bench

Every part is a run of `hf-salguide bench` with one thread, whose file is kept: what is there already is not measured
again. `--parts` names those to run; the page is filled when all are there.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODELS = ["resnet18", "densenet121", "vit_tiny_patch16_224", "vit_tiny_patch16_224:global_pool=avg", "convnext_tiny"]
BY_ALL = ["resnet18", "vit_tiny_patch16_224"]  # the others are guided by one method of each sort alone
GRADIENTS = ["gradmask", "rrr", "gradmask:at=features"]
ONE_OF_EACH = ["cyborg", "divisive_complement", "energy", "actdiff", "sage", *GRADIENTS]
ONLY_STEPS = ["--loader", "false"]
NO_STEPS = ["--steps", "false", "--loader", "false"]
SIZE = ["--image_size", "96", "--batch_size", "8"]

PARTS: dict[str, list[str]] = {
    **{
        f"steps_{number}": [
            *["--models", model, "--methods", *(["all"] if model in BY_ALL else ONE_OF_EACH), *SIZE],
            *["--repeats", "7", *ONLY_STEPS],
        ]
        for number, model in enumerate(MODELS)
    },
    "steps_quarter": [
        *["--models", "resnet18", "vit_tiny_patch16_224", "--methods", "cyborg", "actdiff", "sage", "gradmask"],
        *[*SIZE, "--annotated", "0.25", "--repeats", "7", *ONLY_STEPS],
    ],
    "steps_sizes": [
        *["--models", "resnet18", "vit_tiny_patch16_224", "--methods", "cyborg", "actdiff", "gradmask"],
        *["--image_size", "128", "--batch_size", "4", "16", "--repeats", "7", *ONLY_STEPS],
    ],
    "extraction": [
        *["--models", *MODELS, "--image_size", "128", "--batch_size", "1", "8", "--repeats", "31"],
        *["--against", "torchcam,captum,pytorch-grad-cam", *NO_STEPS],
    ],
    "startup": [
        *["--models", "resnet18", "vit_tiny_patch16_224", "--methods", "cyborg", "rrr", *SIZE],
        *["--startup", "--launches", "3", *NO_STEPS],
    ],
    "scaling": [
        *["--models", "resnet18", "vit_tiny_patch16_224", "--methods", "cyborg", "actdiff", "gradmask"],
        *["--image_size", "96", "--batch_size", "16", "--annotated", "1.0", "0.25"],
        *["--scaling", "--launches", "3", "--repeats", "7", *NO_STEPS],
    ],
    "loader": ["--image_size", "224", "--repeats", "5", "--steps", "false"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/bench"), help="folder for the parts' files")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="those to measure")
    parser.add_argument("--repeats", type=int, help="fewer or more turns than each part has")
    parser.add_argument("--launches", type=int, help="fewer or more turns of fresh processes")
    options = parser.parse_args()
    asked = {"--repeats": options.repeats, "--launches": options.launches}
    overrides = [text for name, value in asked.items() if value is not None for text in (name, str(value))]
    options.output_dir.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in options.parts:
        output = options.output_dir / f"{name}.json"
        if output.exists():
            print(f"{output} is there; it is not measured again.")
            continue
        command = [sys.executable, "-m", "hf_salguide.cli", "bench", "--device", "cpu", *PARTS[name], *overrides]
        subprocess.run([*command, "--json", str(output)], env=environment, check=True)
    files = [options.output_dir / f"{name}.json" for name in PARTS]
    if all(file.exists() for file in files):
        subprocess.run([sys.executable, ROOT / "tools" / "readme.py", "--bench", *files], check=True)


if __name__ == "__main__":
    main()
