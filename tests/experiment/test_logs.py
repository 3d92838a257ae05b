"""Whatever happens to a logger, the run goes on and prints a line."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ddpm_jax import config
from ddpm_jax.config import ConfigError
from ddpm_jax.experiment.logs import open_log


@dataclasses.dataclass(frozen=True)
class Odd(config.Logger):
    """Fails where it is told to."""

    failing: tuple[str, ...] = ()

    def make(self, directory, resumed_at):
        if "make" in self.failing:
            raise OSError("disk full\nand more")
        return None if "nothing" in self.failing else Calls(self.failing)


class Calls:
    made = None

    def __init__(self, failing):
        self.failing, self.calls = failing, []
        Calls.made = self

    def scalars(self, step, values):
        self.calls.append(step)
        if f"scalars {step}" in self.failing:
            raise ConnectionError("no route")

    def picture(self, step, name, picture):
        self.calls.append(name)
        if "picture" in self.failing:
            raise ValueError("no picture")

    def close(self):
        self.calls.append("close")
        if "close" in self.failing:
            raise TimeoutError("still sending")


def lines_of(*failing):
    Calls.made, lines = None, []
    with open_log(Odd(failing), Path("run"), resumed_at=0, say=lines.append) as log:
        for step in range(1, 6):
            log.scalars(step, {"loss": 1.0})
            log.picture(step, "samples", np.zeros((1, 1, 1), np.uint8))
    return Calls.made and Calls.made.calls, lines


def test_all_calls_come_through_and_nothing_is_printed():
    calls, lines = lines_of()
    assert calls == [1, "samples", 2, "samples", 3, "samples", 4, "samples", 5, "samples", "close"]
    assert lines == []


def test_a_logger_that_cannot_begin_is_one_line_and_no_logger():
    calls, lines = lines_of("make")
    assert calls is None
    assert lines == ["no logger Odd: OSError: disk full"]


def test_an_error_is_printed_until_the_same_call_works_again():
    _, lines = lines_of("scalars 2", "scalars 3", "scalars 5", "picture")
    refused = "logger Odd: ConnectionError: no route"
    assert lines == ["logger Odd: ValueError: no picture", refused, refused]


def test_an_error_at_the_end_is_a_line():
    assert lines_of("close")[1] == ["logger Odd: TimeoutError: still sending"]


def test_what_is_no_logger_is_refused():
    with pytest.raises(ConfigError, match=r"logger: Odd\.make returned a NoneType"):
        lines_of("nothing")
