"""Pushing an adapter's folder to the Hugging Face Hub."""

from pathlib import Path

from tasks.engine.failures import failure
from tasks.errors import AdapterflowError, PassingError, UserError


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
        raise UserError(f"output.push_to_hub {repo_id!r} needs a token: set HF_TOKEN")
    try:
        HfApi().whoami()
    except HfHubHTTPError as error:
        raise failure(error, f"the Hub does not accept the token in HF_TOKEN: {error}") from error
    except HTTPError as error:
        raise PassingError(f"the Hub can't be reached to push to {repo_id}: {error}") from error


def push_adapter(folder: Path, repo_id: str, *, private: bool) -> str:
    """Push all files of the folder in one commit, and give the commit's address.

    Raises:
        AdapterflowError: the Hub refused or could not be reached; the local folder is complete.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Add LoRA adapter"
        )
    except (HTTPError, OSError, ValueError) as error:
        passing = isinstance(failure(error, ""), PassingError)
        kind = PassingError if passing else AdapterflowError
        raise kind(f"pushing {folder} to {repo_id} failed: {error}") from error
    return str(commit.commit_url)
