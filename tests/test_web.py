"""What `ratlip export web` promises, without a browser: the folder, its server, and that the page's JavaScript, run by
node, has torch's noise, the tokenizer's ids, the pipeline's images, and lines of Python that make them again."""

import gzip
import json
import random
import re
import shutil
import subprocess
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from generating import close, take_graphs
from ratlip_hf import RATLIPPipeline, bundled
from ratlip_hf.cli.main import main
from ratlip_hf.export.repository import WEB_RECORD
from ratlip_hf.latents import prepare_latents, slerp
from ratlip_hf.synthetic_birds.attributes import BACKGROUNDS, DIRECTIONS, PERCHES, BirdAttributes, sample_attributes
from ratlip_hf.synthetic_birds.captions import any_caption, named_scene
from ratlip_hf.web.export import CSP, KINDS, MODEL_RECORD, PAGE, WASM, export_web, read_description
from ratlip_hf.web.server import make_server

LIMIT = 16e6  # bytes that a visitor fetches
ODD = ["", "  two   spaces ", "é́ Ångström", "☃ snowman", "don't", "A RED BIRD!", 'quote " and \\', 60 * "very long "]
PROMPT, OTHER = 'a "red" bird with wings', "a white bird"
REQUESTS = [
    {"prompt": PROMPT, "seed": 0, "truncation": None},
    {"prompt": PROMPT, "seed": 7, "truncation": 0.7},
    {"prompt": PROMPT, "seed": 3, "truncation": None, "toPrompt": OTHER, "mix": 0.25},
    {"prompt": PROMPT, "seed": 3, "truncation": 1.1, "toSeed": 4, "mix": 0.6},
]
# Prompt, word, what takes its place, and the prompt afterwards.
EXCHANGES = [
    ("a bird with an orange crown", "orange", "red", "a bird with a red crown"),
    ("A red bird at sunset", "red", "orange", "An orange bird at sunset"),
    ("a redwing, On a Rock.", "On a Rock", "on the grass", "a redwing, on the grass."),
]
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


@pytest.fixture(scope="module")
def site(torch_pipe, exported, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("web") / "site"
    with pytest.MonkeyPatch.context() as patch:
        take_graphs(exported, patch)
        export_web(torch_pipe, folder, "user/tiny")
    return folder


def run_node(script: str, folder: Path = PAGE):
    """What an ES module that imports from the page's folder gives to `show`, as JSON."""
    script = f"const show = (value) => console.log(JSON.stringify(value));\n{script}"
    command = ["node", "--input-type=module", "--eval", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class TestFolder:
    def test_it_holds_page_model_and_libraries_and_little_else(self, site):
        own = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()}
        model = {"model.json", "tokenizer.json", "tokenizer_config.json", "text_encoder.onnx.gz", "generator.onnx.gz"}
        wanted = {path for path in own if "package" not in path} | {f"model/{name}" for name in model} | {WEB_RECORD}
        assert {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()} == wanted

    def test_what_a_visitor_fetches_besides_the_bundled_weights_leaves_room_for_them(self):
        others = sum(path.stat().st_size for path in PAGE.rglob("*") if path.is_file())
        weights = sum(path.stat().st_size for path in bundled.model_dir().rglob("*.safetensors"))
        assert others + weights < LIMIT

    def test_the_page_allows_itself_nothing_from_elsewhere(self, site):
        index = (site / "index.html").read_text()
        assert f'content="{CSP}"'.replace("'", "&#x27;") in index
        assert CSP.startswith("default-src 'none'") and "unsafe-inline" not in CSP and "http" not in CSP
        assert not re.findall(r"<script(?! type=\"module\" src=)|<style|\sstyle=|\son\w+=|\$\w", index)
        for path in [*site.glob("*.js"), site / "index.html", site / "style.css"]:
            assert "//" not in re.sub(r"(^|\s)//.*", "", path.read_text()), path.name

    def test_words_in_the_page_are_escaped(self, torch_pipe, instant_graphs, tmp_path):
        export_web(torch_pipe, tmp_path / "site", 'user/<img src=x>"')
        assert "user/&lt;img src=x&gt;&quot;" in (tmp_path / "site/index.html").read_text()

    def test_only_an_earlier_export_is_replaced(self, torch_pipe, instant_graphs, tmp_path):
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "letter.txt").write_text("keep")
        with pytest.raises(ValueError, match="no web export"):
            export_web(torch_pipe, mine, "user/tiny")
        assert (mine / "letter.txt").read_text() == "keep"
        again = tmp_path / "again"
        for _ in range(2):
            export_web(torch_pipe, again, "user/tiny")
        (again / "style.css").write_text("body {}")
        with pytest.raises(ValueError, match="was changed"):
            export_web(torch_pipe, again, "user/tiny")

    def test_the_bundled_model_is_called_by_its_name(self, torch_pipe, instant_graphs, tmp_path):
        described = export_web(torch_pipe, tmp_path / "site", bundled.model_dir())
        assert described["model"] == bundled.NAME and described["examples"]
        assert str(bundled.model_dir()) not in (tmp_path / "site" / MODEL_RECORD).read_text()
        assert "a bird appears" in (tmp_path / "site/index.html").read_text()

    def test_libraries_are_those_of_the_lock_file(self):
        lock = json.loads((PAGE / "libraries/package-lock.json").read_text())
        packages = {name.removeprefix("node_modules/"): entry for name, entry in lock["packages"].items() if name}
        assert all(entry["integrity"] and "resolved" not in entry for entry in packages.values())
        named = re.search(r"ONNX Runtime Web v([\d.]+)", (PAGE / "libraries/ort.wasm.bundle.min.mjs").read_text())
        assert named[1] == packages["onnxruntime-web"]["version"]
        assert gzip.decompress((PAGE / WASM).read_bytes())[:4] == b"\0asm"

    def test_places_are_such_as_the_model_s_captions_use(self):
        fields = {"perch": PERCHES, "place": BACKGROUNDS, "direction": DIRECTIONS}
        for kind, words in fields.items():
            field = {"place": "background"}.get(kind, kind)
            for phrase, word in zip(KINDS[kind], words, strict=True):
                caption = f"a bird facing {phrase}" if kind == "direction" else f"a bird {phrase}"
                assert field in named_scene(caption, BirdAttributes("red", "red", "red", **{field: word}))


@needs_node
class TestJavaScript:
    def test_noise_is_torch_s(self):
        cases = [
            (count, seed, truncation)
            for count in (1, 5, 15, 16, 20, 32, 100, 250)
            for seed in (0, 7, 2**32 - 1, 2**32 + 5)
            for truncation in (None, 0.7)
        ]
        script = f'import {{ latents }} from "./noise.js"; show({json.dumps(cases)}.map((c) => [...latents(...c)]));'
        for (count, seed, truncation), row in zip(cases, run_node(script), strict=True):
            (expected,) = prepare_latents(1, count, torch.Generator().manual_seed(seed), truncation)
            assert np.allclose(row, expected, rtol=0, atol=5e-6), (count, seed, truncation)

    def test_uniform_numbers_are_torch_s_to_the_bit(self):
        script = 'import { Generator } from "./noise.js"; const g = new Generator(3);'
        found = run_node(f"{script} show(Array.from({{ length: 2000 }}, () => g.float()));")
        assert found == torch.rand(2000, generator=torch.Generator().manual_seed(3)).tolist()

    def test_ids_of_ten_thousand_captions_are_the_tokenizer_s(self, tmp_path):
        pipe_dir, rng = bundled.model_dir(), random.Random(0)
        captions = [*ODD, *(any_caption(sample_attributes(rng), rng) for _ in range(10_000))]
        (tmp_path / "captions.json").write_text(json.dumps(captions))
        tokenizer = RATLIPPipeline.from_pretrained(pipe_dir, generator=None, image_encoder=None).tokenizer
        found = run_node(f"""
            import {{ readFileSync }} from "fs";
            import {{ Tokenizer }} from "./libraries/tokenizers.min.mjs";
            import {{ Model }} from "./model.js";
            const read = (path) => JSON.parse(readFileSync(path));
            const files = {json.dumps(str(pipe_dir / "tokenizer"))};
            const config = {{ max_tokens: 40, pad_token_id: {tokenizer.pad_token_id} }};
            const tokenizer = new Tokenizer(read(files + "/tokenizer.json"), read(files + "/tokenizer_config.json"));
            const model = Object.assign(new Model(), {{ config, tokenizer }});
            show(read({json.dumps(str(tmp_path / "captions.json"))}).map((text) => model.ids(text)));""")
        expected = tokenizer(captions, padding="max_length", truncation=True, max_length=40).input_ids
        assert [each["ids"] for each in found] == expected
        assert [each["cut"] for each in found] == [text == ODD[-1] for text in captions]

    def test_images_and_their_lines_of_python_are_the_pipeline_s(self, site, torch_pipe, tmp_path):
        torch_pipe.save_pretrained(tmp_path / "model")
        found = run_node(GENERATE % json.dumps(REQUESTS), site)
        for request, image in zip(REQUESTS, found, strict=True):
            expected = images_of(torch_pipe, **request)
            sample = np.array(image["sample"], dtype=np.float32).reshape(3, 32, 32).transpose(1, 2, 0)
            assert close(np.clip(sample * 0.5 + 0.5, 0, 1), expected, atol=1e-3)
            assert "user/tiny" in image["python"]
            names = {}
            exec(image["python"].replace("user/tiny", str(tmp_path / "model")), names)
            shown = np.array(image["bytes"]).reshape(32, 32, 4)
            assert np.abs(shown[..., :3] - np.asarray(names["image"], dtype=int)).max() <= 1
            assert (shown[..., 3] == 255).all()

    def test_halves_are_rounded_as_by_the_pipeline(self):
        levels = (np.arange(0, 511, dtype=np.float32) / 510 * 2 - 1).tolist()
        script = f'import {{ pixels }} from "./model.js"; const v = {levels};'
        bytes_ = run_node(f"{script} show([...pixels(Float32Array.from([...v, ...v, ...v]))]);")[::4]
        grey = torch.tensor(levels)[None, None, None].expand(1, 3, 1, -1)
        image = RATLIPPipeline(None, None, None, None).image_processor.postprocess(grey, output_type="pil")[0]
        assert np.abs(np.array(bytes_) - np.asarray(image, dtype=int)[0, :, 0]).max() <= 1

    def test_words_are_exchanged_with_their_articles(self):
        kinds = [{"name": name, "words": words} for name, words in KINDS.items()]
        found = run_node(f"""
            import {{ exchanged, pieces }} from "./words.js";
            show({json.dumps(EXCHANGES)}.map(([prompt, text, word]) => {{
              const parts = pieces(prompt, {json.dumps(kinds)});
              return exchanged(parts, parts.findIndex((part) => part.text === text && part.kind), word);
            }}));""")
        assert found == [expected for *_, expected in EXCHANGES]

    def test_links_hold_prompt_and_seed_and_junk_is_left_out(self):
        states = [{"prompt": text, "seed": 2**32 - 1, "truncation": 0.7} for text in ODD]
        found = run_node(f"""
            import {{ fromHash, toHash }} from "./sharing.js";
            const junk = ["", "#seed=-1&truncation=x", "#seed=4294967296&truncation=0", "#seed=1e3"];
            show([{json.dumps(states)}.map((state) => fromHash(toHash(state))), junk.map(fromHash)]);""")
        assert found == [states, 4 * [{}]]


GENERATE = """
import { readFileSync } from "fs";
import { gunzipSync } from "zlib";
import * as ort from "./libraries/ort.wasm.bundle.min.mjs";
import { Tokenizer } from "./libraries/tokenizers.min.mjs";
import { Model, pixels } from "./model.js";
import { pythonLines } from "./sharing.js";
const packed = (path) => gunzipSync(readFileSync(path));
const json = (name) => JSON.parse(readFileSync(`model/${name}.json`));
Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: packed("libraries/ort-wasm-simd-threaded.wasm.gz") });
const graphs = { text: packed("model/text_encoder.onnx.gz"), image: packed("model/generator.onnx.gz") };
const tokenizer = { tokenizer: json("tokenizer"), tokenizerConfig: json("tokenizer_config") };
const model = await Model.load(ort, Tokenizer, json("model"), { ...graphs, ...tokenizer });
const images = [];
for (const request of %s) {
  const sample = await model.generate(request);
  images.push({ sample: [...sample], bytes: [...pixels(sample)], python: pythonLines(request, model.config) });
}
show(images);
"""


def images_of(pipe, prompt, seed, truncation, toPrompt=None, toSeed=None, mix=0.0) -> np.ndarray:
    """What model.js computes for a request, said in Python."""
    text, other = pipe.encode_prompt([prompt, toPrompt or prompt])[0]
    seeds = [torch.Generator().manual_seed(value) for value in (seed, seed if toSeed is None else toSeed)]
    a, b = prepare_latents(2, pipe.generator.config.noise_dim, seeds, truncation)
    noise = slerp(a, b, mix)
    return pipe(prompt_embeds=torch.lerp(text, other, mix)[None], latents=noise[None], output_type="np").images[0]


class TestServer:
    @pytest.fixture(scope="class")
    def url(self, site):
        with make_server(site) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}/"
            server.shutdown()

    def test_every_file_has_the_type_that_browsers_insist_on(self, url):
        types = {
            "": "text/html",
            "app.js": "text/javascript",
            "libraries/ort.wasm.bundle.min.mjs": "text/javascript",
            "style.css": "text/css",
            "model/model.json": "application/json",
            WASM: "application/gzip",
        }
        for path, kind in types.items():
            with urlopen(url + path) as answer:
                assert answer.headers["Content-Type"].split(";")[0] == kind
                assert answer.headers["Content-Security-Policy"].startswith(CSP)
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert "Content-Encoding" not in answer.headers

    @pytest.mark.parametrize("path", ["nothing", "model/", "../mine", "%2e%2e/mine"])
    def test_nothing_else_is_shown(self, url, path):
        with pytest.raises(HTTPError, match="404"):
            urlopen(url + path)


class TestCommands:
    def test_export_web(self, instant_graphs, torch_pipe, tmp_path, capsys):
        torch_pipe.save_pretrained(tmp_path / "model")
        assert main(["export", "web", str(tmp_path / "site"), "--model", str(tmp_path / "model")]) == 0
        assert "ratlip demo --web" in capsys.readouterr().out
        assert read_description(tmp_path / "site")["model"] == "model"
        Image.new("RGB", (1, 1)).save(tmp_path / "site" / "mine.png")
        assert main(["export", "web", str(tmp_path / "site"), "--model", str(tmp_path / "model")]) == 2
        assert "mine.png" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--web", "{tmp}"], "no web export"),
            (["--web", "{tmp}", "--port", "70000"], "--port"),
            (["--web", "{tmp}", "--port", "{taken}"], "cannot serve on port"),
            (["--web", "--port", "0", "--model", "{tmp}"], "no model_index.json"),
        ],
    )
    def test_mistakes_of_a_demo_are_one_line(self, arguments, message, tmp_path, capsys):
        with make_server(tmp_path) as taken:
            known = {"tmp": tmp_path, "taken": taken.server_port}
            assert main(["demo", *(argument.format(**known) for argument in arguments)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error
