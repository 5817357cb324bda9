"""`jinstr resume`: go on with a run exactly as it was recorded, without its .gin files."""

from __future__ import annotations

import dataclasses
import pathlib

from jinstr import cli, record
from jinstr.parallel import processes
from jinstr.train import stopping, vitals


def resume(*, run_dir: str, module: str) -> dict:
    """Call the training command of RUN_DIR/config.json again, with the settings written there.

    Nothing else is read: no .gin, no command line of old. module: the user's own module, if the run had one; it is
    code, so it is imported only when it is named again. Errors: ConfigError when the record cannot be trusted;
    RunInUseError when the run is still going. Returns the summary of the training command.
    """
    command, kwargs = record.read(pathlib.Path(run_dir), module=module)
    if kwargs["run_dir"] != run_dir:
        print(f"jinstr: recorded as {kwargs['run_dir']}, going on in {run_dir}")
        kwargs["run_dir"] = run_dir
    if kwargs["checkpoint"].resume == "never":  # that was about a directory that was to be new
        kwargs["checkpoint"] = dataclasses.replace(kwargs["checkpoint"], resume="auto")
    entry = cli.entry_function(command)
    processes.start(vitals.ended)
    place, rank = pathlib.Path(run_dir), processes.index()
    with stopping.running(place, rank == 0), vitals.telling(place, rank, command):
        found = entry(**kwargs)
        processes.finish()
        return found
