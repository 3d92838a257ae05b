"""`ddpm-jax inspect` and `ddpm-jax list`: what a config stands for, and what it could be."""

import pytest

from ddpm_jax.cli import main
from ddpm_jax.config import families, member_name, members


@pytest.mark.parametrize(
    ("process", "told"),
    [
        ("isotropic", ["Isotropic, one mode", "7.00", "-8.00"]),
        ("blurring", ["Blurring, 64 modes", "7.00", "-8.00", "-21.8"]),
        ("equal_snr", ["EqualSNR, which is measured on the images when a run begins"]),
    ],
)
def test_inspect_prints_the_process(process, told, capsys):
    assert main(["inspect", "configs/digits.py", "--process", process]) == 0
    out = capsys.readouterr().out
    for part in told:
        assert part in out


def test_inspect_prints_the_network(capsys):
    assert main(["inspect", "configs/cifar10.py"]) == 0
    out = capsys.readouterr().out
    assert "35,746,307" in out
    assert "middle_attention" in out
    assert "32x32x3" in out


def test_list_names_every_member_of_every_family(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, family in families().items():
        assert any(line.startswith(f"{name}: ") for line in lines)
        for kind in members(family):
            assert any(f" {member_name(kind)} " in line for line in lines)


def test_list_shows_one_family_with_fields_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["list", "sampler"]) == 0
    out = capsys.readouterr().out
    assert "All have steps=None, spacing='linspace', rho=7.0, guidance=1.0" in out
    (ddim,) = (line for line in out.splitlines() if " ddim " in line)
    assert "eta=0.0" in ddim
    assert "cosine" not in out
