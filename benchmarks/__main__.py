"""The command: finds the suite or the comparison, prints, and writes files."""

import dataclasses
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import tyro

from benchmarks import columns, pictures, results
from benchmarks.settings import as_json
from ddpm_jax.cli.platforms import ignore_absent_accelerators
from ddpm_jax.errors import UserError

__all__ = ["SUITES", "main"]

SUITES = {
    "forward": ("x_t from x_0: loops, closed forms, and what memory allows", "4 minutes"),
    "kl": ("the KL shortcut against sampling; few times against the whole ELBO", "4 minutes"),
    "train_step": ("what noising costs in a train step, looped and in one", "5 minutes"),
    "data": ("images per second of each source, and how long a device waits", "5 minutes"),
    "peers": (
        "training, sampling, bits/dim, noising beside diffusers (extra 'peers')",
        "9 minutes",
    ),
    "scaling": ("a step on 8 to 1024 chips (extra 'plan'); the machinery's own cost", "6 minutes"),
    "relatives": (
        "DDPM beside variance exploding, rectified flow and others, trained alike",
        "1 hour",
    ),
    "accelerator": ("exactness, speed and kernels on the device that JAX finds", "3 minutes"),
}
"""What each is about, and how long it takes on 2 CPU cores with its defaults."""

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one suite, or compares two files; returns the exit code.

    0 done, 2 something that a person can mend, 130 interrupted with ctrl-C. The file has the rows
    that are finished, also after a process was killed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    command, rest = arguments[0], arguments[1:]
    ignore_absent_accelerators()
    try:
        if command == "compare":
            _compare(rest)
        elif command in SUITES:
            _run(command, rest)
        else:
            known = ", ".join([*SUITES, "compare"])
            raise UserError(f"there is no suite {command!r}; it has to be one of {known}")
    except (UserError, OSError) as error:
        return _fail(str(error), EXIT_USAGE)
    except InterruptedRunError as stop:
        return _fail(str(stop), EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", EXIT_INTERRUPTED)
    return 0


class InterruptedRunError(Exception):
    """Ctrl-C while a suite was measuring, and what became of its rows."""


def _run(name: str, arguments: Sequence[str]) -> None:
    suite: Any = importlib.import_module(f"benchmarks.{name}")
    for variable, value in getattr(suite, "ENVIRONMENT", {}).items():
        os.environ.setdefault(variable, value)  # JAX reads it when it first looks for devices
    settings = tyro.cli(
        suite.Settings,
        prog=f"python -m benchmarks {name}",
        description=_summary(suite),
        args=arguments,
    )
    settings.out.mkdir(parents=True, exist_ok=True)  # before the minutes, not after them
    path = settings.out / f"{name}.json"
    picture = path.with_suffix(".png")
    start = time.perf_counter()
    rows: list[results.Row] = []
    begun = results.Report(
        suite=name,
        arguments=as_json(settings),
        seeds={"seed": settings.seed},
        machine=results.machine(),
        versions=results.versions(*suite.PACKAGES),
        started=results.now(),
        took_seconds=0.0,
        rows=rows,
        notes=[],
        finished=False,
    )

    def save(notes: list[str], *, finished: bool = False) -> results.Report:
        took = time.perf_counter() - start
        report = dataclasses.replace(begun, took_seconds=took, notes=notes, finished=finished)
        results.save(report, path)
        return report

    try:
        for row in suite.run(
            settings, lambda what: print(f"{name}: {what}", file=sys.stderr, flush=True)
        ):
            rows.append(row)
            save(["This run did not end."])  # yet; it may be killed
            picture.unlink(missing_ok=True)  # that of an earlier run is not of these rows
    except (UserError, KeyboardInterrupt) as stop:
        if not rows:
            raise
        kind: type[Exception] = InterruptedRunError
        why = "interrupted"
        if isinstance(stop, UserError):
            kind, why = UserError, str(stop)
        save([f"This run did not end: {why}."])
        count = "1 finished row is" if len(rows) == 1 else f"{len(rows)} finished rows are"
        raise kind(f"{why}; {count} in {path}") from None
    report = save(suite.notes(rows), finished=True)
    print(_as_text(report, suite))
    print(f"\nnumbers   {path}")
    pictures.draw(report, picture)
    print(f"picture   {picture}")


def _as_text(report: results.Report, suite: ModuleType) -> str:
    machine, versions = report.machine, report.versions
    known = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        f"{report.suite}, {report.started}, {columns.duration(report.took_seconds)}",
        f"{machine['devices']} x {machine['device_kind']} ({machine['platform']}), one used;"
        f" {machine['processor']}, {machine['cores']} cores",
        known,
        "",
        *(f"{columns.of_rows(rows, headers)}\n" for rows, headers in _tables(report, suite)),
        *(f"- {sentence}" for sentence in report.notes + _cautions(report)),
    ]
    return "\n".join(lines)


def _tables(
    report: results.Report, suite: ModuleType
) -> list[tuple[list[results.Row], columns.Columns]]:
    """Most suites have one."""
    if hasattr(suite, "tables"):
        return suite.tables(report.rows)
    return [(report.rows, suite.COLUMNS)]


def _cautions(report: results.Report) -> list[str]:
    sentences = []
    load = report.machine["load_before"]
    if load is not None and load > 0.5:
        sentences.append(f"The machine was busy when this began: a load of {load:.1f}.")
    if report.machine["compilation_cache"]:
        sentences.append(
            "A persistent compilation cache was on: compile times may be those of reading."
        )
    return sentences


def _compare(arguments: Sequence[str]) -> None:
    if len(arguments) != 2:
        raise UserError(
            f"compare wants two files, and got {len(arguments)}: python -m benchmarks compare"
            " before.json after.json"
        )
    before, after = (results.load(Path(argument)) for argument in arguments)
    compared = results.compare(before, after)
    headers = ["case", "ratio", "from", "to", "the second is"]
    cells = [
        [
            ", ".join(f"{value}" for value in row.case.values()),
            *(f"{value:.3f}" for value in (row.ratio, row.lower, row.upper)),
            row.verdict,
        ]
        for row in compared
    ]
    print(f"{before.suite}: {arguments[1]} over {arguments[0]}, seconds\n")
    print(columns.table(headers, cells))
    print()
    for sentence in results.conclusions(before, after, compared):
        print(f"- {sentence}")


def _usage() -> str:
    lines = [f"  {name:<11} {what:<72} {took}" for name, (what, took) in SUITES.items()]
    return "\n".join(
        [
            "usage: python -m benchmarks SUITE ...   (with --help: what it measures, and options)",
            "       python -m benchmarks compare BEFORE.json AFTER.json",
            "",
            *lines,
            "",
            "The times are those of 2 CPU cores and the defaults.",
        ]
    )


def _summary(suite: ModuleType) -> str:
    return (suite.__doc__ or "").strip()


def _fail(sentence: str, code: int) -> int:
    print(f"python -m benchmarks: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
