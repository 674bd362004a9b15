"""The message with which `hf-mim` ends after a mistake, for the tables of mistakes in `tests/mistakes/`."""

import hf_mim_cli as cli


# Lines of a progress bar of datasets, when a table is prepared before the mistake is found.
BARS = ("Generating", "Map", "Resolving")


def refusal(capsys, *arguments) -> str:
    """
    Run `hf-mim ARGUMENTS` in this process and return the message.

    The mistake must end in exit code 2 and one line on stderr, with nothing on stdout.
    """
    capsys.readouterr()
    assert cli.main(list(map(str, arguments))) == 2
    output = capsys.readouterr()
    *before, line = output.err.splitlines()
    assert output.out == "" and line.startswith("hf-mim: error: ")
    assert not [text for text in before if text.strip() and not text.startswith(BARS)]
    return line.removeprefix("hf-mim: error: ")
