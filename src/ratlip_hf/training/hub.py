"""Publishing a run on the Hub: checked before the first step, uploaded in the background, never a reason to stop.
And the model card of a run."""

import contextlib
import json
import logging
import math
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, EvalResult, HfApi, ModelCard, get_token, utils

from ..bundled import WORLDS
from ..model_card import PROMPT, card_data, compose, listed
from ..utils.compat import validate_card
from ..utils.errors import UserError, one_line
from ..utils.files import atomic_write, link_files
from ..version import __version__
from .config import TrainingConfig

logger = logging.getLogger(__name__)

_SAMPLES = 4  # sample grids that are kept in the repository, the latest
_STAGE = ".upload-"
_ADVICE = {  # by HTTP status
    401: "the token is not valid: log in with `hf auth login`",
    403: "the token may not write there: take one with write permission, or another hub_model_id",
}
_WIDGETS = 3  # example prompts on the card
_INTRODUCTION = """ {origin};
these are the EMA weights of the generator. The discriminator lies in `discriminator/`, the files of the training
run in `training/`."""
_TRAINING = """
## Training

{facts}

<details><summary>Configuration</summary>

```json
{config}
```

</details>
"""
_METRICS = """
## Evaluation

| metric | value | protocol |
|---|---|---|
{rows}
"""


class HubRepository:
    """The repository, `name` "user/name", that a run is published in. Made by [`HubRepository.open`]; only the main
    process has one."""

    def __init__(self, name: str, config: TrainingConfig, api: HfApi):
        self.name, self.config = name, config
        self._api, self._output = api, Path(config.output_dir)
        self._code = code_commit()  # now: the working tree may move on while the run lasts
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hub")
        self._last: Future | None = None

    @classmethod
    def open(cls, config: TrainingConfig) -> "HubRepository":
        """Check everything that an upload needs, and make the repository if it is not there.

        Raises UserError for a bad name or license, a missing token, or a Hub that refuses or is out of reach.
        """
        if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", config.hub_license):
            raise UserError(
                f"hub_license must be in the Hub's spelling, as cc-by-nc-4.0 or unknown, not {config.hub_license!r}"
            )
        name = config.hub_model_id or Path(config.output_dir).resolve().name
        try:
            utils.validate_repo_id(name)
        except utils.HFValidationError as error:
            raise UserError(f"choose another hub_model_id: {one_line(error)}") from error
        if get_token() is None:
            raise UserError("push_to_hub needs a token: log in with `hf auth login` or set HF_TOKEN")
        api = HfApi()
        if "/" not in name:
            with _refusals_as_user_errors(name):
                name = f"{api.whoami()['name']}/{name}"
        with _refusals_as_user_errors(name):
            _ensure_writable(api, name, config.hub_private_repo)
            validate_card(model_card(config, name))
        for left in Path(config.output_dir).glob(f"{_STAGE}*"):  # by a killed run
            shutil.rmtree(left, ignore_errors=True)
        return cls(name, config, api)

    def upload(self, images: int, prompts: Sequence[str] = (), evaluation: Mapping | None = None) -> None:
        """Publish the output folder as it is now; returns before the upload ends, and never raises for its failure.

        An upload that still waits for an earlier one is replaced. The card tells the number of real images seen, has
        captions as examples, and the latest quick evaluation, a line of `evaluations.jsonl`.
        """
        try:
            stage = self._stage(images, prompts, evaluation)
        except Exception as error:  # a full disk, a file that somebody moved away: no reason to end training
            self._warn(error)
            return
        if self._last is not None:
            self._last.cancel()  # has no effect on one that runs
        self._last = self._executor.submit(self._send, Path(stage.name), f"Upload after {images} images")
        self._last.add_done_callback(lambda _: stage.cleanup())

    def close(self, patience: float | None = None) -> None:
        """Wait for the last upload, or only so many seconds; nothing can be uploaded afterwards."""
        if self._last is not None and not self._last.done():
            logger.info("waiting for the upload to %s", self.name)
            wait([self._last], patience)
        self._executor.shutdown(wait=patience is None, cancel_futures=True)

    def _stage(self, images: int, prompts: Sequence[str], evaluation: Mapping | None) -> tempfile.TemporaryDirectory:
        """A folder in the layout of the repository, which the trainer's later writing does not touch."""
        # Inside the output folder, since links do not reach over file systems.
        stage = tempfile.TemporaryDirectory(prefix=_STAGE, dir=self._output, ignore_cleanup_errors=True)
        try:
            root, output = Path(stage.name), self._output
            link_files(output / "pipeline", root)
            for network in filter(Path.is_dir, sorted(output.glob("*discriminator"))):
                link_files(network, root / network.name)
            for name in ("config.json", "clip.json"):
                link_files(output / name, root / "training" / name)
            if (output / "log.jsonl").is_file():
                # The only file that grows in place: a link would grow with it while it is being sent.
                shutil.copyfile(output / "log.jsonl", root / "training" / "log.jsonl")
            samples = [f"samples/{path.name}" for path in sorted((output / "samples").glob("*.png"))[-_SAMPLES:]]
            for path in samples:
                link_files(output / path, root / path)
            facts = {"commit": self._code, "images": images, "clip": json.loads((output / "clip.json").read_text())}
            shown = {"prompts": prompts, "samples": samples, "evaluation": evaluation}
            atomic_write(root / "README.md", str(model_card(self.config, self.name, **facts, **shown)))
        except BaseException:
            stage.cleanup()
            raise
        return stage

    def _send(self, stage: Path, message: str) -> None:
        try:
            files = {path.relative_to(stage).as_posix(): path for path in sorted(stage.rglob("*")) if path.is_file()}
            old = [path for path in self._api.list_repo_files(self.name) if re.fullmatch(r"samples/[^/]+\.png", path)]
            operations = [CommitOperationAdd(path, file) for path, file in files.items()]
            operations += [CommitOperationDelete(path) for path in old if path not in files]
            # Not upload_folder, which may cut a folder into several commits: readers would see half of each.
            with _no_progress_bars():
                done = self._api.create_commit(self.name, operations, commit_message=message)
            logger.info("uploaded: %s", done.commit_url)
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        by_hand = shlex.join(["hf", "upload", self.name, str(self._output / "pipeline")])
        logger.warning(
            "not uploaded to %s: %s; nothing local is lost; by hand: %s", self.name, one_line(error), by_hand
        )


def _ensure_writable(api: HfApi, name: str, private: bool) -> None:
    api.create_repo(name, private=private, exist_ok=True)
    # That succeeds for any repository which is there already.
    api.auth_check(name, write=True)
    if private and not api.model_info(name).private:
        raise UserError(f"{name} is public already: make it private on the Hub or choose another hub_model_id")


@contextlib.contextmanager
def _refusals_as_user_errors(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a refusal, or whatever the HTTP client says of a Hub out of reach
        status = error.response.status_code if isinstance(error, utils.HfHubHTTPError) else None
        advice = _ADVICE.get(status, "correct it or leave out push_to_hub")
        raise UserError(f"cannot publish {name}: {advice} ({one_line(error)})") from error


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = not utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            utils.enable_progress_bars()


def model_card(
    config: TrainingConfig,
    repository: str,
    *,
    commit: str | None = None,
    images: int | None = None,
    clip: Mapping[str, str | None] | None = None,
    prompts: Sequence[str] = (),
    samples: Sequence[str] = (),
    evaluation: Mapping | None = None,
) -> ModelCard:
    """The card of a run: what was trained, on what, with which CLIP and code; what is left out is not mentioned.

    `commit` is that of the code, `images` the number of real ones seen, `clip` what `FrozenCLIP.describe` says.
    `prompts` are captions, of which the first become the widget's examples; `samples` are paths of sample images in
    the repository, oldest first; `evaluation` has scores by name and the protocol by which they were measured.
    """
    clip = clip or {}
    output = {"output": {"url": samples[-1]}} if samples else {}
    data = card_data(
        license=config.hub_license,
        datasets=[source for source in _data_sources(config) if _is_on_hub(source)],
        base_model=_base_models(config, clip),
        widget=[{"text": prompt, **output} for prompt in prompts[:_WIDGETS]],
    )
    more = _INTRODUCTION.format(origin=_origin(config)) + (f"\n\n![samples]({samples[-1]})" if samples else "")
    facts = listed(_facts(config, commit, images, clip))
    sections = _TRAINING.format(facts=facts, config=config.to_json().strip())
    if evaluation:
        protocol, scores = f"quick evaluation, {json.dumps(evaluation['protocol'])}", evaluation["scores"]
        if finite := {name: value for name, value in scores.items() if math.isfinite(value)}:
            data.model_name = repository.split("/")[-1]
            data.eval_results = [_result(config, name, value, protocol) for name, value in finite.items()]
        rows = [f"| {_cell(name)} | {value:.4g} | {_cell(protocol)} |" for name, value in scores.items()]
        sections += _METRICS.format(rows="\n".join(rows))
    return compose(data, repository, sections, prompts[0] if prompts else PROMPT, more)


def _origin(config: TrainingConfig) -> str:
    source = config.pretrained_model_name_or_path
    if source is None:
        return f"Preset `{config.preset}`"
    return f"Fine-tuned from `{Path(source).name if Path(source).is_dir() else source}`"


def _facts(
    config: TrainingConfig, commit: str | None, images: int | None, clip: Mapping[str, str | None]
) -> Iterator[str]:
    sources = [
        f"[{source}](https://huggingface.co/datasets/{source})" if _is_on_hub(source) else f"`{Path(source).name}`"
        for source in _data_sources(config)
    ]
    yield f"Data: {', '.join(sources)}"
    if images is not None:
        yield f"Real images seen: {images:,}"
    if clip:
        if clip["revision"]:
            source = f"`{clip['source']}`, revision `{clip['revision']}`"
        else:
            source = f"`{Path(config.clip_source).name}`"
        yield f"Frozen CLIP: {source}, SHA-256 of its weights `{clip['weights_sha256']}`"
    yield f"Code: ratlip_hf {__version__}" + (f", commit `{commit}`" if commit else "")


def _result(config: TrainingConfig, name: str, value: float, protocol: str) -> EvalResult:
    data = " + ".join(source if _is_on_hub(source) else Path(source).name for source in _data_sources(config))
    return EvalResult(
        task_type="text-to-image",
        dataset_type=_slug(data),
        dataset_name=data,
        metric_type=_slug(name),
        metric_name=name,
        metric_value=float(value),  # numbers of NumPy and PyTorch would not be YAML
        metric_args={"protocol": protocol},
    )


def _base_models(config: TrainingConfig, clip: Mapping[str, str | None]) -> list[str]:
    # Only what was loaded from the Hub has a revision there.
    sources = [clip["source"]] if clip.get("revision") else []
    if config.pretrained_model_name_or_path and _is_on_hub(config.pretrained_model_name_or_path):
        sources.insert(0, config.pretrained_model_name_or_path)
    return list(dict.fromkeys(sources))


def _data_sources(config: TrainingConfig) -> list[str]:
    return list(config.data_mixture) or [config.dataset_name or config.train_data_dir]


def _is_on_hub(source: str) -> bool:
    """Whether a dataset or model, given by a name or a folder, is a repository."""
    if source in WORLDS or Path(source).exists():
        return False
    try:
        utils.validate_repo_id(source)
    except utils.HFValidationError:
        return False
    return True


def _slug(text: str) -> str:
    return re.sub(r"[^\w./-]+", "_", text.lower()).strip("_")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def code_commit() -> str | None:
    """Git commit of this package's code, with "-dirty" if it was changed since; None where that cannot be told."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        # An installed package may lie inside a repository of the user's, whose commit would say nothing about it.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None
    except (OSError, subprocess.SubprocessError):
        return None
