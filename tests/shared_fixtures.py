"""Fixtures that several test modules share: a tiny random CLIP, a generator and pipeline around it, a local Hub.
Tests run on one thread and cannot reach the network."""

import copy
import ipaddress
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before any Hugging Face library is imported: without it they knock at the Hub even for local folders.
os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import huggingface_hub
import pytest
import torch
from accelerate import Accelerator
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

import ratlip_hf
from generating import take_graphs
from hub_server import HubServer
from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator, RATLIPPipeline
from ratlip_hf.clip import FrozenCLIP
from ratlip_hf.export import onnx_export
from ratlip_hf.training import loop
from ratlip_hf.training.config import TrainingConfig
from ratlip_hf.training.optimization import Optimization
from ratlip_hf.training.step import Networks
from ratlip_hf.utils.locks import in_turn
from train_clip import build_tokenizer, small_clip_config
from training_toys import DISCRIMINATOR, GENERATOR

SENTENCES = ["a red bird with a blue crown", "a small yellow bird on a branch", "this bird has white wings"]
CLIP_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "projection_dim": 16}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first, so that processes that share the tests end together."""
    items.sort(key=lambda item: item.path.name not in ("test_whole_runs.py", "test_hub.py"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def signals_as_in_a_terminal() -> None:
    """Whoever runs the tests in the background may have had these ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def own_datasets_cache(tmp_path_factory) -> Iterator[None]:
    """Datasets that tests load leave nothing in the user's cache, and find nothing there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))
        yield


@pytest.fixture(autouse=True, scope="session")
def loopback_only() -> Iterator[None]:
    """Connections to any other machine raise."""

    def guarded(connect: Callable) -> Callable:
        def guard(self: socket.socket, address):
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
                raise RuntimeError(f"tests must not reach the network, but this one connects to {address}")
            return connect(self, address)

        return guard

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
        yield


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(scope="session")
def clip_model() -> CLIPModel:
    """A random CLIP: width 32, 3 layers, 32-px images in 4 x 4 patches, projection 16. Not to be modified."""
    config = small_clip_config(build_tokenizer(SENTENCES), image_size=32).to_dict()
    for part in ("text_config", "vision_config"):
        config[part].update(CLIP_SIZES)
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(**{**config, "projection_dim": CLIP_SIZES["projection_dim"]})).eval()


@pytest.fixture(scope="session")
def small_clip(clip_model) -> FrozenCLIP:
    """Tokenizer and towers of `clip_model`. Not to be modified."""
    towers = (
        CLIPTextModelWithProjection(clip_model.config.text_config),
        CLIPVisionModelWithProjection(clip_model.config.vision_config),
    )
    for tower in towers:
        tower.load_state_dict({name: clip_model.state_dict()[name] for name in tower.state_dict()})
    return FrozenCLIP(build_tokenizer(SENTENCES), *towers)


@pytest.fixture(scope="session")
def make_generator() -> Callable[..., RATLIPGenerator]:
    """Builds a generator for `small_clip` in eval mode; keywords replace values of its configuration."""

    def make(**overrides) -> RATLIPGenerator:
        sizes = {"sample_size": 32, "noise_dim": 100, "text_dim": 16, "clip_width": 32, "clip_grid": 4}
        widths = {"base_channels": 8, "bridge_channels": 8, "bridge_blocks": 2, "lstm_hidden": 8}
        config = {**sizes, **widths, "attention_groups": 2, "prompt_layers": (0, 1), **overrides}
        torch.manual_seed(0)
        return _disturbed(RATLIPGenerator(**config)).eval()

    return make


def _disturbed(model: torch.nn.Module) -> torch.nn.Module:
    """Move parameters and BatchNorm statistics off their start, where affines and gates are the identity."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.07 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def small_generator(make_generator) -> RATLIPGenerator:
    return make_generator()


@pytest.fixture
def pipe(small_clip, small_generator) -> RATLIPPipeline:
    """A pipeline of its own for each test."""
    towers = copy.deepcopy((small_clip.text_encoder, small_clip.image_encoder))
    return RATLIPPipeline(small_clip.tokenizer, *towers, small_generator)


@pytest.fixture(scope="session")
def torch_pipe(small_clip, make_generator) -> RATLIPPipeline:
    """As little as possible, for tracing takes its time, but with a coupled recurrence. Not to be modified."""
    configs = [copy.deepcopy(tower.config) for tower in (small_clip.text_encoder, small_clip.image_encoder)]
    for config in configs:
        config.num_hidden_layers = 1
    torch.manual_seed(0)
    towers = CLIPTextModelWithProjection(configs[0]).eval(), CLIPVisionModelWithProjection(configs[1]).eval()
    plain = {"bridge_blocks": 1, "prompt_layers": (0,), "bridge_conv": "plain", "image_conv": "plain"}
    return RATLIPPipeline(small_clip.tokenizer, *towers, make_generator(**plain, recurrence="batch_as_time"))


@pytest.fixture(scope="session")
def exported(torch_pipe, tmp_path_factory) -> Path:
    """The ONNX export of `torch_pipe`, which takes long: processes that share the tests share it, too."""
    folder = tmp_path_factory.getbasetemp() / "graphs"
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent.parent / "graphs"
    with open(f"{folder}.lock", "w") as lock, in_turn(lock.fileno()):
        if not folder.exists():
            onnx_export.export_onnx(torch_pipe, folder)
    return folder


@pytest.fixture
def instant_graphs(exported, monkeypatch):
    """Exports copy the graphs of `exported` instead of tracing for seconds."""
    take_graphs(exported, monkeypatch)


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    """A running local Hub, empty at the start of each module."""
    with HubServer() as server:
        yield server


@pytest.fixture
def online(hub, monkeypatch, tmp_path) -> HubServer:
    """Lets this process, which is offline like all tests, take the local server for the Hub."""
    settings = {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
    settings["HUGGINGFACE_CO_URL_TEMPLATE"] = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    settings |= {"HF_TOKEN_PATH": str(tmp_path / "token"), "HF_HUB_CACHE": str(tmp_path / "hub_cache")}
    for name, value in settings.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    # Behind functions such as `create_repo`, which diffusers uses, is one client made at import.
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    return hub


@pytest.fixture(scope="session")
def run_python() -> Callable[..., None]:
    """Runs a script in a fresh interpreter, with arguments and an environment; its failure is the test's."""

    def run(script: str, *arguments: object, env: dict[str, str] | None = None) -> None:
        env = {**(os.environ if env is None else env), "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join([str(Path(ratlip_hf.__file__).parents[1]), env.get("PYTHONPATH", "")])
        command = [sys.executable, "-c", script, *map(str, arguments)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture
def clip_dir(clip_model, small_clip, tmp_path) -> Path:
    clip_model.save_pretrained(tmp_path / "clip")
    small_clip.tokenizer.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def config(clip_dir, tmp_path, monkeypatch) -> TrainingConfig:
    """Four steps of four images, two checkpoints and a sample grid, which has one image of each caption here."""
    monkeypatch.setattr(loop, "_IMAGES_PER_CAPTION", 1)
    return TrainingConfig(
        generator=GENERATOR,
        discriminator=DISCRIMINATOR,
        clip=str(clip_dir),
        dataset_name="synthetic-birds",
        max_train_samples=12,
        max_train_images=16,
        train_batch_size=4,
        random_flip=False,
        checkpointing_steps=2,
        sample_every=16,
        logging_steps=1,
        range_weight=1.0,
        mixed_precision="no",
        output_dir=str(tmp_path / "run"),
    )


@pytest.fixture
def nets(small_clip, make_generator, config) -> Networks:
    generator = make_generator(noise_dim=8).train()
    torch.manual_seed(0)
    discriminator = RATLIPDiscriminator(**{**DISCRIMINATOR, "unused_shortcuts": True})
    moving = [Optimization(torch.optim.SGD(network.parameters(), lr=0.1)) for network in (generator, discriminator)]
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    return Networks(generator, discriminator, *moving, small_clip.image_encoder, accelerator, config)
