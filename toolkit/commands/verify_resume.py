"""Check that your training command survives being killed. It runs twice: once undisturbed, and once killed at random
steps (SIGKILL to all its processes) and restarted. Both runs must end bit-identical: weights, moving average,
optimizer, progress, and every image delivered. Your own runs are not touched.

Give the complete command after `--`, without --output-dir and --resume. The check takes about twice the time of --steps
steps, plus --kills startups.

Exit code: 0 equal; 1 different, with the files and the likely reason; 2 a flag or the command itself is wrong.

Example: toolkit verify-resume -- toolkit train multi --data-root DIR --amp
"""

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from toolkit.config.cli import parse_section
from toolkit.config.tool_settings import Verify
from toolkit.system import console
from toolkit.system.errors import InputError, ResumeError
from toolkit.system.exit_codes import exit_code
from toolkit.tools import verify_resume
from toolkit.tools.verify_resume import Trial


def verify_from(argv: Sequence[str]) -> None:
    words = [*argv]
    if "--" in words:  # the command becomes the single positional argument
        cut = words.index("--")
        words = [shlex.join(words[cut + 1 :]), *words[:cut]]
    elif not {"-h", "--help"} & {*words}:
        raise InputError("the training command is missing: give it after --, as in --help")
    flags = parse_section(words, "toolkit verify-resume", __doc__, Verify, "command")
    plan = verify_resume.plan(flags.command, steps=flags.steps, save_every_steps=flags.save_every_steps)
    folder = flags.output_dir or Path(f"verify-resume-{time.strftime('%Y%m%d-%H%M%S')}")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"--output-dir {folder}: the folder holds other files; give an empty or a new one")
    folder.mkdir(parents=True, exist_ok=True)
    whole, tried = Trial(plan.command, folder / "undisturbed"), Trial(plan.command, folder / "killed")

    started = time.monotonic()
    last = verify_resume.undisturbed(whole, plan.steps)
    shorter = f", its last (--steps {flags.steps})" if last < plan.steps else ""
    console.say(f"undisturbed   step {last}{shorter} after {time.monotonic() - started:.0f} s", sys.stdout)
    started, kills, repeated = time.monotonic(), 0, 0
    targets = verify_resume.draw(flags.kills, plan.every, last, flags.seed)
    for kill in verify_resume.killed(tried, last, plan.every, targets):
        kills, repeated = kills + 1, repeated + kill.at - kill.resumes
        console.say(f"killed        after step {kill.at}; continues from step {kill.resumes}", sys.stdout)
    took = f"after {time.monotonic() - started:.0f} s, {repeated} steps repeated"
    console.say(f"killed {kills:2} x   step {last} {took}\n", sys.stdout)
    if flags.kills and not kills:
        raise InputError("the run ended before it could be killed, so nothing is shown: raise --steps")

    equal = verify_resume.compare(whole, tried, last)
    for name, same in equal.items():
        console.say(f"{name:32} {'equal' if same else 'DIFFERENT'}", sys.stdout)
    different = [name for name, same in equal.items() if not same]
    console.say(f"verdict: {'DIFFERENT' if different else 'equal'}", sys.stdout)
    if different:
        raise ResumeError(
            f"{', '.join(different)}: {verify_resume.reasons(equal, tried, last)}; both runs are in {folder}"
        )
    if flags.output_dir is None:
        shutil.rmtree(folder)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: verify_from(sys.argv[1:] if argv is None else argv))
