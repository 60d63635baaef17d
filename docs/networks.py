"""Writes docs/images/networks.svg: both networks of the `ratlip` preset with the shapes of their tensors.
Usage: python docs/networks.py. tests/test_method.py compares every shape with a forward pass."""

from pathlib import Path
from xml.sax.saxutils import escape

TARGET = Path(__file__).parent / "images" / "networks.svg"
WIDTH, HEIGHT = 1200, 1262
INK, MUTED, FLOW, RECURRENCE, STATE = "#1f2328", "#57606a", "#424a53", "#c2410c", "#7c3aed"
TRAINED, FROZEN = ("#dbeafe", "#2563eb"), ("url(#hatch)", "#6e7781")
SYMBOLS = {"z": ("#fef3c7", "#b45309"), "T": ("#dcfce7", "#15803d"), "[z, T]": ("#ecfccb", "#4d7c0f")}

parts: list[str] = []


def box(x, y, width, height, label="", colours=TRAINED, size=15, radius=6, dashed=False, bold=False) -> None:
    """A rectangle with centred lines of text."""
    fill, stroke = colours
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    parts.append(
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{fill}" stroke="{stroke}" '
        f'stroke-width="1.5"{dash}/>'
    )
    lines = label.split("\n") if label else []
    for number, line in enumerate(lines):
        middle = y + height / 2 + (number - (len(lines) - 1) / 2) * (size + 3)
        text(x + width / 2, middle + 0.35 * size, line, size, "middle", bold=bold)


def text(x, y, content, size=15, anchor="start", colour=INK, bold=False) -> None:
    """One line of text, `y` at its baseline."""
    weight = ' font-weight="bold"' if bold else ""
    parts.append(
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{weight}>'
        f"{escape(content)}</text>"
    )


def upright(x, y, content, size=13) -> None:
    """Text centred at a point, from bottom to top."""
    parts.append(
        f'<text transform="translate({x + 0.35 * size:g} {y}) rotate(-90)" font-size="{size}" text-anchor="middle" '
        f'fill="{INK}">{escape(content)}</text>'
    )


def shape(x, y, tensor, dims, colour=INK, anchor="middle") -> None:
    """The shape of a tensor, its last line at `y`. Shapes of four and more sizes take two lines.

    `tensor` is the module whose output it is, or another name that the test knows.
    """
    sizes = dims.split(", ")
    lines = [dims] if len(sizes) < 4 else [", ".join(sizes[:-2]) + ",", ", ".join(sizes[-2:])]
    spans = [
        f'<tspan x="{x:g}" y="{y - 18 * (len(lines) - 1 - number):g}">{line}</tspan>'
        for number, line in enumerate(lines)
    ]
    parts.append(
        f'<text data-tensor="{tensor}" font-size="15" font-weight="bold" text-anchor="{anchor}" fill="{colour}">'
        f"{' '.join(spans)}</text>"
    )


def arrow(*points, colour=FLOW, width=2.0, head=True) -> None:
    """A line through points, with a head at the last one."""
    places = " ".join(f"{x:g},{y:g}" for x, y in points)
    marker = f' marker-end="url(#head-{colour[1:]})"' if head else ""
    parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width:g}"{marker}/>')


def dot(x, y, colour=FLOW) -> None:
    """Where a line branches."""
    parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>')


def symbol(x, y, name) -> int:
    """A named input, centred at height y; returns its right edge."""
    width = {"z": 34, "T": 34, "[z, T]": 58}[name]
    box(x, y - 15, width, 30, name, SYMBOLS[name], 16, 15, bold=True)
    return x + width


def circle(x, y, sign) -> None:
    """An operation of two tensors."""
    parts.append(f'<circle cx="{x}" cy="{y}" r="16" fill="#ffffff" stroke="{FLOW}" stroke-width="2"/>')
    text(x, y + 7, sign, 20, "middle", bold=True)


def draw_inputs(y) -> None:
    """Row 1: what the symbols z, T and [z, T] are."""
    box(36, y - 22, 84, 44, "prompt", ("#ffffff", MUTED))
    arrow((120, y), (158, y))
    box(160, y - 26, 150, 52, "CLIP text tower\n(frozen)", FROZEN)
    arrow((310, y), (404, y))
    shape(354, y - 9, "prompt_embeds", "[B, 512]")
    symbol(406, y, "T")
    box(530, y - 22, 84, 44, "noise", ("#ffffff", MUTED))
    arrow((614, y), (704, y))
    shape(656, y - 9, "noise", "[B, 100]")
    symbol(706, y, "z")
    symbol(806, y, "z")
    arrow((symbol(848, y, "T"), y), (908, y))
    box(910, y - 22, 66, 44, "concat", ("#ffffff", MUTED))
    arrow((976, y), (1066, y))
    shape(1020, y - 9, "condition", "[B, 612]")
    symbol(1068, y, "[z, T]")


def draw_bridge(y) -> tuple[int, int]:
    """Row 2: the bridge under its LSTM; returns where its output leaves."""
    text(262, y, "One LSTM cell for the whole bridge: affine layer t is time step t (Eqs. 3-7)", 16, bold=True)
    text(262, y + 22, "T enters every step; the state goes from layer to layer", 15, colour=RECURRENCE)
    bus, cells, affines = y + 46, y + 62, y + 162
    arrow((symbol(206, bus, "T"), bus), (1123, bus), colour=SYMBOLS["T"][1], head=False)

    arrow((symbol(36, cells + 17, "z"), cells + 17), (86, cells + 17))
    box(88, cells - 4, 80, 42, "2 linear\nlayers", size=14)
    arrow((168, cells + 17), (292, cells + 17), colour=RECURRENCE, width=3)
    text(176, cells + 40, "h₀, c₀", 15, colour=RECURRENCE)
    shape(256, cells + 40, "states.initial_hidden", "[B, 64]", RECURRENCE)
    text(198, cells + 66, "hₜ", 15, colour=STATE)
    shape(256, cells + 66, "state", "[B, 64]", STATE)

    arrow((symbol(36, affines + 35, "z"), affines + 35), (84, affines + 35))
    box(86, affines + 12, 74, 46, "linear")
    arrow((160, affines + 35), (254, affines + 35))
    shape(206, affines + 26, "code", "[B, 64, 7, 7]")

    previous = None
    for block in range(4):
        left = 262 + 226 * block
        box(left - 6, affines - 14, 209, 98, colours=("#eff6ff", TRAINED[1]))
        box(left, affines, 22, 70)
        upright(left + 11, affines + 35, "conv 3x3")
        box(left + 102, affines, 22, 70)
        upright(left + 113, affines + 35, "SAConv")
        for place, offset in enumerate((27, 67, 129, 169)):
            step, x = 4 * block + place + 1, left + offset
            if previous is not None:
                arrow((previous, cells + 17), (x, cells + 17), colour=RECURRENCE, width=3)
            box(x, cells, 28, 34, "L", ("#ffedd5", RECURRENCE), 15, bold=True)
            arrow((x + 14, bus), (x + 14, cells), colour=SYMBOLS["T"][1], width=1.5)
            arrow((x + 14, cells + 34), (x + 14, affines), colour=STATE)
            box(x, affines, 28, 70, str(step), ("#ede9fe", STATE), 15, bold=True)
            previous = x + 28
        text(left + 98, affines + 104, f"bridge block {block + 1}: x + residual", 15, "middle", MUTED)
        if block < 3:
            arrow((left + 203, affines + 35), (left + 220, affines + 35))
    return left + 203, affines + 35


def draw_layers(x, y, height, count, pitch, width) -> list[float]:
    """Layers of the frozen tower; returns the middle of each."""
    middles = []
    for layer in range(count):
        left = x + pitch * layer
        box(left, y, width, height, str(layer), ("#ffffff", FROZEN[1]), 14)
        middles.append(left + width / 2)
    return middles


def draw_clip_block(y, entry) -> tuple[int, int]:
    """Row 3: the frozen image tower, prompted from inside; returns where the output leaves."""
    arrow(entry, (1168, entry[1]), (1168, y - 56), (50, y - 56), (50, y + 41))
    shape(140, y - 65, "bridge.3", "[B, 64, 7, 7]")

    prompts, top = y - 20, y + 20
    arrow((symbol(72, prompts, "[z, T]"), prompts), (146, prompts))
    box(148, prompts - 18, 66, 36, "linear")
    layers = draw_frozen_tower(214, top, 560)
    arrow((214, prompts), (layers[8], prompts), head=False)
    shape(272, prompts - 8, "prompts", "[B, 8, 768]")
    for layer in layers[1:9]:
        arrow((layer, prompts), (layer, top + 16), width=1.5)
    text(layers[8] + 14, prompts - 2, "one prompt token each for layers 1 to 8,", 14, colour=MUTED)
    text(layers[8] + 14, prompts + 15, "appended before the layer, dropped after it", 14, colour=MUTED)

    middle = top + 51
    box(34, middle - 30, 84, 60, "conv 5x5")
    arrow((118, middle), (214, middle))
    shape(164, middle - 9, "to_grid", "[B, 768, 7, 7]")
    arrow((774, middle), (882, middle))
    shape(826, middle - 9, "tower", "[B, 768, 7, 7]")
    text(826, middle + 20, "x 0.1", 15, "middle")
    dot(186, middle)
    arrow((186, middle), (186, middle + 108), (900, middle + 108), (900, middle + 18))
    circle(900, middle, "+")
    arrow((916, middle), (948, middle))
    box(950, middle - 30, 84, 60, "conv 5x5")
    return 1034, middle


def draw_frozen_tower(x, y, width) -> list[float]:
    """The tower of the generator, all twelve layers."""
    box(x, y, width, 140, colours=FROZEN)
    box(x + 14, y + 16, 66, 70, "class\ntoken,\nposition", ("#ffffff", FROZEN[1]), 13)
    text(x + width / 2, y + 109, "frozen CLIP image tower, layers 0 to 11", 15, "middle", bold=True)
    text(
        x + width / 2, y + 130, "borrowed: an argument of forward, never saved with the generator", 14, "middle", MUTED
    )
    return draw_layers(x + 92, y + 16, 70, 12, 38, 28)


def draw_image_generator(y, entry) -> int:
    """Row 4: the image blocks and the RGB convolution; returns the middle of the image box."""
    arrow(entry, (1168, entry[1]), (1168, y - 92), (28, y - 92), (28, y), (118, y))
    shape(76, y - 9, "from_grid", "[B, 512, 7, 7]")
    outputs = (
        "[B, 512, 8, 8]",
        "[B, 512, 16, 16]",
        "[B, 512, 32, 32]",
        "[B, 256, 64, 64]",
        "[B, 128, 128, 128]",
        "[B, 64, 224, 224]",
        "[B, 3, 224, 224]",
    )
    x, bus = 120, y + 74
    text(
        120,
        y - 66,
        "Image block: resize (nearest), then shortcut + [2 affines, SAConv, 2 affines, SAConv]",
        15,
        colour=MUTED,
    )
    text(130, bus + 22, "every affine layer reads [z, T] directly (CAT): no recurrence here", 15, colour=MUTED)
    arrow((symbol(36, bus, "[z, T]"), bus), (x + 5 * 140 + 26, bus), colour=SYMBOLS["[z, T]"][1], head=False)
    for block, dims in enumerate(outputs):
        last = block == len(outputs) - 1
        half = 24 + 5 * block if not last else 30
        box(x, y - half, 52, 2 * half, "LReLU\nconv\n3x3" if last else f"block\n{block + 1}", size=14)
        if not last:
            arrow((x + 26, bus), (x + 26, y + half), colour=SYMBOLS["[z, T]"][1], width=1.5)
        arrow((x + 52, y), (x + 138, y))
        shape(x + 94, y - 9, "to_rgb" if last else f"blocks.{block}", dims)
        x += 140
    box(x, y - 30, 70, 60, "image", ("#ffffff", INK), 16, bold=True)
    return x + 35


def draw_discriminator(y, image, bottom) -> None:
    """Last row: features of the frozen tower, extractor and head."""
    arrow((image, bottom), (image, y - 122), (72, y - 122), (72, y - 32))
    text(84, y - 98, "a generated image, or a real one", 15, colour=MUTED)
    box(30, y - 30, 84, 60, "prepare\npixels", ("#ffffff", MUTED))
    arrow((114, y), (138, y))
    box(140, y - 58, 390, 138, colours=FROZEN)
    text(335, y + 70, "the same frozen tower", 15, "middle", bold=True)
    box(152, y - 20, 74, 66, "patches,\nclass,\nposition", ("#ffffff", FROZEN[1]), 13)
    layers = draw_layers(236, y - 20, 66, 9, 32, 25)
    for layer in (1, 4, 8):
        arrow((layers[layer], y - 20), (layers[layer], y - 40), head=False)
        if layer > 1:
            dot(layers[layer], y - 40)
    arrow((layers[1], y - 40), (626, y - 40))
    shape(578, y - 49, "image_features", "[B, 3, 768, 7, 7]")
    text(142, y - 66, "patch tokens after layers 1, 4 and 8", 14, colour=MUTED)

    box(628, y - 66, 86, 96, "Feature\nExtractor")
    arrow((714, y), (786, y))
    shape(748, y - 9, "extractor", "[B, 512, 7, 7]")
    box(788, y - 20, 58, 40, "concat", ("#ffffff", MUTED))
    symbol(800, y + 80, "T")
    arrow((817, y + 65), (817, y + 22), colour=SYMBOLS["T"][1])
    text(844, y + 85, "repeated at all 7 x 7 positions", 14, colour=MUTED)
    arrow((846, y), (928, y))
    shape(884, y - 9, "referee.conv1 input", "[B, 1024, 7, 7]")
    box(930, y - 30, 54, 60, "conv\n4x4")
    arrow((984, y), (1058, y))
    shape(1018, y - 9, "referee.conv1", "[B, 128, 4, 4]")
    box(1060, y - 30, 54, 60, "conv\n4x4")
    arrow((1114, y), (1166, y))
    shape(1137, y - 9, "logits", "[B]")
    text(1166, y + 22, "logit", 15, "end")


def draw_legend(y) -> None:
    """What colours mean."""
    box(36, y - 13, 26, 26)
    text(70, y + 5, "trained")
    box(150, y - 13, 26, 26, colours=FROZEN)
    text(184, y + 5, "frozen CLIP, one copy for all")
    box(420, y - 13, 26, 26, "L", ("#ffedd5", RECURRENCE), bold=True)
    arrow((450, y), (480, y), colour=RECURRENCE, width=3)
    text(488, y + 5, "recurrence across layers")
    box(688, y - 13, 26, 26, "t", ("#ede9fe", STATE), bold=True)
    text(722, y + 5, "affine layer t, modulated by hₜ")
    text(1164, y + 5, "B: batch size", anchor="end")


def document() -> str:
    """The whole diagram."""
    parts.clear()
    box(1, 1, WIDTH - 2, HEIGHT - 2, colours=("#ffffff", "#d0d7de"), radius=12)
    box(14, 14, WIDTH - 28, 896, colours=("#fbfdff", "#d0d7de"), radius=10)
    text(36, 46, "Generator", 22, bold=True)
    text(176, 46, "preset ratlip: 224 x 224 px, CLIP ViT-B/32", 16, colour=MUTED)
    draw_inputs(92)
    leaves = draw_bridge(150)
    leaves = draw_clip_block(510, leaves)
    image = draw_image_generator(802, leaves)
    box(14, 922, WIDTH - 28, 282, colours=("#fffdfb", "#d0d7de"), radius=10)
    draw_discriminator(1090, image, 832)
    text(36, 954, "Discriminator", 22, bold=True)
    draw_legend(1232)

    heads = "".join(
        f'<marker id="head-{colour[1:]}" markerUnits="userSpaceOnUse" markerWidth="10" markerHeight="10" refX="8.5" '
        f'refY="4.5" orient="auto"><path d="M0,0 L9,4.5 L0,9 z" fill="{colour}"/></marker>'
        for colour in dict.fromkeys((FLOW, RECURRENCE, STATE, *(stroke for _, stroke in SYMBOLS.values())))
    )
    hatch = (
        '<pattern id="hatch" width="9" height="9" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="9" height="9" fill="#eaeef2"/><rect width="3" height="9" fill="#dfe4ea"/></pattern>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">\n"
        "<title>Generator and discriminator of RATLIP with the shapes of their tensors</title>\n"
        f"<defs>{heads}{hatch}</defs>\n" + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    TARGET.write_text(document())
