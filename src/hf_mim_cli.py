"""
The command line `hf-mim VERB ...`: each verb hands its arguments to the module that does the work.

It stands outside the package because importing `hf_mim` registers the models with transformers, which takes seconds
that `--help`, `--version` and a misspelt verb need not wait for.
"""

import difflib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Sequence


USAGE = """usage: hf-mim VERB [ARGUMENTS ...]

verbs:
  pretrain [RECIPE] [--option value ...]   pre-train a model; --help lists every option and the packaged recipes
  evaluate knn ...                         what frozen features are worth to a k-nearest-neighbour classifier
  analyze codes TOKENIZER IMAGES ...       pictures of which patches share a code, and how often each is used
  analyze distance MODEL IMAGES ...        how far each head looks in each layer, of one or several encoders
  analyze svd MODEL IMAGES ...             how few directions the patch features of each layer fill
  convert SOURCE OUTPUT_DIR                an official checkpoint, a file or a name of --list, as a model folder
  export MODEL OUT                         a model as one of transformers' own, which needs no hf_mim; --onnx as well
  publish OUTPUT_DIR ORG/NAME ...          upload a finished run: encoder and full model, checked, with their cards
  check-data SOURCE                        reads every image once; names the unreadable ones and the duplicates
  env                                      versions, devices and back ends; belongs into every bug report

  hf-mim VERB --help                       the arguments of one verb
  hf-mim --version                         the version

A mistake in the arguments or the data is reported in one line; HF_MIM_DEBUG=1 shows the traceback as well.
"""
VERBS = ("pretrain", "evaluate", "analyze", "convert", "export", "publish", "check-data", "env")
EVALUATIONS = ("knn",)
ANALYSES = ("codes", "distance", "svd")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and give the exit code of the process.

    Args:
        argv: the arguments after the program name; those of the process when None.

    Returns:
        0 when the verb finished; 1 when check-data found an unreadable image; 2 for a mistake of the user (a
        `ValueError`, an `OSError`, such as a missing file or a full disk, or a `FloatingPointError`, when a training
        diverges), told in one line on stderr, unless the environment has `HF_MIM_DEBUG=1`: then the exception is
        raised; 130 after an interrupt. A training that was interrupted and saved raises `SystemExit(75)`. Any other
        exception is raised: it is a defect, and its traceback is needed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("hf-mim: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("HF_MIM_DEBUG") == "1":
            raise
        print(f"hf-mim: error: {_one_line(error)}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    verb, rest = (arguments[0], arguments[1:]) if arguments else (None, [])
    if verb is None:
        raise ValueError(f"which verb? {', '.join(VERBS)} (hf-mim --help tells more)")
    if verb in ("-h", "--help"):
        print(USAGE, end="")
    elif verb == "--version":
        print(f"hf_mim {importlib.metadata.version('hf_mim')}")
    elif verb == "pretrain":
        from hf_mim.training import run_pretrain

        run_pretrain.main(rest)
    elif verb == "evaluate":
        if _second_word(verb, "evaluation", EVALUATIONS, "MODEL DATASET ...", rest) == "knn":
            from hf_mim.evaluation import evaluate_knn

            evaluate_knn.main(rest[1:])
    elif verb == "analyze":
        analysis = _second_word(verb, "analysis", ANALYSES, "MODEL IMAGES ...", rest)
        if analysis == "codes":
            from hf_mim.analysis import analyze_codes

            analyze_codes.main(rest[1:])
        elif analysis is not None:
            from hf_mim.analysis import analyze_properties

            analyze_properties.main(rest)
    elif verb == "convert":
        from hf_mim.hub import convert_command

        convert_command.main(rest)
    elif verb == "export":
        from hf_mim.hub import export_command

        export_command.main(rest)
    elif verb == "publish":
        from hf_mim.hub import publish_command

        publish_command.main(rest)
    elif verb == "check-data":
        from hf_mim.data import check_data

        return check_data.main(rest)
    elif verb == "env":
        from hf_mim import env

        env.main(rest)
    else:
        raise ValueError(f"unknown verb '{verb}', did you mean '{_nearest(verb, VERBS)}'?")
    return 0


def _second_word(verb: str, kind: str, names: Sequence[str], operands: str, arguments: list[str]) -> str | None:
    """The word after the verb, one of the names; None after `--help`, which is answered here."""
    choices = ", ".join(names)
    if not arguments:
        raise ValueError(f"{verb} what? {choices} (hf-mim {verb} {names[0]} --help tells more)")
    if arguments[0] in ("-h", "--help"):
        print(f"usage: hf-mim {verb} {{{choices}}} {operands}")
        return None
    if arguments[0] not in names:
        nearest = _nearest(arguments[0], names)
        raise ValueError(f"unknown {kind} '{arguments[0]}', did you mean '{nearest}'?")
    return arguments[0]


def _nearest(name: str, names: Sequence[str]) -> str:
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]


def _one_line(error: Exception) -> str:
    # The message of an exception from a data-loading process is its whole traceback, "Type: message" in the last line.
    message = str(error).strip()
    if message.startswith("Caught ") and "\nOriginal Traceback" in message:
        return message.splitlines()[-1].split(": ", 1)[-1]
    return " ".join(message.split()) or traceback.format_exception_only(error)[-1].strip()


if __name__ == "__main__":
    sys.exit(main())
