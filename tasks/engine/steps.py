"""The six steps as functions of their inputs: no Prefect, no MLflow, one live model passed along.

Each is called by the task of the same step. Together with `prepare_data` they make a complete run:

    data = prepare_data(config.data, config.base_model, config.seed, folder / "tokens").record
    model, base = load_base(config.base_model, data.labels)
    lora = configure_lora(config.lora, base, config.seed)
    injected = inject_adapter(model, lora, folder / "initial.safetensors")
    trained = train_adapter(model, injected, data, config.training, folder / "checkpoints")
    saved = save_adapter(model, trained, data, config.output, folder / "adapter")
    fresh, _ = load_base(config.base_model, data.labels)
    loaded = load_adapter(fresh, saved, data, config.inference)

Everything heavy is imported where it is used, so that importing this module costs nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config import (
    BaseModelSettings,
    DataSettings,
    InferenceSettings,
    LearningObjective,
    LoraSettings,
    OutputSettings,
    TrainingSettings,
)
from tasks.records import (
    BaseModelRecord,
    DataRecord,
    InjectedRecord,
    LoadedRecord,
    LoraRecord,
    ResolvedLora,
    SavedRecord,
    TrainedRecord,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.engine.data.tokens import PreparedData
    from tasks.engine.training import Group, OnTraining


def prepare_data(
    settings: DataSettings,
    base: BaseModelSettings,
    seed: int,
    folder: Path,
    objective: LearningObjective = LearningObjective.SFT,
) -> "PreparedData":
    """Read, check and tokenize the rows for a base, into files in `folder`.

    Args:
        settings: where the rows are, and how they become tokens.
        base: the model that they are for.
        seed: of the split.
        folder: for the files.
        objective: what is learned from them, as `training.objective` says.

    Raises:
        UserError: a row or the base cannot be used; the message names it.
    """
    from tasks.engine.base import find_base
    from tasks.engine.data.splits import read_examples
    from tasks.engine.preparation import prepare_data

    sets = read_examples(settings, seed, base.task, base.labels, objective)
    return prepare_data(sets, settings, seed, find_base(base, sets.labels), folder)


def load_base(
    settings: BaseModelSettings, labels: Sequence[str] | None = None
) -> tuple["PreTrainedModel", BaseModelRecord]:
    """Step 1: load the base model, frozen, onto the device.

    Args:
        settings: which model, and the dtype and quantization of its weights.
        labels: the classes, in the order of the model's outputs; the settings' unless given.

    Raises:
        UserError: there is no such model, or it cannot be loaded as the settings say.
    """
    from tasks.engine.base import describe_base, find_base
    from tasks.engine.base import load_base as load

    source = find_base(settings, labels)
    model = load(source)
    return model, describe_base(source, model)


def configure_lora(
    lora: LoraSettings | ResolvedLora, base: BaseModelRecord, seed: int
) -> LoraRecord:
    """Step 2: configure LoRA for the base, with every choice written out.

    Args:
        lora: the configuration that a check before step 1 resolved; settings are resolved here.
        base: the loaded base.
        seed: of the adapter's initial weights.

    Raises:
        UserError: a target name matches nothing, or PEFT refuses the configuration.
    """
    from tasks.engine.adapters import resolve_lora

    resolved = resolve_lora(lora, base) if isinstance(lora, LoraSettings) else lora
    return LoraRecord(**dict(resolved), base=base, seed=seed)


def inject_adapter(model: "PreTrainedModel", lora: LoraRecord, file: Path) -> InjectedRecord:
    """Step 3: add the adapter, and write its initial weights to `file`.

    Raises:
        VerificationError: an adapted layer is missing or unexpected, the fresh adapter changes the
            base's outputs, or one that continues another has other outputs than that one.
    """
    from tasks.engine.adapters import inject

    return inject(model, lora, file)


def train_adapter(  # noqa: PLR0913 - a training run has this many inputs
    model: "PreTrainedModel",
    injected: InjectedRecord,
    data: DataRecord,
    settings: TrainingSettings,
    folder: Path,
    on_progress: "OnTraining | None" = None,
    *,
    on_evaluating: Callable[[int, int], None] | None = None,
    on_reference: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    group: "Group | None" = None,
    max_eval_rows: int | None = None,
) -> TrainedRecord:
    """Step 4: train the adapter, from the last checkpoint in `folder` if there is one.

    Args:
        model: a base with the fresh adapter.
        injected: the state that the model is in.
        data: the run's data record; the tokens are read from the files that it names.
        settings: of the training.
        folder: for checkpoints and the trained weights.
        on_progress: called at every step and for everything logged.
        on_evaluating: called with the number of held-out rows evaluated so far, and of all.
        on_reference: called with the number of pairs that the reference was computed for so far,
            and of all, where the objective has one.
        should_stop: whether to save a checkpoint and stop; asked after every step, and after every
            batch of held-out rows or of the reference.
        group: the processes that train together, if several do.
        max_eval_rows: evaluate on at most this many held-out rows, the first ones.

    Raises:
        UserError: a token file is missing, or the optimizer does not run on this machine.
        AdapterflowError: the process or the GPU ran out of memory.
        StoppedError: it was asked to stop.
        VerificationError: the adapter did not change, the base did, or a loss was not finite.
    """
    from tasks.engine.preparation import open_data
    from tasks.engine.training import ALONE, train

    opened = open_data(data, injected.lora.base)
    if opened.eval and max_eval_rows is not None:
        rows, sources = opened.eval.rows, opened.eval.sources
        count = max_eval_rows * data.rows_per_item
        few = replace(opened.eval, rows=rows[:count], sources=sources[:count])
        opened = replace(opened, eval=few)
    return train(
        model,
        injected,
        opened,
        settings=settings,
        folder=folder,
        on_progress=on_progress or (lambda _: None),
        on_evaluating=on_evaluating,
        on_reference=on_reference,
        should_stop=should_stop,
        group=group or ALONE,
    )


def save_adapter(
    model: "PreTrainedModel",
    trained: TrainedRecord,
    data: DataRecord,
    settings: OutputSettings,
    folder: Path,
) -> SavedRecord:
    """Step 5: save the adapter to a folder of its own, and push it if the settings say so.

    The saved adapter is verified on a fresh base. A caller that keeps no reference to `model` lets
    its memory be freed before that base is loaded. In a process that keeps bases warm, the model
    is given back, and may become the fresh base.

    Raises:
        VerificationError: what was saved is not what was trained.
        AdapterflowError: the push failed; the local folder is complete.
    """
    from tasks.engine.adapters import (
        Prompting,
        files_to_save,
        lineage_of,
        probe_logits,
        write_card,
    )
    from tasks.engine.adapters import save_adapter as save_files
    from tasks.engine.base import give_back, push_adapter, release_memory

    live_logits = probe_logits(model)
    card = write_card(trained, data, settings)
    lineage = lineage_of(trained.injected.lora.source, data)
    files = files_to_save(model, trained, Prompting.of(data), card, lineage)
    is_kept = give_back(model)
    del model
    if not is_kept:
        release_memory()
    repo = settings.push_to_hub
    push = partial(push_adapter, repo_id=repo, private=settings.private) if repo else None
    return save_files(files, folder, live_logits, push)


def load_adapter(
    model: "PreTrainedModel",
    saved: SavedRecord,
    data: DataRecord,
    settings: InferenceSettings,
    on_progress: Callable[[int, int], None] | None = None,
) -> LoadedRecord:
    """Step 6: load the saved adapter on a fresh base, and sample answers of both.

    Args:
        model: a fresh base.
        saved: the adapter.
        data: the run's data record; the prompts are its held-out rows.
        settings: how many rows to sample, and the most tokens of an answer.
        on_progress: called with the number of finished answers and of all answers.

    Raises:
        VerificationError: the loaded adapter has no effect on the base.
    """
    from tasks.engine.scoring import load_and_sample

    return load_and_sample(model, saved, data, settings, on_progress)
