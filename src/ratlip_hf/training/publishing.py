"""The Hub side of a training run: checks before the first step, uploads in the background, never a reason to stop.
Owns the layout of the repository and its one upload at a time; the card's content is in `model_card`."""

import contextlib
import json
import logging
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from ..utils.compat import validate_card
from ..utils.errors import UserError, one_line
from ..utils.files import atomic_write, link_files
from .config import TrainingConfig
from .model_card import code_commit, model_card

logger = logging.getLogger(__name__)

_SAMPLES = 4  # sample grids that are kept in the repository, the latest
_STAGE = ".upload-"


class HubRepository:
    """Where a run is published. Made by [`HubRepository.open`]; only the main process has one.

    Args:
        name: "user/name".
        config: the run's configuration.
        api: client of the Hub.
    """

    def __init__(self, name: str, config: TrainingConfig, api: HfApi):
        self.name, self.config = name, config
        self._api, self._output = api, Path(config.output_dir)
        self._code = code_commit()  # now: the working tree may move on while the run lasts
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hub")
        self._last: Future | None = None

    @classmethod
    def open(cls, config: TrainingConfig) -> "HubRepository":
        """Check everything that an upload needs, and make the repository if it is not there.

        Raises:
            UserError: for a bad name or licence, a missing token, or a Hub that refuses or is out of reach.
        """
        if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", config.hub_license):
            raise UserError(
                f"hub_license must be in the Hub's spelling, as cc-by-nc-4.0 or unknown, not {config.hub_license!r}"
            )
        name = config.hub_model_id or Path(config.output_dir).resolve().name
        try:
            validate_repo_id(name)
        except HFValidationError as error:
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

    def upload(self, images: int, prompts: Sequence[str] = (), metrics: Sequence[Mapping] = ()) -> None:
        """Publish the output folder as it is now; returns before the upload ends, and never raises for its failure.

        An upload that still waits for an earlier one is replaced.

        Args:
            images: number of real images seen.
            prompts: captions for the card's examples.
            metrics: records with `name`, `value` and `protocol`.
        """
        try:
            stage = self._stage(images, prompts, metrics)
        except Exception as error:  # a full disk, a file that somebody moved away: no reason to end training
            self._warn(error)
            return
        if self._last is not None:
            self._last.cancel()  # has no effect on one that runs
        self._last = self._executor.submit(self._send, Path(stage.name), f"Upload after {images} images")
        self._last.add_done_callback(lambda _: stage.cleanup())

    def close(self) -> None:
        """Wait for the last upload; nothing can be uploaded afterwards."""
        if self._last is not None and not self._last.done():
            logger.info("waiting for the upload to %s", self.name)
        self._executor.shutdown()

    def _stage(self, images: int, prompts: Sequence[str], metrics: Sequence[Mapping]) -> tempfile.TemporaryDirectory:
        """A folder in the layout of the repository, which the trainer's later writing does not touch."""
        # Inside the output folder, since links do not reach over file systems.
        stage = tempfile.TemporaryDirectory(prefix=_STAGE, dir=self._output, ignore_cleanup_errors=True)
        try:
            root, output = Path(stage.name), self._output
            link_files(output / "pipeline", root)
            link_files(output / "discriminator", root / "discriminator")
            for name in ("config.json", "clip.json"):
                link_files(output / name, root / "training" / name)
            if (output / "log.jsonl").is_file():
                # The only file that grows in place: a link would grow with it while it is being sent.
                shutil.copyfile(output / "log.jsonl", root / "training" / "log.jsonl")
            samples = [f"samples/{path.name}" for path in sorted((output / "samples").glob("*.png"))[-_SAMPLES:]]
            for path in samples:
                link_files(output / path, root / path)
            clip = json.loads((output / "clip.json").read_text())
            facts = {"commit": self._code, "images": images, "clip": clip, "prompts": prompts, "samples": samples}
            atomic_write(root / "README.md", str(model_card(self.config, self.name, metrics=metrics, **facts)))
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
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status == 401:
            advice = "the token is not valid: log in with `hf auth login`"
        elif status == 403:
            advice = "the token may not write there: take one with write permission, or another hub_model_id"
        else:
            advice = "correct it or leave out push_to_hub"
        raise UserError(f"cannot publish {name}: {advice} ({one_line(error)})") from error


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()
