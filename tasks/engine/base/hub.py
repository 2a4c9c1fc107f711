"""The Hugging Face Hub: a repository's files brought here, an adapter's folder pushed there."""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.engine.failures import failure
from tasks.errors import AdapterflowError, PassingError, UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "chat_template*")
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "manifest.json",
    "README.md",
    *TOKENIZER_FILES,
)
"""What an adapter consists of, with its card; a tokenizer where it was saved along."""


def download(name: str, revision: str | None, files: list[str], what: str) -> Path:
    """Bring some of a repository's files here; give the folder, which is named by the commit.

    The Hub's own cache answers when there is no network.

    Args:
        name: the repository's id.
        revision: branch, tag or commit.
        files: names or patterns of the wanted files; those that are not there are left out.
        what: the repository is taken for, in messages.

    Raises:
        UserError: there is no such repository or revision, or it can't be had from here.
        PassingError: the Hub can't be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except GatedRepoError:
        raise UserError(
            f"the {what} {name!r} is gated: accept its terms on the Hub and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"no {what} {name!r} on the Hub, and no such folder here; "
            "check the name, or set HF_TOKEN for a private one"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"the {what} {name!r} has no revision {revision!r}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise failure(
            error,
            f"the {what} {name!r} is not in the local cache and the Hub can't be reached; "
            "check the network, or give a local folder",
        ) from error


def check_push(repo_id: str) -> None:
    """Check, before anything is trained, that a push could work.

    Raises:
        UserError: there is no token, or the Hub does not accept it.
        PassingError: the Hub can't be reached.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise UserError(f"pushing to {repo_id} needs a token: set HF_TOKEN")
    try:
        HfApi().whoami()
    except HfHubHTTPError as error:
        raise failure(error, f"the Hub does not accept the token in HF_TOKEN: {error}") from error
    except HTTPError as error:
        raise PassingError(f"the Hub can't be reached to push to {repo_id}: {error}") from error


def _own_files(api: "HfApi", repo_id: str) -> list[str]:
    """Name what only an adapter brings to a repository; a tokenizer may be a model's there."""
    holds_model = api.file_exists(repo_id, "config.json")
    return ["manifest.json", *(() if holds_model else TOKENIZER_FILES)]


def push_adapter(folder: Path, repo_id: str, *, private: bool) -> str:
    """Push the adapter's files in one commit, and give the commit's address.

    What else lies in the folder, such as checkpoints of a training, stays here.

    Raises:
        AdapterflowError: the Hub refused or could not be reached; the local folder is complete.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="Add LoRA adapter",
            allow_patterns=[*ADAPTER_FILES],
            # What an adapter that was there before would say of this one.
            delete_patterns=_own_files(api, repo_id),
        )
    except (HTTPError, OSError, ValueError) as error:
        passing = isinstance(failure(error, ""), PassingError)
        kind = PassingError if passing else AdapterflowError
        raise kind(f"pushing {folder} to {repo_id} failed: {error}") from error
    return str(commit.commit_url)
