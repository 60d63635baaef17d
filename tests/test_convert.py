"""Original checkpoints to pipelines and back: nothing lost, nothing guessed in silence, nothing unsafe read.
Small networks in every wrapping; agreement with the original programs at full size is in `test_convert_parity`."""

import copy
import json
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from transformers import CLIPConfig, CLIPVisionModelWithProjection

from generating import PROMPT, dtypes
from originals import FAMILIES, FEATURE_LAYERS, original_content, small_networks, wrapped
from ratlip_hf import RATLIPDiscriminator, RATLIPGenerator, RATLIPPipeline
from ratlip_hf.cli.main import main
from ratlip_hf.clip import FrozenCLIP
from ratlip_hf.convert.folder import original_networks, save_conversion, save_original
from ratlip_hf.convert.original import convert_original, original_tower, read_original
from ratlip_hf.training.run import build_networks

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
ONE_FAMILY = pytest.mark.parametrize("family", ["ratlip"])  # where the other one takes the same way
NESTINGS = ("trainer", "networks", "module", "generator", "bare", "bare module")


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def contents(make_generator, small_clip):
    """What files of the families hold, with the CLIP tower. Not to be modified."""
    return {family: original_content(family, make_generator, small_clip.image_encoder) for family in FAMILIES}


@pytest.fixture
def networks(family, contents):
    """What a file of that family holds; its tensors are the test's own."""
    return copy.deepcopy(contents[family])


@pytest.fixture
def written(tmp_path):
    """Writes a content as a `.pth` and gives its path."""

    def write(content, name="original.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def convert(small_clip):
    def run(path, clip=small_clip, **options):
        return convert_original(path, clip, **{"feature_layers": FEATURE_LAYERS, **options})

    return run


@pytest.fixture
def generate(small_clip):
    def run(generator, count=3):
        torch.manual_seed(2)
        noise, text = torch.randn(3, 100)[:count], torch.randn(3, 16)[:count]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return generator(noise, text, small_clip.image_encoder).sample

    return run


def same(first: dict, second: dict) -> bool:
    """Same names, types, shapes and bytes."""
    return first.keys() == second.keys() and all(
        value.dtype == second[name].dtype
        and value.shape == second[name].shape
        and value.numpy().tobytes() == second[name].numpy().tobytes()
        for name, value in first.items()
    )


@pytest.mark.parametrize(
    ("nesting", "with_tower"), [*((nesting, True) for nesting in NESTINGS), ("networks", False), ("bare", False)]
)
def test_every_wrapping_gives_the_same_networks(
    nesting, with_tower, family, networks, make_generator, written, convert
):
    generator, discriminator = small_networks(family, make_generator)
    if not with_tower:
        networks["netG"] = {name: value for name, value in networks["netG"].items() if "CLIP_ViT" not in name}
    converted = convert(written(wrapped(networks, nesting)))
    assert converted.family == family
    assert converted.tower_compared is with_tower
    assert same(converted.generator.state_dict(), generator.state_dict())
    assert not any(p.is_meta for p in converted.generator.parameters())
    if nesting in ("generator", "bare", "bare module"):
        assert converted.discriminator is None
    else:
        assert same(converted.discriminator.state_dict(), discriminator.state_dict())
    assert converted.source.ignored == (["optimizers", "epoch"] if nesting in ("trainer", "module") else [])


@ONE_FAMILY
def test_files_of_old_torch_versions_are_read(networks, family, make_generator, convert, tmp_path):
    torch.save(wrapped(networks, "trainer"), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    converted = convert(tmp_path / "old.pth")
    assert same(converted.generator.state_dict(), small_networks(family, make_generator)[0].state_dict())


def test_options_are_told_by_the_shapes(family, networks, make_generator, written, convert):
    converted = convert(written(networks))
    generator, discriminator = small_networks(family, make_generator)
    # Where gates start means nothing once weights are there; GALIP has no states and no attention.
    unread = {"gate_init"} | ({"lstm_hidden", "attention_groups"} if family == "galip" else set())
    for network, made in ((converted.generator, generator), (converted.discriminator, discriminator)):
        expected = {name: made.config[name] for name in made.config if name[0] != "_" and name not in unread}
        if family == "ratlip" and network is converted.generator:
            expected["recurrence"] = "per_layer"
        assert {name: network.config[name] for name in expected} == expected
    assert converted.assumed["prompt_layers"] == (1, 2) and converted.assumed["clip_input"] == "released"
    assert "sample_size" not in converted.assumed  # three blocks are 32 px and nothing else


def test_what_shapes_leave_open_is_the_caller_s(make_generator, written, convert):
    networks = original_content("galip", make_generator, sample_size=256, base_channels=4)
    path = written(networks)
    assumed = convert(path)
    assert assumed.generator.config.sample_size == 224 and assumed.assumed["sample_size"] == 224
    told = convert(path, sample_size=256, prompt_layers=(0, 2))
    assert told.generator.config.sample_size == 256 and tuple(told.generator.config.prompt_layers) == (0, 2)
    assert not {"sample_size", "prompt_layers", "feature_layers"} & told.assumed.keys()
    for options in ({"sample_size": 128}, {"prompt_layers": (1, 2, 3)}, {"feature_layers": (1,)}):
        with pytest.raises(ValueError, match=next(iter(options))):
            convert(path, **options)


@pytest.mark.parametrize("form", ["plain", "bn_act", "bn_act_sa"])
@pytest.mark.parametrize("fusion", ["cat", "rat"])
def test_variants_between_the_families(form, fusion, make_generator, written, convert, generate):
    options = {"fusion": fusion, "bridge_conv": form, "image_conv": "plain"}
    generator = small_networks("ratlip", make_generator, **options)[0]
    converted = convert(written(original_networks(generator)))
    assert converted.family == ("galip" if (fusion, form) == ("cat", "plain") else "ratlip")
    assert torch.equal(generate(converted.generator, 1), generate(generator, 1))


def test_images_are_the_original_s_one_by_one_or_coupled(networks, family, make_generator, written, convert, generate):
    generator = small_networks(family, make_generator)[0]
    path = written(networks)
    apart, coupled = convert(path).generator, convert(path, coupled=True).generator
    assert torch.equal(generate(apart, 1), generate(generator, 1))
    assert torch.equal(generate(coupled, 3), generate(generator, 3))
    assert apart.couples_batch is False and coupled.couples_batch is (family == "ratlip")
    # Float rounding differs between batch sizes; coupling moves images by a hundred times as much and more.
    torch.testing.assert_close(generate(apart, 3)[:1], generate(apart, 1), rtol=0, atol=1e-4)
    if family == "ratlip":
        assert (generate(coupled, 3)[:1] - generate(coupled, 1)).abs().max() > 1e-2


def test_batch_coupling_is_warned_of(networks, family, written, small_clip):
    path = written(wrapped(networks, "generator"))
    for coupled in (False, True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            RATLIPPipeline.from_single_file(path, clip=small_clip, coupled=coupled)
        lines = [str(warning.message) for warning in caught if "batch" in str(warning.message)]
        assert len(lines) == (family == "ratlip")
        assert family == "galip" or ("this is kept" in lines[0]) is coupled


def test_from_single_file_is_the_converted_folder(networks, written, convert, small_clip, tmp_path):
    path = written(wrapped(networks, "trainer"))
    save_conversion(convert(path), tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipes = [RATLIPPipeline.from_single_file(path, clip=small_clip)]
    pipes += [cls.from_pretrained(tmp_path / "out") for cls in (RATLIPPipeline, DiffusionPipeline)]
    images = [
        pipe(PROMPT, num_images_per_prompt=2, generator=torch.Generator().manual_seed(0), output_type="np").images
        for pipe in pipes
    ]
    assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])


@pytest.mark.filterwarnings("ignore:the program that trained")
@ONE_FAMILY
def test_from_single_file_in_another_precision(networks, written, small_clip):
    path, clip = written(wrapped(networks, "generator")), copy.deepcopy(small_clip)
    assert dtypes(RATLIPPipeline.from_single_file(path, clip, dtype=torch.bfloat16)) == 3 * [torch.bfloat16]
    with pytest.raises(ValueError, match="pass a torch"):
        RATLIPPipeline.from_single_file(path, clip, dtype="bfloat16")


def test_half_precision_becomes_a_float32_file(family, make_generator, small_clip):
    parts = *small_networks(family, make_generator), copy.deepcopy(small_clip.image_encoder)
    for tensors in original_networks(*(part.half() for part in parts)).values():
        assert {value.dtype for value in tensors.values()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize(("with_tower", "coupled"), [(True, True), (False, False)])
def test_round_trip_is_byte_equal(with_tower, coupled, networks, written, convert, tmp_path):
    path = written(wrapped(networks, "module"))
    save_conversion(convert(path, coupled=coupled), tmp_path / "out")
    save_original(tmp_path / "out", tmp_path / "again.pth", with_tower)
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    if not with_tower:
        networks["netG"] = {name: value for name, value in networks["netG"].items() if "CLIP_ViT" not in name}
    assert again.keys() == networks.keys()
    assert all(same(again[net], tensors) for net, tensors in networks.items())


def test_weights_do_not_hang_on_the_file(networks, family, make_generator, written, convert):
    """Large files are mapped into memory while they are read; what is converted must have left them."""
    path = written(networks)
    converted = convert(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert same(converted.generator.state_dict(), small_networks(family, make_generator)[0].state_dict())


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the original layouts are not here")
def test_written_files_have_the_original_layout(family):
    """All 768 names and shapes of a full-size RATLIP and 544 of a GALIP, the CLIP tower included."""
    preset = {"ratlip": "ratlip-released", "galip": "galip"}[family]
    with torch.device("meta"):
        networks = (RATLIPGenerator.from_preset(preset), RATLIPDiscriminator.from_preset(preset))
        encoder = CLIPVisionModelWithProjection(CLIPConfig().vision_config)
    names = {
        network: {name: list(value.shape) for name, value in tensors.items()}
        for network, tensors in original_networks(*networks, encoder).items()
    }
    assert names == json.loads((GOLDEN / f"layout_{family}.json").read_text())


def test_original_names_and_shapes(make_generator, small_clip):
    """Some of them written out, as the other tests here write and read with the same map."""
    networks = original_content("ratlip", make_generator, small_clip.image_encoder)
    shapes = {
        "fc_code.weight": (128, 100),
        "mapping.FBlocks.1.fuse2.affine1.rnn.weight_ih_l0": (32, 116),
        "mapping.FBlocks.0.fuse1.affine0.fc_gamma.2.bias": (4,),
        "mapping.FBlocks.0.conv2.se.cweight": (1, 2, 1, 1),
        "mapping.fc_prompt.weight": (64, 116),
        "mapping.CLIP_ViT.positional_embedding": (17, 32),
        "mapping.CLIP_ViT.transformer.resblocks.2.attn.in_proj_weight": (96, 32),
        "mapping.CLIP_ViT.transformer.resblocks.2.mlp.c_proj.bias": (32,),
        "GBlocks.2.fuse1.affine0.fc_beta.linear2.weight": (16, 16),
        "GBlocks.2.c2.bn.num_batches_tracked": (),
        "to_rgb.1.weight": (3, 8, 3, 3),
    }
    assert {name: tuple(networks["netG"][name].shape) for name in shapes} == shapes
    assert not any(name.startswith("mapping.CLIP_ViT.ln_post") for name in networks["netG"])


def test_the_tower_s_joint_matrix_is_torch_s(small_clip):
    """OpenAI's CLIP attends with torch.nn.MultiheadAttention, whose order of query, key and value is torch's own."""
    prefix = "mapping.CLIP_ViT.transformer.resblocks.1.attn."
    weights = {k.removeprefix(prefix): v for k, v in original_tower(small_clip.image_encoder).items() if prefix in k}
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.load_state_dict(weights)
    ours = small_clip.image_encoder.vision_model.encoder.layers[1].self_attn
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, attention_mask=None)[0], theirs(x, x, x)[0])


class TestRefusals:
    def test_missing_unexpected_and_misshapen_tensors_are_all_listed(self, networks, written, convert):
        generator = networks["netG"]
        del generator["mapping.conv.bias"], generator["GBlocks.1.fuse1.affine0.fc_beta.linear2.weight"]
        generator["mapping.surplus"] = torch.zeros(1)
        generator["to_rgb.1.bias"] = torch.zeros(4)
        with pytest.raises(ValueError) as caught:
            convert(written(networks))
        assert "missing: mapping.conv.bias, GBlocks.1.fuse1.affine0.fc_beta.linear2.weight;" in str(caught.value)
        assert "unexpected: mapping.surplus" in str(caught.value)
        assert "of another shape: to_rgb.1.bias [4] instead of [3]" in str(caught.value)

    def test_the_discriminator_is_checked_too(self, networks, written, convert):
        del networks["netD"]["main.gamma"]
        networks["netC"]["joint_conv.4.weight"] = torch.zeros(1)
        with pytest.raises(ValueError, match=r"missing: netD.main.gamma; unexpected: netC.joint_conv.4.weight"):
            convert(written(networks))

    @pytest.mark.parametrize("name", ["to_rgb.1.weight", "mapping.fc_prompt.weight"])
    def test_a_file_without_the_tensors_that_tell_sizes(self, name, networks, written, convert):
        del networks["netG"][name]
        with pytest.raises(ValueError, match=f"sizes cannot be told.*{re.escape(name)}"):
            convert(written(networks))

    @ONE_FAMILY
    def test_half_a_discriminator(self, networks, written):
        del networks["netC"]
        with pytest.raises(ValueError, match="netD without netC"):
            read_original(written(networks))

    def test_the_other_family(self, family, networks, written, convert):
        other = "galip" if family == "ratlip" else "ratlip"
        with pytest.raises(ValueError, match=f"of the family {family}, not {other}: it has .*LSTM"):
            convert(written(networks), family=other)
        with pytest.raises(ValueError, match="family must be one of auto, ratlip, galip"):
            convert(written(networks), family="dfgan")
        assert convert(written(networks), family=family).family == family

    @pytest.mark.parametrize("content", [{"epoch": 3}, {"model": {"netD": {}}}, [1, 2], torch.zeros(2)])
    def test_a_file_without_a_generator(self, content, written):
        with pytest.raises(ValueError, match="no generator of RATLIP or GALIP"):
            read_original(written(content))

    @ONE_FAMILY
    def test_several_generators(self, networks, written):
        with pytest.raises(ValueError, match=r"several generators \(first, second\)"):
            read_original(written({"first": networks, "second": networks}))

    @ONE_FAMILY
    def test_entries_that_are_no_tensors(self, networks, written):
        networks["netG"]["note"] = "hello"
        with pytest.raises(ValueError, match="no tensors: note"):
            read_original(written(networks))

    @ONE_FAMILY
    @pytest.mark.parametrize(
        ("value", "name"),
        [(torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"), (os.system, r"\w+.system")],
        ids=["class", "function"],
    )
    def test_what_would_run_code_is_refused_by_name(self, value, name, networks, written):
        with pytest.raises(ValueError, match=f"refused: to read it Python would have to run {name};"):
            read_original(written({"model": networks, "extra": value}))

    @pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 broken"])
    def test_damaged_files(self, content, tmp_path):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(ValueError, match="not a PyTorch checkpoint"):
            read_original(tmp_path / "x.pth")

    @ONE_FAMILY
    def test_another_clip_than_the_one_in_the_file(self, networks, written, convert):
        networks["netG"]["mapping.CLIP_ViT.transformer.resblocks.1.ln_2.bias"][3] += 1e-3
        with pytest.raises(ValueError, match=r"1 of \d+ tensors differ, for example .*resblocks\.1\.ln_2\.bias"):
            convert(written(networks))

    @ONE_FAMILY
    def test_a_clip_of_another_depth(self, networks, written, convert):
        networks["netG"] = {k: v for k, v in networks["netG"].items() if "resblocks.2" not in k}
        with pytest.raises(ValueError, match=r"built otherwise.*missing: .*resblocks\.2"):
            convert(written(networks))

    @ONE_FAMILY
    def test_a_tower_in_half_precision_is_the_same_clip(self, networks, written, convert):
        for name, value in networks["netG"].items():
            if "CLIP_ViT" in name:
                networks["netG"][name] = value.half()
        converted = convert(written(networks))
        assert converted.tower_compared and "float16" in converted.warnings[-1]

    @ONE_FAMILY
    def test_a_clip_of_another_activation_or_width(self, networks, written, convert, small_clip, make_generator):
        encoder = type(small_clip.image_encoder)(small_clip.image_encoder.config)
        encoder.config.hidden_act = "gelu"
        with pytest.raises(ValueError, match="quick_gelu"):
            convert(written(networks), clip=FrozenCLIP(small_clip.tokenizer, small_clip.text_encoder, encoder))
        encoder.config.hidden_act = "quick_gelu"
        with pytest.raises(ValueError, match="famly mean nothing"):
            convert(written(networks), famly="galip")
        wider = original_networks(small_networks("galip", make_generator, text_dim=24)[0])
        with pytest.raises(ValueError, match="width 24, but memory makes them 16"):
            convert(written(wider))

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"upsampling": "bilinear"}, "upsampling bilinear"),
            ({"text_norm": 4.0}, "text_norm 4.0"),
            ({"text_center": True}, "text_center True"),
            ({"residual_scale": 1.0}, "residual_scale 1.0"),
            ({"recurrence": "across_layers"}, "across_layers"),
        ],
    )
    def test_what_the_originals_cannot_express(self, options, named, make_generator):
        with pytest.raises(ValueError, match=named):
            original_networks(make_generator(**{"recurrence": "per_layer", **options}))


class TestFolder:
    def test_training_goes_on_from_it(self, family, networks, written, convert, config, tmp_path):
        converted = convert(written(networks))
        save_conversion(converted, tmp_path / "out")
        config.pretrained_model_name_or_path = str(tmp_path / "out")
        generator, discriminator, fresh = build_networks(config)
        assert fresh == []
        assert same(generator.state_dict(), converted.generator.state_dict())
        assert same(discriminator.state_dict(), converted.discriminator.state_dict())
        assert discriminator.config.clip_input == "released"

    def test_the_record_says_how_to_use_it(self, family, networks, written, convert, tmp_path):
        save_conversion(convert(written(wrapped(networks, "trainer"))), tmp_path / "out")
        record = json.loads((tmp_path / "out" / "conversion.json").read_text())
        assert record["family"] == family and record["clip_input"] == "released"
        assert record["recurrence"] == {"ratlip": "per_layer", "galip": None}[family]
        assert record["assumed"]["upsampling"] == "nearest"
        assert record["not_converted"] == ["optimizers", "epoch"] and len(record["file_sha256"]) == 64

    @ONE_FAMILY
    def test_nothing_half_written_is_left(self, networks, written, convert, tmp_path, monkeypatch):
        converted = convert(written(networks))
        with monkeypatch.context() as patch, pytest.raises(OSError):
            patch.setattr(RATLIPDiscriminator, "save_pretrained", _full_disk)
            save_conversion(converted, tmp_path / "out")
        save_conversion(converted, tmp_path / "whole")
        with monkeypatch.context() as patch, pytest.raises(OSError):
            patch.setattr(torch, "save", _full_disk)
            save_original(tmp_path / "whole", tmp_path / "made" / "again.pth")
        assert {path.name for path in tmp_path.iterdir()} == {"original.pth", "whole"}

    @ONE_FAMILY
    def test_nothing_is_overwritten(self, networks, written, convert, tmp_path):
        path = written(networks)
        converted = convert(path)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes.txt").write_text("keep")
        with pytest.raises(ValueError, match="exists already"):
            save_conversion(converted, tmp_path / "mine")
        save_conversion(converted, tmp_path / "out")
        for target, message in ((path, "exists already"), (tmp_path / "mine", "is a folder")):
            with pytest.raises(ValueError, match=message):
                save_original(tmp_path / "out", target)
        assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


class TestCommand:
    OPTIONS = ("--feature_layers", "0", "1", "2")

    def test_there_and_back(self, family, networks, written, clip_dir, tmp_path, capsys):
        path, out, again = written(wrapped(networks, "module")), tmp_path / "out", tmp_path / "again.pth"
        assert main(["convert", str(path), str(out), "--clip", str(clip_dir), *self.OPTIONS]) == 0
        output = capsys.readouterr()
        assert f"family         {family}" in output.out and "equal to the tower in the file" in output.out
        assert "CLIP input     released" in output.out and "left out       optimizers, epoch" in output.out
        assert ("recurrence     per_layer" in output.out) is (family == "ratlip")
        assert ("warning: the program that trained" in output.err) is (family == "ratlip")
        assert main(["convert", "--to_original", str(out), str(again)]) == 0
        remarks = capsys.readouterr().err
        assert "prompt_layers is (1, 2), the original programs have (1, 2, 3, 4, 5, 6, 7, 8)" in remarks
        assert ("attention_groups is 2" in remarks) is (family == "ratlip")
        back = torch.load(again, weights_only=True)["model"]
        assert all(same(back[net], tensors) for net, tensors in networks.items())
        assert RATLIPGenerator.from_pretrained(out, subfolder="generator").config.prompt_layers == [1, 2]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["{tmp}/nowhere.pth", "{tmp}/out"], "cannot read {tmp}/nowhere.pth: No such file"),
            (["{tmp}", "{tmp}/out"], "cannot read {tmp}: Is a directory"),
            (["{tmp}/text.pth", "{tmp}/out"], "not a PyTorch checkpoint"),
            (["{tmp}/text.pth", "{tmp}/text.pth"], "exists already"),
            (["{tmp}/text.pth", "{tmp}/out", "--without_tower"], "--to_original only"),
            (["{tmp}/text.pth", "{tmp}/out", "--family", "dfgan"], "--family"),
            (["{tmp}", "{tmp}/x.pth", "--to_original"], "no model_index.json"),
            (["synthetic-birds", "{tmp}/x.pth", "--to_original"], "cannot express"),
            (["synthetic-birds", "{tmp}/x.pth", "--to_original", "--coupled"], "--coupled"),
        ],
    )
    def test_mistakes_end_in_one_line_and_exit_code_2(self, arguments, message, tmp_path, capsys):
        (tmp_path / "text.pth").write_text("hello")
        assert main(["convert", *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message.format(tmp=tmp_path) in error
        assert [path.name for path in tmp_path.iterdir()] == ["text.pth"]


def _full_disk(*_, **__):
    raise OSError(28, "No space left on device")
