"""The command line, `hf-salguide COMMAND [CONFIG.yaml] [--option value ...]`: one module a command."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "demo": "train plain, guided and inverted models on decoy digits and compare them",
    "train": "train a classifier, guided or plain, on a data set",
    "evaluate": "accuracy, AUROC, calibration and agreement of the maps with the evidence, split by split",
    "predict": "scores and maps of a folder of pictures, labelled or not",
    "annotate": "a copy of a data set with a guided teacher's maps where nobody annotated",
    "check": "read every picture and map of a data set and list what is wrong",
    "explain": "maps of chosen pictures, or what decides over a data set (--tool difference)",
    "compare": "methods against plain training over seeds, with a report: did guidance help on your data?",
    "push": "publish a trained model with its card on the Hub",
    "methods": "the guidance methods, their papers and defaults",
    "backbones": "the feature layer of each family of timm and transformers, and what holds of it",
    "bench": "the cost of a guided step as a multiple of the plain step",
}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a command.

    Args:
        argv (sequence of `str`, *optional*): the arguments, without the program's name. Defaults to `sys.argv[1:]`.

    Returns:
        `int`: the exit status; 2 for bad input, whose message goes to the standard error. With the environment
        variable `HF_SALGUIDE_DEBUG` set, the traceback is shown.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: hf-salguide COMMAND [CONFIG.yaml] [--option value ...]\n")
        for name, line in COMMANDS.items():
            print(f"  {name:<10} {line}")
        print("\nhf-salguide COMMAND --help lists a command's options.")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from .. import __version__

        print(__version__)
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        print(f"hf-salguide: {command!r} is no command; choose one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        status: int = import_module(f".{command}", __name__).run(arguments[1:])
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("HF_SALGUIDE_DEBUG"):
            raise
        print(f"hf-salguide {command}: error: {error}", file=sys.stderr)
        return 2
    return status
