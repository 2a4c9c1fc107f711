"""A vLLM server, through OpenAI's client and vLLM's own endpoints for adapters.

OpenAI's client is what most callers of such a server use, so what passes here passes for them. The
endpoints that load and unload adapters are vLLM's (0.32); they exist only where
`VLLM_ALLOW_RUNTIME_LORA_UPDATING` is set.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.errors import AdapterflowError, PassingError, UserError
from tasks.records import Probe, ReplayRow, ServingReference
from tasks.runtime.addresses import masked, without_password

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

TOKEN_VARIABLES = ("ADAPTERFLOW_SERVING_TOKEN", "VLLM_API_KEY")
_TIMEOUT_SECONDS = 600.0
"""For one answer, also by a CPU that answers others, too."""
_PASSING = {408, 409, 425, 429}
_FIRST_SERVER_ERROR = 500
_REFUSED = {401, 403}
_NOT_FOUND = {404, 405}
_INVALID = {400, 422}


class ServerState(NamedTuple):
    """What a server says of itself."""

    version: str
    base: str
    """The base's name in requests."""
    adapters: tuple[str, ...]
    """The names of the loaded adapters."""


class ServedAnswer(NamedTuple):
    """An answer, and the number of tokens that the server rendered its prompt to."""

    text: str
    num_prompt_tokens: int


class Server:
    """A vLLM server.

    Args:
        url: its address, with or without `/v1`.
        max_retries: how often OpenAI's client repeats a request that failed.
    """

    def __init__(self, url: str, *, max_retries: int = 2) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._client = _client(self.url, max_retries)

    def state(self) -> ServerState:
        """Ask the server what it serves.

        Raises:
            UserError: the address is of no such server, or it demands another token.
            PassingError: it can't be reached.
        """
        from openai import OpenAIError

        what = f"{masked(self.url)} does not answer /v1/models as an OpenAI-compatible server does"
        with self._explained(what):
            models = [(one.id, getattr(one, "parent", None)) for one in self._client.models.list()]
        bases = [name for name, parent in models if not parent]
        if not all(isinstance(name, str) for name, _ in models) or not bases:
            raise UserError(f"{what}: it has no base model; give vLLM's address")
        adapters = [name for name, parent in models if parent]
        try:
            answer: Any = self._client.get(f"{self.url}/version", cast_to=object)
            version = str(answer["version"])
        except (OpenAIError, KeyError, TypeError, ValueError):
            version = "unknown"
        return ServerState(version, bases[0], tuple(adapters))

    def check(self) -> None:
        """Check that it is a server that loads adapters.

        Raises:
            UserError: it is not, or it demands another token.
            PassingError: it can't be reached.
        """
        from openai import APIStatusError

        self.state()
        with self._explained(f"the server at {masked(self.url)} can't load adapters"):
            try:
                self._post("load_lora_adapter", {"lora_name": "", "lora_path": ""})
            except APIStatusError as error:
                if error.status_code not in _INVALID:  # it read the request, which names nothing
                    raise

    def load(self, name: str, folder: str) -> None:
        """Load an adapter from a folder that the server sees.

        Raises:
            UserError: the server can't load adapters while it runs, or not this one.
            PassingError: it can't be reached.
        """
        with self._explained(
            f"the server at {masked(self.url)} can't load {name} from {folder}",
            "the server has to see that folder by the same path: on another machine, set "
            "serving.folder (--folder) to storage that both share",
            is_final=True,
        ):
            self._post("load_lora_adapter", {"lora_name": name, "lora_path": folder})

    def unload(self, name: str) -> None:
        """Unload an adapter; requests in flight are answered.

        Raises:
            UserError: the server has none of that name.
            PassingError: it can't be reached.
        """
        with self._explained(f"the server at {masked(self.url)} can't unload {name}"):
            self._post("unload_lora_adapter", {"lora_name": name})

    def log_probability(self, model: str, probe: Probe) -> float | None:
        """Return a model's log-probability per token of a probe's end, in nats.

        None if the model's vocabulary has not all of its tokens.

        Raises:
            PassingError: the server can't be reached.
        """
        from openai import BadRequestError

        with self._explained(f"the server at {masked(self.url)} gives no log-probabilities"):
            try:
                answer = self._client.completions.create(
                    model=model,
                    prompt=list(probe.tokens),
                    echo=True,
                    logprobs=1,
                    max_tokens=1,
                    temperature=0,
                )
            except BadRequestError:
                return None
            given = answer.choices[0].logprobs
            found = list(given.token_logprobs or ()) if given else []
            # JSON of another program may have null, NaN or texts here.
            asked = found[probe.first : len(probe.tokens)]
            counted = [one for one in asked if one is not None and math.isfinite(one)]
        if len(counted) != len(probe.tokens) - probe.first:
            raise UserError(
                f"the server at {masked(self.url)} does not return the log-probabilities of a "
                "prompt (`echo` with `logprobs`), by which adapters are told apart; use vLLM"
            )
        return sum(counted) / len(counted)

    def answer(self, model: str, row: ReplayRow, reference: ServingReference) -> ServedAnswer:
        """Return a model's greedy answer to a held-out row.

        Raises:
            UserError: the server refuses the request.
            PassingError: it can't be reached.
        """
        with self._explained(f"row {row.row}: the server at {masked(self.url)} refuses it"):
            if not row.messages:
                completed = self._client.completions.create(
                    model=model,
                    prompt=list(row.tokens),
                    max_tokens=reference.max_new_tokens,
                    temperature=0,
                )
                usage, text = completed.usage, completed.choices[0].text
            else:
                chatted = self._chat(model, row, reference)
                usage, text = chatted.usage, chatted.choices[0].message.content or ""
        return ServedAnswer(text, usage.prompt_tokens if usage else 0)

    def _chat(self, model: str, row: ReplayRow, reference: ServingReference) -> Any:  # noqa: ANN401 - openai's
        given: dict[str, Any] = {}
        if row.tools:
            # The answer is compared as text; a parser for calls would need another setting.
            given = {"tools": list(row.tools), "tool_choice": "none"}
        kwargs = dict(reference.chat_template_kwargs)
        return self._client.chat.completions.create(
            model=model,
            messages=[dict(one) for one in row.messages],  # type: ignore[misc]  # as recorded
            max_tokens=reference.max_new_tokens,
            temperature=0,
            extra_body={"chat_template_kwargs": kwargs} if kwargs else None,
            **given,
        )

    def _post(self, path: str, body: dict[str, str]) -> None:
        from openai import APIStatusError

        try:
            self._client.post(f"/{path}", body=body, cast_to=str)
        except APIStatusError as error:
            if error.status_code in _NOT_FOUND and not _has_reason(error):
                raise UserError(
                    f"the server at {masked(self.url)} does not load adapters while it runs; start "
                    "it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, as "
                    "`adapterflow serve` does"
                ) from error
            raise

    @contextmanager
    def _explained(self, what: str, advice: str = "", *, is_final: bool = False) -> Iterator[None]:
        """Raise the client's errors as ours.

        Args:
            what: the problem if the server refuses.
            advice: what to do if something is not found.
            is_final: whether an error of the server that has a reason is a refusal, too: vLLM 0.32
                answers status 500 where it can't use an adapter.
        """
        from openai import APIConnectionError, APIStatusError, OpenAIError

        try:
            yield
        except APIConnectionError as error:
            reason = error.__cause__ or error
            raise PassingError(
                f"the server at {masked(self.url)} can't be reached: {_line(reason)}"
            ) from error
        except APIStatusError as error:
            raise self._refusal(error, what, advice, is_final=is_final) from error
        except OpenAIError as error:
            raise UserError(f"{what}: {_line(error)}") from error
        except AdapterflowError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # The client hands on whatever JSON or page it gets.
            raise UserError(
                f"{what}: its reply has another form; give vLLM's address, as in http://host:8000"
            ) from error

    def _refusal(
        self, error: "APIStatusError", what: str, advice: str, *, is_final: bool
    ) -> UserError | PassingError:
        status = error.status_code
        if status in _REFUSED:
            return UserError(
                f"the server at {masked(self.url)} refuses the request ({status}): set its token "
                f"in {' or '.join(TOKEN_VARIABLES)}"
            )
        reason = f"{what} ({status}: {_line(error)})"
        is_refusal = is_final and _has_reason(error)
        if status in _PASSING or (status >= _FIRST_SERVER_ERROR and not is_refusal):
            return PassingError(reason)
        return UserError(f"{reason}; {advice}" if advice and status in _NOT_FOUND else reason)


def _client(url: str, max_retries: int) -> "OpenAI":
    try:
        from openai import OpenAI
    except ImportError as error:
        raise UserError(
            "publishing needs the package openai, which is not installed; install adapterflow "
            "again (`make install`)"
        ) from error

    tokens = (os.environ.get(name) for name in TOKEN_VARIABLES)
    return OpenAI(
        base_url=f"{url}/v1",
        # The client wants one, also for a server without.
        api_key=next((one for one in tokens if one), "none"),
        max_retries=max_retries,
        timeout=_TIMEOUT_SECONDS,
    )


def _has_reason(error: "APIStatusError") -> bool:
    """Return whether vLLM itself answered, and not a server without such an address."""
    body = error.body
    return isinstance(body, dict) and "detail" not in body and "message" in str(body)


def _line(error: object) -> str:
    return without_password(" ".join(str(error).split()))
