"""The Hugging Face Hub: download a repository's files, push an adapter's folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.engine.excerpts import reason
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
"""The files of an adapter, with its card, and a tokenizer's if one was saved with it."""


def download(name: str, revision: str | None, files: list[str], what: str) -> Path:
    """Download files of a repository, and return their folder, which is named by the commit.

    Without a network the files come from the Hub client's cache.

    Args:
        name: the repository's id.
        revision: branch, tag or commit.
        files: names or patterns of the files; those that do not exist are skipped.
        what: the kind of repository, in messages.

    Raises:
        UserError: there is no such repository or revision, it is gated, or it is not in the cache
            and the client is in offline mode; or HF_ENDPOINT or HF_TOKEN is impossible.
        PassingError: the Hub cannot be reached.
    """
    from httpx2 import HTTPError, InvalidURL
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
            f"the {what} {name!r} is gated; accept its terms on the Hub and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"no {what} {name!r} on the Hub, and no local folder of that name; "
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
    except (HTTPError, InvalidURL, OSError, ValueError) as error:  # an address that can't be one
        raise failure(
            error,
            f"the {what} {name!r} can't be fetched: {reason(error)}; check HF_ENDPOINT and "
            "HF_TOKEN, or give a local folder",
        ) from error


def check_push(repo_id: str) -> None:
    """Check, before anything is trained, that there is a token and the Hub accepts it.

    Raises:
        UserError: there is no token, or the Hub does not accept it.
        PassingError: the Hub cannot be reached.
    """
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if get_token() is None:
        raise UserError(f"pushing to {repo_id} needs a token: set HF_TOKEN")
    try:
        HfApi().whoami()
    except HfHubHTTPError as error:
        raise failure(error, f"the Hub does not accept the token in HF_TOKEN: {error}") from error
    except OfflineModeIsEnabled as error:
        raise UserError(
            f"the Hub can't be reached to push to {repo_id}, as its client is offline; unset "
            "HF_HUB_OFFLINE"
        ) from error
    except (HTTPError, InvalidURL, ValueError) as error:  # ValueError: a header can't be that
        message = f"the Hub can't be reached to push to {repo_id}: {error}"
        raise failure(error, message) from error


def _own_files(api: "HfApi", repo_id: str) -> list[str]:
    """Return the files of an earlier adapter that a push deletes, as patterns.

    In a repository that also holds a model, the tokenizer is the model's and stays.
    """
    holds_model = api.file_exists(repo_id, "config.json")
    return ["manifest.json", *(() if holds_model else TOKENIZER_FILES)]


def push_adapter(folder: Path, repo_id: str, *, private: bool) -> str:
    """Push the adapter's files in one commit, and return the commit's URL.

    Other files in the folder, such as checkpoints, are not pushed.

    Raises:
        PassingError: the Hub cannot be reached, or is overloaded.
        AdapterflowError: the Hub refused the push; the local folder is complete.
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
            # Left over from an earlier adapter, they would describe this one wrongly.
            delete_patterns=_own_files(api, repo_id),
        )
    except (HTTPError, OSError, ValueError) as error:
        passing = isinstance(failure(error, ""), PassingError)
        kind = PassingError if passing else AdapterflowError
        raise kind(f"pushing {folder} to {repo_id} failed: {error}") from error
    return str(commit.commit_url)
