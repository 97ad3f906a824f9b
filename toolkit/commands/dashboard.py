"""Create the wandb workspace of a project: Quality, Optimization, Throughput, Errors and Run, as in docs/dashboards.md.

Each call creates a new view and changes no existing one. Needs the package wandb-workspaces.

Example: toolkit dashboard my-team/toolkit
"""

import importlib.util
import sys
from collections.abc import Sequence

from toolkit.config.cli import parse_section
from toolkit.config.tool_settings import WorkspaceLayout
from toolkit.system import console
from toolkit.system.errors import InputError, first_line
from toolkit.system.exit_codes import exit_code


def lay_out(argv: Sequence[str] | None) -> None:
    flags = parse_section(argv, "toolkit dashboard", __doc__, WorkspaceLayout, "project")
    entity, _, project = flags.project.rpartition("/")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise InputError("the package is not installed: pip install wandb-workspaces")

    from toolkit.runs.dashboards.on_wandb import why_offline  # heavy imports come after parsing

    missing = None if flags.output else why_offline()
    if missing:
        raise InputError(f"{flags.project}: {missing}: `wandb login` where there is a network, or give --output FILE")

    import wandb

    from toolkit.runs.dashboards.workspace import workspace
    from toolkit.system import files, storage

    if flags.output:
        try:
            files.write_json(flags.output, workspace(entity, project)._spec)
        except OSError as error:
            raise InputError(f"--output {flags.output}: {storage.explain(error, flags.output)}") from None
        console.say(f"wrote     {flags.output}", sys.stdout)
        return
    try:
        view = workspace(entity or wandb.Api().default_entity, project).save()
    except Exception as error:  # wandb's client raises any type of exception for a server error
        raise InputError(f"{flags.project}: wandb refused it: {first_line(error)}") from None
    console.say(f"wrote     {view.url}", sys.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: lay_out(argv))
