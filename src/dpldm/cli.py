"""The command line: a table of commands, each a thin call of one function of the package.

Starting is cheap: nothing heavy is imported before the command is known. Every mistake of the user ends in one
sentence on stderr and exit code 2.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

import dpldm
from dpldm.data.names import printable
from dpldm.errors import UserError


@dataclass(frozen=True)
class Command:
    """Where a command lives and what it is for."""

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "inspect": Command("dpldm.commands.inspect", "look at a folder of images (internal) and start a config"),
    "plan": Command("dpldm.commands.run", "what a run will cost in privacy, time and memory; opens no image"),
    "rehearse": Command("dpldm.commands.run", "the same plan on public images: the quality to expect, no budget spent"),
    "run": Command("dpldm.commands.run", "finetune, sample, evaluate and release, one after the other"),
    "finetune": Command("dpldm.commands.run", "tune the backbone on private images with DP-SGD; resumes"),
    "sample": Command("dpldm.commands.run", "draw synthetic images from the tuned model; resumes"),
    "evaluate": Command("dpldm.commands.run", "measure synthetic images against real test images (internal)"),
    "memorisation": Command(
        "dpldm.commands.memorisation", "whether synthetic images keep to the images that were trained on (internal)"
    ),
    "baseline": Command(
        "dpldm.commands.baseline", "what to compare with: a DP-SGD classifier, or (published images) no privacy"
    ),
    "release": Command("dpldm.commands.run", "collect what may leave, with its privacy statement"),
    "report": Command(
        "dpldm.commands.report", "a release as a page to read and to print, and an internal one beside it"
    ),
    "app": Command("dpldm.commands.app", "look at a release in a browser: its images, or new ones from its model"),
    "clean": Command("dpldm.commands.clean", "remove a released run's private caches: encoded images, tuned weights"),
    "verify": Command("dpldm.commands.verify", "check a release: recompute epsilon, compare every hash"),
    "push": Command("dpldm.commands.push", "upload a verified release to the Hugging Face hub, private by default"),
    "audit": Command(
        "dpldm.commands.audit", "attack our own mechanism on made-up data; says what it could have shown at most"
    ),
    "ledger": Command("dpldm.commands.ledger", "show or verify the record of what was spent on a data set"),
    "reproduce": Command(
        "dpldm.commands.reproduce", "run a row of the paper's tables, beside what others have published; resumes"
    ),
    "pretrain": Command("dpldm.commands.pretrain", "make a public backbone from public sets; resumes"),
    "backbone": Command(
        "dpldm.commands.backbone", "list the bundled backbones, show one, draw from it, or convert a CompVis checkpoint"
    ),
    "public": Command(
        "dpldm.commands.public", "make public image sets (glyphs, icons, a folder, digits), or check a published one"
    ),
}


class OneSentenceParser(argparse.ArgumentParser):
    """argparse whose refusals end like all others: in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[0].upper()}{message[1:]}; see `{self.prog} --help`.")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()  # a closed pipe is noticed here, where it can be caught
        super().exit(status, message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 a check failed, 2 a mistake of the user, 3 a release that is not differentially private, 130 interrupted.
    """
    # torch's threads wait for each other by spinning. On a machine that does anything else at the same time that
    # costs far more than it gains (ten times slower training was seen on two cores), so they soon go to sleep.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _command(words)
        sys.stdout.flush()
        return code
    except UserError as error:
        # Names and values in it may be somebody else's: nothing that a terminal would obey.
        print(f"dpldm: {printable(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has enough: no complaint, and none from Python at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # Without the file's name: it may be that of a private image.
        cause = f"A file cannot be read or written ({error.strerror})"
        print(f"dpldm: {cause}: make room or correct the place, then give the same command again.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ndpldm: interrupted; the same command continues where it stopped.", file=sys.stderr)
        return 130


def _command(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"dpldm {dpldm.__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"There is no command {name!r}: use one of {', '.join(COMMANDS)}.")
    module = import_module(COMMANDS[name].module)
    parser = OneSentenceParser(
        prog=f"dpldm {name}",
        description=f"{COMMANDS[name].summary[0].upper()}{COMMANDS[name].summary[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return int(module.main(name, parser, words[1:]))


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    table = "\n".join(f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items())
    return f"""dpldm {dpldm.__version__}: a folder of private images in, a synthetic folder with a true guarantee out.

usage: dpldm COMMAND [options]        dpldm COMMAND --help

commands:
{table}

A first run:
  dpldm inspect my-images --write run.yaml     then fill in privacy.records
  dpldm plan --config run.yaml
  dpldm rehearse --config run.yaml
  dpldm run --config run.yaml
"""
