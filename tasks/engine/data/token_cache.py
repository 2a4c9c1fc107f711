"""Tokenised rows, kept by content: the same rows, template and tokenizer are tokenised once.

A scheduled retraining, a retry in a new process and the steps of one run all need the same tokens.
"""

import hashlib
import inspect
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from tasks.config import DataSettings
from tasks.engine.data import prompts, rendering, tokenization
from tasks.engine.data.examples import Split
from tasks.engine.data.rendering import Renderer
from tasks.engine.data.tokenization import IGNORED, TokenizedRow, TokenizedSplit
from tasks.records import SplitRecord
from tasks.runtime import home

log = logging.getLogger(__name__)

_KEPT_FILES = 40


def tokenized(
    split: Split, renderer: Renderer, settings: DataSettings, make: Callable[[], TokenizedSplit]
) -> TokenizedSplit:
    """Give the split's tokens as they are kept, else make and keep them.

    Raises:
        UserError: whatever `make` raises; nothing is kept then.
    """
    file = home.cache() / "tokens" / f"{_key(split, renderer, settings)}.npz"
    found = _read(file, split)
    if found is None:
        found = make()
        try:
            _write(file, split, found)
        except OSError as error:  # a full disk: they are made again next time
            log.warning("the tokens can't be kept: %s", error)
    return found


def _key(split: Split, renderer: Renderer, settings: DataSettings) -> str:
    tokenizer = renderer.tokenizer
    parts = {
        "rows": split.sha256,
        "template": renderer.template,
        "separator": renderer.separator,
        "ends": renderer.ends,
        "settings": [settings.loss_on, settings.max_length, settings.on_lost_answer],
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special": [str(tokenizer.eos_token), str(tokenizer.bos_token), tokenizer.chat_template],
        # Another version of the code may tokenise otherwise.
        "code": [
            inspect.getsource(rendering),
            inspect.getsource(prompts),
            inspect.getsource(tokenization),
        ],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _read(file: Path, split: Split) -> TokenizedSplit | None:
    try:
        with np.load(file, allow_pickle=False) as kept:
            ids, trained, ends = kept["ids"], kept["trained"], kept["ends"]
            examples = [split.examples[at] for at in kept["examples"].tolist()]
            record = SplitRecord.model_validate_json(str(kept["record"]))
            record = record.model_copy(update={"source": split.source})
    except (OSError, ValueError, KeyError, IndexError, EOFError, BadZipFile):  # absent or spoiled
        return None
    labels = np.where(trained, ids, IGNORED)
    rows = [
        TokenizedRow(row_ids.tolist(), row_labels.tolist())
        for row_ids, row_labels in zip(
            np.split(ids, ends[:-1]), np.split(labels, ends[:-1]), strict=True
        )
    ]
    with suppress(OSError):
        os.utime(file)  # the ones not used for longest are removed
    return TokenizedSplit(rows, examples, record)


def _write(file: Path, split: Split, made: TokenizedSplit) -> None:
    place = {id(example): at for at, example in enumerate(split.examples)}
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}.new.npz")
    np.savez(
        new,
        ids=np.concatenate([np.array(row.input_ids, dtype=np.int32) for row in made.rows]),
        trained=np.concatenate([np.array(row.labels) != IGNORED for row in made.rows]),
        ends=np.cumsum([len(row.input_ids) for row in made.rows]),
        examples=np.array([place[id(example)] for example in made.examples]),
        record=np.array(made.record.model_dump_json()),
    )
    new.replace(file)
    newest_first = sorted(file.parent.glob("*.npz"), key=_last_used, reverse=True)
    for old in newest_first[_KEPT_FILES:]:
        old.unlink(missing_ok=True)


def _last_used(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # another process removed it
        return 0.0
