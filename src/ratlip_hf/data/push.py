"""Publishing a prepared corpus: the folder as it is becomes a data set on the Hub.
Owns the checks before the upload; nothing local is changed."""

from pathlib import Path

from huggingface_hub import HfApi

from ..utils.errors import UserError
from .manifest import read_manifest, shard_paths


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Upload a folder from `prepare` and return the address of the data set.

    Args:
        folder: the prepared corpus.
        repository: "user/name"; made if it is not there.
        private: for a repository that is made now.

    Raises:
        UserError: for a folder that is incomplete, a bad name, a missing token, or a Hub that refuses or is not there.
    """
    if repository.count("/") != 1:
        raise UserError(f"the repository must be user/name, not {repository!r}")
    manifest = read_manifest(folder)
    missing = [str(path) for path in shard_paths(folder, manifest) if not path.is_file()]
    if missing:
        raise UserError(f"{folder} is incomplete: {missing[0]} is not there")
    try:
        api = HfApi()
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        # Shards of an earlier upload would otherwise stay among the new ones.
        api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder,
            delete_patterns="data/*.parquet",
            commit_message="Upload prepared captions corpus",
        )
    except Exception as error:  # a refusal, a missing token, or whatever the HTTP client says of a Hub out of reach
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot publish {repository}: {reason}") from error
    return f"{api.endpoint}/datasets/{repository}"
