"""Notebooks are made of pages, by docs/make_notebooks.py."""

import json

import pytest
from pages import DOCS, make_notebooks

PAGE = """---
file_format: mystnb
---

# A page

Of {func}`~ddpm_jax.q_sample` and [another](sampling.md#guidance), by

$$
x = y
$$ (first)

```{note}
See {eq}`first`.
```

## Part

```{code-cell} ipython3
:tags: [hide-input]
1 + 1
```

```sh
ddpm-jax list
```
"""


def test_a_page_becomes_a_notebook(tmp_path, monkeypatch):
    (tmp_path / "a_page.md").write_text(PAGE)
    monkeypatch.setattr(make_notebooks, "DOCS", tmp_path)
    cells = json.loads(make_notebooks.make_notebook("a_page"))["cells"]
    title, install, part, code, last = ("".join(cell["source"]) for cell in cells)
    assert title == (
        "# A page\n\nOf `ddpm_jax.q_sample` and [another](../sampling.md#guidance), by\n\n"
        "$$\nx = y\n\\tag{1}\n$$\n\n> **Note.**\n> See (1)."
    )
    assert install.endswith("%pip install --quiet 'ddpm_jax[train]'")
    assert part == "## Part"
    assert code == "1 + 1"
    assert cells[3]["metadata"]["jupyter"] == {"source_hidden": True}
    assert last == "```sh\nddpm-jax list\n```"


@pytest.mark.parametrize("name", make_notebooks.PAGES)
def test_a_notebook_is_what_its_page_makes(name):
    notebook = DOCS / "notebooks" / f"{name}.ipynb"
    assert notebook.read_text() == make_notebooks.make_notebook(name), (
        "python docs/make_notebooks.py makes the notebooks anew"
    )
