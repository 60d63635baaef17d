"""The app in Gradio: `build` lays it out around `drawing.py`, `serve` shows it on this machine.

Public events are the app's API and its MCP tools; their arguments are called like the pipeline's.
"""

import contextlib
import html
import io
import os
import random
from collections.abc import Iterator, Sequence

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr

from ..utils.errors import UserError
from ..web.export import EXAMPLES
from ..web.server import HOST
from . import drawing
from .drawing import LONGEST_PROMPT, UNTRUNCATED, Model, Request, Word

LOOKS = {
    "theme": gr.themes.Base(
        primary_hue="orange",
        neutral_hue="stone",
        font=("system-ui", "sans-serif"),  # Gradio's own come from Google
        font_mono=("ui-monospace", "monospace"),
    ),
    "css": """
        .gradio-container { max-width: 70rem !important; margin: 0 auto !important; }
        h1 { font: 600 2.2rem/1.2 ui-serif, Georgia, serif; }
        .picture .image-frame, .picture .image-frame img { width: 100%; height: 100%; object-fit: contain; }
    """,
}
SEED = 7
_WAITING = 32  # visitors; the next one is told to come back


class Studio:
    """What happens when somebody operates the app. It keeps the models and nothing of any visitor."""

    def __init__(self, models: Sequence[Model]):
        self.pipes = {model.name: model.pipe for model in models}

    def show(self, prompt: str, seed: int, truncation: float, model: str, history: list, typed: bool = False):
        """The image of the first row, its command, and the history with both."""
        if not prompt.strip():
            return gr.skip(), gr.skip(), gr.skip()  # somebody is about to type
        with _told():
            asked = drawing.request(" ".join(prompt.split()), 1, seed, truncation)
            image = drawing.one(self.pipes[model], asked)
        return image, asked.command(model), self._remember(history, asked, model, image, typed)

    def type(self, prompt: str, seed: int, truncation: float, model: str, history: list):
        """As `show`, for a prompt of which more may come."""
        return self.show(prompt, seed, truncation, model, history, typed=True)

    def eight(self, prompt: str, seed: int, truncation: float, model: str, history: list):
        """The same words with the next eight seeds."""
        with _told():
            asked = drawing.request(" ".join(prompt.split()), 8, (seed or 0) + 1, truncation)
            images = [image for some in drawing.generate(self.pipes[model], asked) for image in some]
        return _captioned(asked, images), self._remember(history, asked, model, images[0])

    def generate(
        self,
        prompt: str,
        num_images_per_prompt: int,
        seed: int,
        truncation: float,
        model: str,
        progress=gr.Progress(),  # noqa: B008 - Gradio finds it as a default
    ):
        """Generate images from text.

        Args:
            prompt: what the images are to show; one prompt per line.
            num_images_per_prompt: images of each line; 64 in all at most.
            seed: of the first image; each following one has the next. The same seed gives the same image.
            truncation: below 3, noise beyond it is sampled again: less variety, more typical images.
            model: one of the models that the app was started with.
        """
        with _told():
            asked = drawing.request(prompt, num_images_per_prompt, seed, truncation)
            images = []
            for some in drawing.generate(self.pipes[model], asked):
                images += some
                progress((len(images), asked.count), unit="images")
                yield _captioned(asked, images)

    def note(self, prompt: str, num_images_per_prompt: int, seed: int, truncation: float, model: str, history: list):
        """The history with what `generate` has made."""
        asked = drawing.request(prompt, num_images_per_prompt, seed, truncation)
        return self._remember(history, asked, model, drawing.one(self.pipes[model], asked))

    def exchange(self, prompt: str, word: str, other_word: str, seed: int, truncation: float, model: str):
        """Exchange one word of a prompt and show the image before and after.

        Args:
            prompt: what the image is to show.
            word: a word or phrase of the prompt: a colour, size, direction, perch or place.
            other_word: what takes its place.
            seed: of both images.
            truncation: below 3, noise beyond it is sampled again: less variety, more typical images.
            model: one of the models that the app was started with.
        """
        with _told():
            prompt = " ".join(prompt.split())
            found = next((each for each in drawing.words(prompt) if each.text == word), None)
            if found is None or not other_word:
                raise UserError("choose a word of the prompt, and another one for it")
            after = drawing.exchanged(prompt, found, str(other_word))
            pair = [
                drawing.one(self.pipes[model], drawing.request(text, 1, seed, truncation)) for text in (prompt, after)
            ]
        return tuple(pair), after

    def interpolate(
        self, prompt: str, seed: int, to_prompt: str, to_seed: int, mix: float, truncation: float, model: str
    ):
        """Show the image between two prompts, two seeds, or both.

        Args:
            prompt: what the first image shows.
            seed: of the first image.
            to_prompt: what the other image shows; empty for the same.
            to_seed: of the other image.
            mix: how far from the first image (0) to the other (1).
            truncation: below 3, noise beyond it is sampled again: less variety, more typical images.
            model: one of the models that the app was started with.
        """
        with _told():
            start = drawing.request(" ".join(prompt.split()), 1, seed, truncation)
            end = drawing.request(" ".join((to_prompt or "").split()) or start.prompts[0], 1, to_seed, truncation)
            return tuple(drawing.between(self.pipes[model], start, end, at) for at in (0.0, mix, 1.0))

    def compare(self, prompt: str, seed: int, truncation: float, model: str, other_model: str):
        """Show what two models make of the same prompt and the same four seeds.

        Args:
            prompt: what the images are to show.
            seed: of the first of four images.
            truncation: below 3, noise beyond it is sampled again: less variety, more typical images.
            model: one of the models that the app was started with.
            other_model: another one of them.
        """
        with _told():
            asked = drawing.request(" ".join(prompt.split()), 4, seed, truncation)
            made = [next(drawing.generate(self.pipes[name], asked)) for name in (model, other_model)]
        return tuple(_captioned(asked, images) for images in made)

    @staticmethod
    def _remember(history: list, asked: Request, model: str, image, typed: bool = False) -> list[dict]:
        truncation = UNTRUNCATED if asked.truncation is None else asked.truncation
        entry = {"command": asked.command(model), "typed": typed, "image": image, "model": model}
        entry |= {"prompt": asked.prompts[0], "seed": asked.seed, "truncation": truncation}
        return drawing.remembered(history or [], entry)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What is wrong with a request goes to its visitor, escaped: Gradio takes such texts for HTML."""
    try:
        yield
    except UserError as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from None


def _captioned(asked: Request, images: list) -> list[tuple]:
    several = len(asked.prompts) > 1
    captions = [f"{prompt}, seed {seed}" if several else f"seed {seed}" for prompt, seed in asked.jobs()]
    return list(zip(images, captions, strict=False))


# Layout


def build(models: Sequence[Model]) -> gr.Blocks:
    """The app around one or more models; the first is shown at the start."""
    studio, names = Studio(models), [model.name for model in models]
    with gr.Blocks(title="Type, and an image appears", analytics_enabled=False, delete_cache=(600, 3600)) as app:
        gr.Markdown("# Type, and an image appears")
        history = gr.State([])
        with gr.Row():
            with gr.Column(scale=2):
                image = _picture("Image", height=384)
            with gr.Column(scale=3):
                prompt = gr.Textbox(EXAMPLES[0], label="What should it show?", lines=2, max_length=LONGEST_PROMPT)
                with gr.Row(equal_height=True):
                    seed = gr.Number(SEED, label="Seed", precision=0, minimum=0, maximum=drawing.LARGEST_SEED)
                    another = gr.Button("Another", variant="primary")
                truncation = gr.Slider(
                    0.1, UNTRUNCATED, UNTRUNCATED, step=0.1, label="Variety (truncation)", info="3: no truncation"
                )
                model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
        gr.Examples([[text] for text in EXAMPLES], [prompt], label="Or try")
        command = gr.Textbox(
            label="The same image from a shell", interactive=False, buttons=["copy"], elem_id="command"
        )
        common = [prompt, seed, truncation, model]
        shown = [image, command, history]
        quick = {"show_progress": "hidden", "api_visibility": "private", "concurrency_id": "images"}
        prompt.change(studio.type, [*common, history], shown, trigger_mode="always_last", **quick)
        gr.on(
            [app.load, seed.change, truncation.change, model.change],
            studio.show, [*common, history], shown, trigger_mode="always_last", **quick,
        )  # fmt: skip
        another.click(lambda: random.randrange(100_000), None, seed, queue=False, api_visibility="private")
        with gr.Tabs():
            _eight(studio, common, history)
            _words(studio, common)
            _between(studio, common)
            _models(studio, common, names)
            _batch(studio, [truncation, model], history)
            _history(history, [prompt, seed, truncation, model])
    return app.queue(max_size=_WAITING, default_concurrency_limit=1)


def _picture(label: str, **options) -> gr.Image:
    return gr.Image(
        label=label, format="png", interactive=False, elem_classes="picture", buttons=["download"], **options
    )


def _gallery(label: str, **options) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        format="png",
        object_fit="contain",
        height="auto",
        interactive=False,
        buttons=["download"],
        **options,
    )


def _eight(studio: Studio, common: list, history: gr.State) -> None:
    with gr.Tab("Eight seeds"):
        start = gr.Button("The same words, the next eight seeds")
        gallery = _gallery("Eight seeds", columns=4)
    start.click(
        studio.eight, [*common, history], [gallery, history], api_visibility="private", concurrency_id="images"
    )


def _words(studio: Studio, common: list) -> None:
    prompt = common[0]
    with gr.Tab("Exchange a word") as tab:
        word = gr.Radio([], label="Word", info="colours, sizes, directions, perches and places of the prompt")
        other = gr.Radio([], label="Instead")
        pair = gr.ImageSlider(
            label="Before and after", format="png", interactive=False, elem_classes="picture", height=400, buttons=[]
        )
        after = gr.Textbox(label="The prompt afterwards", interactive=False)
        keep = gr.Button("Go on with this prompt")
        # What visitors chose, without the choices: those are of a prompt, and the API's callers have their own.
        chosen = [gr.Textbox(label=label, visible=False) for label in ("Word", "Other word")]

    def offered(text: str):
        return gr.Radio(choices=list(dict.fromkeys(each.text for each in drawing.words(text))), value=None)

    def others(text: str | None):
        return gr.Radio(choices=Word(0, text).others if text else [], value=None)

    silent = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    gr.on([prompt.change, tab.select], offered, prompt, word, **silent)
    word.change(others, word, other, **silent)
    other.input(lambda *both: both, [word, other], chosen, **silent).then(
        studio.exchange, [prompt, *chosen, *common[1:]], [pair, after], api_name="exchange", concurrency_id="images"
    )
    keep.click(lambda text, old: text or old, [after, prompt], prompt, **silent)


def _between(studio: Studio, common: list) -> None:
    prompt, seed, truncation, model = common
    with gr.Tab("From one to another"):
        with gr.Row():
            to_prompt = gr.Textbox(EXAMPLES[3], label="To these words", max_length=LONGEST_PROMPT)
            to_seed = gr.Number(SEED, label="To this seed", precision=0, minimum=0)
        mix = gr.Slider(0, 1, 0.5, step=0.02, label="How far from the first to the other")
        with gr.Row():
            pictures = [_picture(label, height=280) for label in ("The first", "In between", "The other")]
    seed.change(lambda value: value, seed, to_seed, queue=False, api_visibility="private", show_progress="hidden")
    gr.on(
        [mix.change, to_prompt.change, to_seed.change],
        studio.interpolate,
        [prompt, seed, to_prompt, to_seed, mix, truncation, model],
        pictures,
        trigger_mode="always_last",
        show_progress="hidden",
        api_name="interpolate",
        concurrency_id="images",
    )


def _models(studio: Studio, common: list, names: list[str]) -> None:
    with gr.Tab("Two models"):
        if len(names) == 1:
            gr.Markdown(
                "Start the app with a second one, a folder or a repository, to see both side by side:\n\n"
                "```\nratlip demo --model synthetic-birds runs/birds/pipeline\n```"
            )
            return
        other = gr.Dropdown(names, value=names[1], label="Compare with")
        start = gr.Button("Both models, four seeds")
        with gr.Row():
            galleries = [_gallery(label, columns=4) for label in ("The model above", "The other model")]
    start.click(
        studio.compare, [*common, other], galleries, api_name="compare", concurrency_id="images"
    )  # fmt: skip


def _batch(studio: Studio, others: list, history: gr.State) -> None:
    with gr.Tab("Many at once"):
        prompts = gr.Textbox("\n".join(EXAMPLES), label="Prompts, one per line", lines=4)
        with gr.Row():
            number = gr.Number(4, label="Images of each", precision=0, minimum=1, maximum=drawing.MOST_IMAGES)
            seed = gr.Number(0, label="First seed", precision=0, minimum=0, maximum=drawing.LARGEST_SEED)
            start = gr.Button("Generate", variant="primary")
            stop = gr.Button("Stop")
        gallery = _gallery("Images", columns=8)
    asked = [prompts, number, seed, *others]
    running = start.click(studio.generate, asked, gallery, api_name="generate", concurrency_id="batch")
    running.success(studio.note, [*asked, history], history, api_visibility="private", concurrency_id="images")
    stop.click(None, cancels=[running], queue=False)


def _history(history: gr.State, controls: list) -> None:
    with gr.Tab("History") as tab:
        gr.Markdown("What you made in this tab of your browser. A click brings it back.")
        gallery = _gallery("History", columns=8, allow_preview=False)
        commands = gr.Textbox(label="The commands that make them", interactive=False, lines=6, buttons=["copy"])

    def show(entries: list[dict]):
        pictures = [(entry["image"], f"{entry['prompt']}, seed {entry['seed']}") for entry in entries]
        return pictures, "\n".join(entry["command"] for entry in entries)

    def back(entries: list[dict], event: gr.SelectData):
        return [entries[event.index][name] for name in ("prompt", "seed", "truncation", "model")]

    silent = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    tab.select(show, history, [gallery, commands], **silent)
    gallery.select(back, history, controls, **silent)


def serve(models: Sequence[Model], port: int = 0, host: str = HOST, share: bool = False) -> tuple[gr.Blocks, str]:
    """Start the app and return it with its address; the caller keeps the process alive and calls `close`.

    Port 0 takes a free one. Raises OSError when the port is taken.
    """
    app = build(models)
    with contextlib.redirect_stdout(io.StringIO()):  # Gradio's own lines; the callers have theirs
        _, url, _ = app.launch(
            server_name=host,
            server_port=port or None,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            mcp_server=True,
            enable_monitoring=False,
            footer_links=["api"],
            **LOOKS,
        )
    return app, app.share_url or url
