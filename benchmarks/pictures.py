"""A picture of each suite's report. matplotlib is imported when one is drawn, and not before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results import Report, Row, find
from benchmarks.timing import spread
from ddpm_jax.files import whole_file

__all__ = ["draw"]


def draw(report: Report, path: Path) -> None:
    """Writes the picture of `report` as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: no display is looked for, and no state is left behind.
    figure = Figure(layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    _PICTURES[report.suite](figure, report.rows)
    machine = report.machine
    figure.suptitle(
        f"{report.suite}: {machine['processor']}, {machine['cores']} cores"
        if machine["platform"] == "cpu"
        else f"{report.suite}: {machine['device_kind']}"
    )
    with whole_file(path) as file:
        figure.savefig(file, format="png")


def _forward(figure: Any, rows: list[Row]) -> None:
    points = list(
        dict.fromkeys((r.case["size"], r.case["batch"]) for r in rows if "batch" in r.case)
    )
    panels = _panels(figure, len(points))
    methods = list(dict.fromkeys(r.case["method"] for r in rows if {"t", "batch"} <= {*r.case}))
    for axes, (size, batch) in zip(panels, points, strict=True):
        here = find(rows, size=size, batch=batch)
        for index, method in enumerate(methods):
            matches = [row for row in find(here, method=method) if row.seconds]
            if matches:
                _line(axes, [float(r.case["t"]) for r in matches], matches, method, index)
        for row in find(here, method="x + y"):
            axes.axhline(row.median, color="gray", linewidth=0.8, linestyle=":", label="x + y")
        axes.set(title=f"{size}, batch {batch}", xlabel="t, steps", ylabel="seconds")
        axes.set(xscale="log", yscale="log")
    _legend(figure, panels)


def _data(figure: Any, rows: list[Row]) -> None:
    (axes,) = _panels(figure, 1)
    names = [row.case["source"] for row in rows]
    for shift, (name, label) in enumerate(
        (("images_per_second", "read"), ("step_images_per_second", "taken in by a step"))
    ):
        places = [index + 0.4 * shift for index in range(len(rows))]
        axes.barh(places, [row.numbers[name] for row in rows], height=0.4, label=label)
    axes.set(yticks=range(len(rows)), yticklabels=names, xscale="log", xlabel="images per second")
    axes.legend()


def _kl(figure: Any, rows: list[Row]) -> None:
    pairs = list(dict.fromkeys(r.case["pair"] for r in rows if "pair" in r.case))
    chains = list(dict.fromkeys(r.case["chain"] for r in rows if "chain" in r.case))
    methods = list(dict.fromkeys(r.case["method"] for r in rows if "pair" in r.case))
    panels = _panels(figure, len(pairs) + len(chains))
    for axes, pair in zip(panels, pairs, strict=False):
        for index, method in enumerate(methods):
            matches = find(rows, pair=pair, method=method)
            seconds = [row.numbers["seconds_per_dimension"] for row in matches]
            # An error of nothing has no logarithm.
            errors = [max(row.numbers["rms_error"], 1e-18) for row in matches]
            axes.plot(seconds, errors, "o-", color=f"C{index}", markersize=3, label=method)
        axes.set(title=pair, xlabel="seconds per dimension", ylabel="error, nats")
        axes.set(xscale="log", yscale="log")
    for axes, chain in zip(panels[len(pairs) :], chains, strict=True):
        ways = find(rows, chain=chain)
        products = [row.numbers["variance_seconds"] for row in ways]
        axes.barh([row.case["way"] for row in ways], products)
        axes.set(title=f"ELBO, {chain}", xlabel="variance x seconds, (bits/dim)^2 s", xscale="log")
        axes.invert_yaxis()
    _legend(figure, panels[: len(pairs)])


def _train_step(figure: Any, rows: list[Row]) -> None:
    points = list(dict.fromkeys((r.case["network"], r.case["batch"]) for r in rows))
    for axes, (network, batch) in zip(_panels(figure, len(points)), points, strict=True):
        matches = [row for row in find(rows, network=network, batch=batch) if row.seconds]
        _bars(axes, [str(row.case["noising"]) for row in matches], matches)
        axes.set(title=f"{network}, batch {batch}", xlabel="seconds per step")


def _peers(figure: Any, rows: list[Row]) -> None:
    timed = [row for row in rows if row.seconds]
    titles = {id(row): _peer_title(row.case) for row in timed}
    points = list(dict.fromkeys(titles.values()))
    for axes, title in zip(_panels(figure, len(points)), points, strict=True):
        matches = [row for row in timed if titles[id(row)] == title]
        _bars(axes, [f"{row.case['what']}, {row.case['by']}" for row in matches], matches)
        axes.set(title=title, xlabel="seconds")


def _relatives(figure: Any, rows: list[Row]) -> None:
    likelihoods = [row for row in rows if "bits" in row.numbers]
    bits, distances = _panels(figure, 2)
    names = [row.case["relative"] for row in likelihoods]
    bits.errorbar(
        [row.numbers["bits"] for row in likelihoods],
        names,
        xerr=[1.96 * row.numbers["standard_error"] for row in likelihoods],
        fmt="o",
        markersize=3,
    )
    bits.set(title="held-out images, 95 % intervals", xlabel="bits/dim")
    bits.invert_yaxis()
    for index, name in enumerate(names):
        line = "o-" if index < 10 else "s--"  # the colours begin again
        for row in find(rows, relative=name, sampler="ddim"):
            steps = [int(count) for count in row.numbers["distances"]]
            values = [value for value, *_ in row.numbers["distances"].values()]
            distances.plot(steps, values, line, color=f"C{index}", markersize=3, label=name)
    distances.set(title="DDIM", xlabel="steps", ylabel="Frechet distance")
    distances.set(xscale="log", yscale="log")
    _legend(figure, [distances])


def _peer_title(case: dict[str, Any]) -> str:
    return f"{case.get('network') or case['size']}, batch {case['batch']}"


def _accelerator(figure: Any, rows: list[Row]) -> None:
    exact, kernels = find(rows, part="exactness"), find(rows, part="kernels")
    timed = [row for row in rows if row.seconds]
    points = list(dict.fromkeys((row.case["part"], row.case.get("dtype")) for row in timed))
    count = bool(exact) + bool(kernels) + len(points)
    if count == 0:  # everything was left out
        return
    panels = iter(_panels(figure, count))
    if exact:
        axes = next(panels)
        errors = [max(row.numbers["relative_error"], 1e-9) for row in exact]
        axes.barh([str(row.case["what"]) for row in exact], errors)
        axes.axvline(exact[0].numbers["bound"], color="gray", linestyle=":")
        axes.set(title="exactness", xlabel="relative error", xscale="log")
        axes.invert_yaxis()
    for part, dtype in points:
        axes = next(panels)
        matches = [r for r in timed if (r.case["part"], r.case.get("dtype")) == (part, dtype)]
        _bars(
            axes,
            [f"{r.case['what']}, {r.case.get('by', '')}".strip(", ") for r in matches],
            matches,
        )
        axes.set(title=f"{part} {dtype or ''}", xlabel="seconds")
    if kernels:
        axes, dtype = next(panels), kernels[0].case["dtype"]
        matches = find(kernels, dtype=dtype)
        names = [f"{row.case['rank']} {row.numbers['name'][:24]}" for row in matches]
        axes.barh(names, [row.numbers["share"] for row in matches])
        axes.set(title=f"kernels of a step, {dtype}", xlabel="share of the time")
        axes.invert_yaxis()


def _scaling(figure: Any, rows: list[Row]) -> None:
    shown = {
        "argument_bytes": "state and batch",
        "peak_bytes": "peak memory",
        "sent_bytes": "sent in a step",
    }
    compiled, timed = [r for r in rows if "topology" in r.case], [r for r in rows if r.seconds]
    shown = shown if compiled else {}
    places = list(dict.fromkeys((r.case["channels"], r.case["on"]) for r in timed))
    panels = _panels(figure, len(shown) + len(places))
    for axes, (channels, where) in zip(panels[len(shown) :], places, strict=True):
        here = find(timed, channels=channels, on=where)
        _bars(axes, [f"{row.case['form']} {row.case['mesh of']}" for row in here], here)
        axes.set(title=f"{where}, {channels} channels", xlabel="seconds per step")
    if not shown:
        return
    panels = panels[: len(shown)]
    for axes, (name, title) in zip(panels, shown.items(), strict=True):
        for index, mesh in enumerate(dict.fromkeys(row.case["mesh"] for row in compiled)):
            points = [row.numbers for row in find(compiled, mesh=mesh) if row.numbers[name]]
            devices = [numbers["devices"] for numbers in points]
            sizes = [numbers[name] / 2**20 for numbers in points]
            axes.plot(devices, sizes, "o-", color=f"C{index}", markersize=3, label=mesh)
        axes.set(title=title, xlabel="devices", ylabel="MiB on each", xscale="log")
        axes.set_ylim(bottom=0.0)
    _legend(figure, panels)


_PICTURES: dict[str, Callable[[Any, list[Row]], None]] = {
    "forward": _forward,
    "kl": _kl,
    "data": _data,
    "train_step": _train_step,
    "peers": _peers,
    "scaling": _scaling,
    "relatives": _relatives,
    "accelerator": _accelerator,
}


def _panels(figure: Any, count: int) -> list[Any]:
    columns = min(count, 3)
    lines = -(-count // columns)
    figure.set_size_inches(max(4.5 * columns, 6.0), 3.6 * lines + 0.6)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    return panels[:count]


def _line(axes: Any, x: list[float], rows: list[Row], label: str, color: int) -> None:
    spreads = [spread(row.seconds) for row in rows]
    medians = [s.median for s in spreads]
    axes.plot(x, medians, "o-", color=f"C{color}", markersize=3, label=label)
    axes.fill_between(
        x, [s.lower for s in spreads], [s.upper for s in spreads], color=f"C{color}", alpha=0.2
    )


def _bars(axes: Any, labels: list[str], rows: list[Row]) -> None:
    spreads = [spread(row.seconds) for row in rows]
    below = [s.median - s.lower for s in spreads]
    above = [s.upper - s.median for s in spreads]
    axes.barh(labels, [s.median for s in spreads], xerr=[below, above], capsize=3)
    axes.invert_yaxis()


def _legend(figure: Any, panels: list[Any]) -> None:
    """One for all panels: what any of them shows, once."""
    known: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    figure.legend(
        known.values(), known.keys(), loc="outside lower center", ncols=4, fontsize="small"
    )
