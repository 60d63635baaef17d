"""A record of `ratlip benchmark` as tables, for the terminal and for docs/performance.md.
Owns the columns; every figure comes from the record."""

from collections.abc import Callable, Mapping

from ..utils.display import as_markdown, as_size


def describe(record: Mapping) -> str:
    """The whole record as text."""
    texts = [describe_machine(record["machine"])]
    texts += [f"{title}\n\n{table(record[part])}" for part, (title, table) in _PARTS.items() if part in record]
    return "\n\n".join(texts)


def describe_machine(machine: Mapping) -> str:
    """One line: date, device, threads, versions."""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "diffusers"))
    return (
        f"{machine['date']}, {machine['device']}, {machine['threads']} threads of {machine['cores']} cores, {versions}"
    )


def drawing_table(drawing: Mapping) -> str:
    """A line for each path and batch size."""
    head = ["batch", "path", "median s", "range s", "images/s", "faster", "times the floor", "max error / range"]
    head += ["PSNR dB", "peak memory", "of plain"]
    return as_markdown(head, [_drawing_cells(row) for row in drawing["rows"]])


def _drawing_cells(row: Mapping) -> list[str]:
    cells = [str(row["batch"]), row["path"], *_times(row), f"{row['batch'] / row['median_s']:.3g}"]
    cells += [f"{row['faster']:.2f}x", f"{row['of_floor']:.2f}"]
    cells += [
        f"{row['max_error']:.1e}" if "psnr_db" in row else "-",
        f"{row['psnr_db']:.1f}" if "psnr_db" in row else "-",
    ]
    return [*cells, _size(row["peak_bytes"]), _share(row["of_plain_peak"])]


def operations_table(drawing: Mapping) -> str:
    """Where the time of each path goes, at batch 1."""
    body = [
        [path, ", ".join(f"{name} {share:.0%}" for name, share in shares.items())]
        for path, shares in drawing["operations"].items()
    ]
    return as_markdown(["path", "share of the time by operator"], body)


def floor_table(drawing: Mapping) -> str:
    """Work of each path, and the rate of a large matrix product, which together are the floor."""
    rates = drawing["matrix_product_rate"]
    body = [
        [
            path,
            f"{2 * work / 1e9:.1f}",
            f"{2 * rates[path.split()[1]] / 1e9:.0f}",
            f"{work / rates[path.split()[1]]:.4f}",
        ]
        for path, work in drawing["multiply_adds_per_image"].items()
    ]
    return as_markdown(["path", "GFLOP per image", "GFLOP/s of a matrix product", "floor, s per image"], body)


def training_table(training: Mapping) -> str:
    """A line for each way to take a step."""
    head = ["step", "median s", "range s", "images/s", "faster", "peak memory", "of released"]
    body = [
        [
            row["path"],
            *_times(row),
            f"{row['images_per_s']:.3g}",
            f"{row['faster']:.2f}x",
            _size(row["peak_bytes"]),
            _share(row["of_released_peak"]),
        ]
        for row in training["rows"]
    ]
    return as_markdown(head, body)


def diffusion_table(diffusion: Mapping) -> str:
    """This model beside one-step diffusion, one image at a time."""
    head = ["model", "pixels", "parameters", "median s", "range s", "faster than diffusion"]
    body = [
        [row["model"], str(row["size"]), f"{row['parameters'] / 1e6:.0f} M", *_times(row), f"{row['faster']:.1f}x"]
        for row in diffusion["rows"]
    ]
    return as_markdown(head, body)


def start_up_table(start_up: Mapping) -> str:
    """Seconds until something works."""
    names = {
        "import": "`import ratlip_hf` beyond torch and diffusers",
        "generate": "`ratlip generate` on the bundled model, one image, all in all",
        "image": "`pipe(sentence)` with the bundled model, 64 px",
        "optimized image": "the same after `pipe.optimize()`, a sentence seen before",
    }
    return as_markdown(["what", "median s"], [[text, f"{start_up[name]:.3f}"] for name, text in names.items()])


_PARTS: dict[str, tuple[str, Callable[[Mapping], str]]] = {
    "drawing": ("Drawing", lambda part: "\n\n".join(t(part) for t in (drawing_table, floor_table, operations_table))),
    "diffusion": ("Beside one-step diffusion", diffusion_table),
    "training": ("Training steps", training_table),
    "start_up": ("Start-up", start_up_table),
}


def _times(row: Mapping) -> list[str]:
    return [f"{row['median_s']:.3g}", f"{row['least_s']:.3g}-{row['greatest_s']:.3g}"]


def _size(count: int | None) -> str:
    return as_size(count) if count else "does not fit"


def _share(value: float | None) -> str:
    return f"{value:.2f}" if value else "-"
