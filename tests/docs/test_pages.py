"""What README and documentation say is run: code, commands, links."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from pages import DOCS, PAGES, code_of, is_cell, name_of, run_page
from paths import ROOT, SUPPORT

WITH_CODE = [page for page in PAGES if code_of(page)]
WITH_CELLS = [page for page in WITH_CODE if any(map(is_cell, code_of(page)))]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """An empty folder, and JAX as it is by default."""
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("page", sorted({*WITH_CODE} - {*WITH_CELLS}), ids=name_of)
def test_the_code_of_a_page_runs(page):
    run_page(page)


@pytest.mark.thorough
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="start.py docs runs cells on Python 3.13")
@pytest.mark.parametrize("page", WITH_CELLS, ids=name_of)
def test_the_cells_of_a_page_run(page, tmp_path):
    """In a process of its own, with the devices and optimizations that a reader has."""
    paths = [str(ROOT), str(SUPPORT), str(Path(sys.executable).parent)]
    environment = {name: os.environ[name] for name in os.environ if name != "XLA_FLAGS"} | {
        "PYTHONPATH": os.pathsep.join(paths[:2]),
        "PATH": os.pathsep.join([paths[2], os.environ["PATH"]]),
        "MATPLOTLIBRC": str(DOCS / "matplotlibrc"),
    }
    command = [sys.executable, str(SUPPORT / "pages.py"), str(page)]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


BAD = """---
file_format: mystnb
kernelspec:
  name: python3
---

# A page

```{code-cell} ipython3
1 / 0
```
"""


def test_an_error_in_a_page_comes_with_its_name(tmp_path):
    page = tmp_path / "bad.md"
    page.write_text(BAD)
    with pytest.raises(ZeroDivisionError) as error:
        run_page(page)
    assert error.value.__notes__ == ["in bad.md, the block at line 10"]


@pytest.mark.thorough
def test_a_page_that_fails_to_execute_fails_the_build_with_its_name(tmp_path):
    pytest.importorskip("myst_nb", reason="the extra 'docs' is not installed")
    (tmp_path / "bad.md").write_text(BAD)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-c", str(DOCS), "-D", "root_doc=bad", str(tmp_path), str(tmp_path / "site")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode != 0
    assert "bad.md" in built.stderr
    assert "ZeroDivisionError" in built.stderr
