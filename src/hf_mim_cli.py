"""
The command line `hf-mim VERB ...`: each verb hands its arguments to the module that does the work.

It is outside the package because importing `hf_mim` registers the models with transformers. That takes seconds, for
which `--help`, `--version` and a misspelled verb need not wait.
"""

import difflib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Sequence


USAGE = """usage: hf-mim VERB [ARGUMENTS ...]

verbs:
  pretrain [RECIPE] [--option value ...]   pre-train a model; --help lists every option and the packaged recipes
  evaluate knn ...                         measure frozen features with a k-nearest-neighbor classifier
  analyze codes TOKENIZER IMAGES ...       draw which patches share a code, and how often each code is used
  analyze distance MODEL IMAGES ...        measure how far each attention head looks, for one or several encoders
  analyze svd MODEL IMAGES ...             measure how many directions the patch features of each layer use
  convert SOURCE OUTPUT_DIR                convert an official checkpoint, a file or a name of --list, into a model
  export MODEL OUT                         export a model to a native transformers class, with --onnx also to ONNX
  publish OUTPUT_DIR ORG/NAME ...          upload a finished run: encoder and full model, checked, with their cards
  check-data SOURCE                        read every image once; list unreadable images and duplicates
  env                                      print versions, devices and back ends for a bug report

  hf-mim VERB --help                       the arguments of one verb
  hf-mim --version                         the version

A mistake in the arguments or the data is reported in one line; HF_MIM_DEBUG=1 also shows the traceback.
"""
# Module of each verb, or of each second word. A module that serves several second words also gets the word.
VERBS: dict[str, str | dict[str, str]] = {
    "pretrain": "hf_mim.training.run_pretrain",
    "evaluate": {"knn": "hf_mim.evaluation.evaluate_knn"},
    "analyze": {
        "codes": "hf_mim.analysis.analyze_codes",
        "distance": "hf_mim.analysis.analyze_properties",
        "svd": "hf_mim.analysis.analyze_properties",
    },
    "convert": "hf_mim.hub.convert.command",
    "export": "hf_mim.hub.export_command",
    "publish": "hf_mim.hub.publish_command",
    "check-data": "hf_mim.data.check_data",
    "env": "hf_mim.env",
}
SECOND_WORDS = {"evaluate": ("evaluation", "MODEL DATASET ..."), "analyze": ("analysis", "MODEL IMAGES ...")}
# What each second word does, for the help of its verb.
PURPOSES = {
    "knn": "classify images by their nearest neighbors among frozen features",
    "codes": "draw which patches share a code of a tokenizer, and how often each code is used",
    "distance": "measure how far each attention head looks",
    "svd": "measure how many directions the patch features of each layer use",
}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one verb and return the exit code of the process.

    Args:
        argv (`Sequence[str]`, *optional*): Arguments after the program name; defaults to `sys.argv[1:]`.

    Returns:
        `int`: 0 when the verb finished; 1 when check-data found an unreadable image; 2 after a mistake, which is
        reported in one line on stderr; 130 after an interrupt.

    Raises:
        SystemExit: With code 75 when a training was interrupted and saved.
        Exception: After a defect; with `HF_MIM_DEBUG=1` in the environment, also after a mistake.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        return _mistake(f"which verb? {', '.join(VERBS)} (see hf-mim --help)")
    verb, rest = arguments[0], arguments[1:]
    if verb in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if verb == "--version":
        print(f"hf_mim {importlib.metadata.version('hf_mim')}")
        return 0
    if verb not in VERBS:
        return _mistake(f"unknown verb '{verb}', did you mean '{_nearest(verb, VERBS)}'?")
    module = VERBS[verb]
    if isinstance(module, dict):
        choices, (noun, operands) = ", ".join(module), SECOND_WORDS[verb]
        if not rest:
            return _mistake(f"{verb} what? {choices} (see hf-mim {verb} {next(iter(module))} --help)")
        if rest[0] in ("-h", "--help"):
            lines = [f"  {word:<10} {PURPOSES[word]}" for word in module]
            print(f"usage: hf-mim {verb} {{{choices}}} {operands}\n\n" + "\n".join(lines))
            print(f"\nhf-mim {verb} {next(iter(module))} --help lists the arguments.")
            return 0
        if rest[0] not in module:
            return _mistake(f"unknown {noun} '{rest[0]}', did you mean '{_nearest(rest[0], module)}'?")
        modules = list(module.values())
        module = module[rest[0]]
        rest = rest if modules.count(module) > 1 else rest[1:]
    if not sys.stderr.isatty():
        # Fragments of bars would fill a log file. tqdm reads this when it is imported.
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        from hf_mim.utils.console import run
    except KeyboardInterrupt:
        return 130
    return run(lambda argv: importlib.import_module(module).main(argv), rest)


def _mistake(message: str) -> int:
    print(f"hf-mim: error: {message}", file=sys.stderr)
    return 2


def _nearest(name: str, names: Iterable[str]) -> str:
    return difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)[0]


if __name__ == "__main__":
    sys.exit(main())
