"""docs/method.md names what exists, and its diagram shows the shapes that the networks have."""

import ast
import importlib.util
import inspect
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ratlip_hf.clip import image_features
from ratlip_hf.models import PRESETS, RATLIPDiscriminator, RATLIPGenerator
from ratlip_hf.models.blocks import Affine
from ratlip_hf.training.config import TrainingConfig, load_config

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ratlip_hf"
PAGE = ROOT / "docs" / "method.md"
DIAGRAM = ROOT / "docs" / "images" / "networks.svg"
TEXT = PAGE.read_text()
BATCH = 2


def table(heading: str, first_column: str) -> list[list[str]]:
    """Cells of the rows below the header that starts with `first_column`, in the section with this heading."""
    section = TEXT.split(f"\n## {heading}")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    start = next(number for number, row in enumerate(rows) if row[0] == first_column)
    return rows[start + 2 :]


@pytest.mark.parametrize("page", [PAGE, ROOT / "docs" / "map.md"], ids=lambda page: page.stem)
def test_cited_files_and_names_exist(page):
    text = page.read_text()
    cited = re.findall(r"`([\w/]+\.py): (\w+)`", text)
    assert len(cited) > 20
    for file, name in cited:
        tree = ast.parse((SOURCE / file).read_text())
        assert name in {node.name for node in tree.body if hasattr(node, "name")}, f"{file} defines no {name}"
    for path in re.findall(r"`([\w/]+/(?:\w+\.py)?)`", text):
        folders = (SOURCE, ROOT, SOURCE / "data" / "prepare")
        output_of_a_run = path in ("pipeline/", "discriminator/", "checkpoints/")
        assert output_of_a_run or any((folder / path).exists() for folder in folders), f"there is no {path}"
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links and all((page.parent / link).exists() for link in links)


def test_all_equations_and_sections_are_there():
    tags = re.findall(r"\\tag\{([^}]+)\}", TEXT)
    assert len(tags) == len(set(tags)) == TEXT.count("$$") // 2
    assert [tag for tag in tags if tag.isdigit()] == [str(number) for number in range(1, 9)]
    assert re.findall(r"^## (\d)\. ", TEXT, re.M) == [str(number) for number in range(1, 10)]
    assert len(TEXT.splitlines()) <= 350


def test_math_survives_markdown():
    """What GitHub refuses, or takes for Markdown before it sees mathematics."""
    for block, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", TEXT):
        formula = block or inline
        assert not re.search(r"\\operatorname|\\\\|\\[|,;{}!]|\}_\{|\*|\]\(", formula), formula
        assert formula.count("{") == formula.count("}")


def test_names_of_symbols_exist():
    known = {field for part in (RATLIPGenerator, RATLIPDiscriminator) for field in part.from_preset("tiny").config}
    known |= set(TrainingConfig.__dataclass_fields__) | {"sample", "logits"}
    for network in (RATLIPGenerator, RATLIPDiscriminator):
        known |= set(re.findall(r"\w+", inspect.getsource(network.forward)))
    known |= {"gamma", "beta", "forward"} if {"gamma", "beta"} <= dict(Affine(8, 4).named_children()).keys() else set()
    rows = table("1. ", "symbol")
    assert len(rows) > 12
    for _, meaning, names, _ in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert name in known, f"{meaning}: {name}"


@pytest.mark.parametrize("column, name", enumerate(("birds", "ratlip_released_birds", "galip_birds"), start=4))
def test_last_table_shows_what_configurations_hold(column, name, monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    config = load_config(["--config", name])
    parts = {"generator": RATLIPGenerator.from_preset, "discriminator": RATLIPDiscriminator.from_preset}
    with torch.device("meta"):
        options = {key: make(config.preset, **getattr(config, key)).config for key, make in parts.items()}
    assert f"`{name}` has `{config.preset}`" in TEXT.replace("\n", " ")
    checked = 0
    for row in table("9. ", "what"):
        option, shown = row[3].strip("`"), row[column]
        if not shown.startswith("`"):
            continue
        network, _, field = option.rpartition(".")
        value = options[network][field] if network else getattr(config, field)
        assert shown.strip("`") == (value if isinstance(value, str) else json.dumps(value)), f"{option} of {name}"
        checked += 1
    assert checked >= 12


def test_presets_and_recurrences_are_all_told():
    assert all(f"`{name}`" in TEXT for name in PRESETS)
    assert all(f"| `{name}`" in TEXT for name in ("across_layers", "per_layer", "batch_as_time"))


@pytest.fixture(scope="module")
def shapes() -> dict[str, list[int]]:
    """Output shapes of the modules of preset `ratlip`, and of the tensors in between, from a pass without numbers."""
    found = {}

    def record(name):
        return lambda module, inputs, output: found.__setitem__(name, output)

    with torch.device("meta"):
        generator = RATLIPGenerator.from_preset("ratlip")
        discriminator = RATLIPDiscriminator.from_preset("ratlip")
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=generator.config.text_dim))
        found["noise"] = torch.zeros(BATCH, generator.config.noise_dim)
        found["prompt_embeds"] = torch.zeros(BATCH, generator.config.text_dim)
    for network in (generator, discriminator):
        for name, module in network.named_modules():
            module.register_forward_hook(record(name))
    inputs = {}
    for name, module in (
        ("condition", generator.prompt_proj),
        ("code", generator.bridge[0]),
        ("tower", generator.from_grid),
        ("referee.conv1 input", discriminator.referee.conv1),
    ):
        module.register_forward_pre_hook(lambda module, args, name=name: inputs.__setitem__(name, args[0]))
    found["to_rgb"] = generator(found["noise"], found["prompt_embeds"], tower, return_dict=False)[0]
    found["image_features"] = image_features(tower, found["to_rgb"], discriminator.config.feature_layers)
    found["logits"] = discriminator(found["image_features"], found["prompt_embeds"], return_dict=False)[0]
    found["prompts"] = found["prompt_proj"].unflatten(1, (len(generator.config.prompt_layers), -1))
    states = found["states"]
    assert len(states) == 16
    found["state"] = states[-1]
    return {name: list(x.shape) for name, x in {**found, **inputs}.items() if isinstance(x, torch.Tensor)}


def test_diagram_shows_the_shapes_of_a_forward_pass(shapes):
    shown = 0
    for element in ElementTree.parse(DIAGRAM).iter("{http://www.w3.org/2000/svg}text"):
        words = " ".join("".join(element.itertext()).split())
        tensor = element.get("data-tensor")
        if tensor is None:
            assert "[B" not in words, f"a shape without data-tensor: {words}"
            continue
        sizes = [BATCH if size == "B" else int(size) for size in words.strip("[]").split(", ")]
        assert sizes == shapes[tensor], tensor
        shown += 1
    assert shown == 23


def test_symbol_table_shows_the_same_shapes(shapes):
    expected = {"$z$": "noise", "$[z, T]$": "condition", "$F$": "to_grid", "$P$": "prompts", "$G(z, T)$": "to_rgb"}
    expected |= {"$C(x)$": "image_features", "$D(C(x), T)$": "logits", "$T$ (also $s$)": "prompt_embeds"}
    rows = {row[0]: row[3] for row in table("1. ", "symbol")}
    for symbol, tensor in expected.items():
        assert rows[symbol] == str(["B", *shapes[tensor][1:]]).replace("'", ""), symbol


def test_diagram_is_what_its_script_writes():
    spec = importlib.util.spec_from_file_location("networks", ROOT / "docs" / "networks.py")
    networks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(networks)
    assert networks.document() == DIAGRAM.read_text()
    assert networks.document().splitlines()[3].count("#ffffff") == 1, "the first shape is a white panel"
