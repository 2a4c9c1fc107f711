"""Before the six steps: check all that could prevent a promotion, before anything is trained."""

import hashlib
import json
from itertools import chain

from tasks.config import AdapterSettings, OnLeakage, RetrainAdapterConfig, ServingSettings
from tasks.durability.step import step
from tasks.engine.adapters import build_config, check_adapter, check_together
from tasks.engine.base import find_base, load_skeleton, tokenizer_of
from tasks.engine.data.rows import unread_text
from tasks.engine.data.splits import Leaks, find_leaks, normalized_question
from tasks.engine.data.tokens import TokenFile
from tasks.engine.preparation import recorded_renderer
from tasks.engine.scoring import (
    HeldOut,
    check_guards,
    check_installed,
    harness_sha256,
    open_held_out,
    open_older,
    open_tasks,
    source_sha256,
)
from tasks.errors import PassingError, UserError
from tasks.inference.adapters_on_base import found_adapters
from tasks.records import (
    CHALLENGER,
    CHAMPION,
    UNDECIDED,
    BaseSource,
    CheckedRecord,
    DataRecord,
    InputsRecord,
    Outcome,
    ResolvedLora,
    SourceRecord,
    VersionRecord,
)
from tasks.retraining import lineage
from tasks.runtime.progress import logger
from tasks.serving.server import Server
from tasks.tracking import OUTCOME_TAG, Registry, tracking_uri

_SHOWN_ROWS = 10


@step
def check_retraining(config: RetrainAdapterConfig, inputs: InputsRecord) -> CheckedRecord:
    """Check the held-out rows and the metrics, and find the champion in the registry.

    Raises:
        UserError: the rows are not those configured, too few, or in the training data; a metric
            is unknown or fails; a task of the harness can't be loaded; the champion is for another
            base, or can't be loaded; or the server of `serving.url` loads no adapters.
        PassingError: the registry can't be reached.
    """
    data, source = inputs.data, inputs.lora.source
    if config.evaluation.harness:
        check_installed(config.evaluation.harness)
    _check_server(config.serving)
    held_out = open_held_out(config.evaluation, config.data, config.base_model.task)
    _check_metrics(config, held_out)
    _check_count(held_out, config.decision.min_rows)
    if held_out.unread:
        logger().warning(
            "columns not read in %s: %s", held_out.source, unread_text(held_out.unread)
        )
    base = find_base(config.base_model, data.labels)
    _check_rows(data, held_out, base)
    leaks = _check_leakage(config, data, held_out)
    older = _checked_older(config, data, base)
    versions = _versions(config)
    champion = _champion(versions)
    if champion:
        _check_champion(champion, base)
        _check_beside(champion, base, config, inputs.lora)
    _check_harness(config, data, base)
    configuration = _configuration_sha256(config)
    made_of = lineage.identity(data, base.fingerprint, configuration, source)
    record = CheckedRecord(
        held_out=held_out.file,
        num_rows=len(held_out.examples),
        answers=held_out.kind,
        leaked_rows=leaks.exact,
        similar_rows=leaks.normalized,
        base_fingerprint=base.fingerprint,
        configuration_sha256=configuration,
        champion=champion,
        unchanged_since=_unchanged_since(versions, made_of, source),
        older=older.file if older else None,
        source=source,
    )
    _report(record, config.registry.name)
    return record


def is_outdated(checked: CheckedRecord, config: RetrainAdapterConfig, inputs: InputsRecord) -> bool:
    """Return whether another run has changed in the registry what a check found there.

    Raises:
        PassingError: the registry can't be reached.
    """
    versions = _versions(config)
    source = inputs.lora.source
    made_of = lineage.identity(
        inputs.data, checked.base_fingerprint, checked.configuration_sha256, source
    )
    champion = _champion(versions)
    return (champion and champion.version) != (
        checked.champion and checked.champion.version
    ) or _unchanged_since(versions, made_of, source) != checked.unchanged_since


def _check_server(settings: ServingSettings) -> None:
    """Check the server that a promoted version is published to; one that is away may come back."""
    if settings.url is None:
        return
    try:
        Server(settings.url, max_retries=0).check()
    except PassingError as error:
        logger().warning("%s; a promoted version is published if it is there by then", error)


def _versions(config: RetrainAdapterConfig) -> list[VersionRecord]:
    return Registry(tracking_uri(config.tracking), config.registry.name).versions()


def _champion(versions: list[VersionRecord]) -> VersionRecord | None:
    return next((one for one in versions if CHAMPION in one.aliases), None)


def _configuration_sha256(config: RetrainAdapterConfig) -> str:
    """Return the sha256 of the configuration, and of the code and files that its scores are of."""
    own = [source_sha256(place) for place in config.evaluation.metrics.values()]
    if config.evaluation.harness:
        own.append(harness_sha256(config.evaluation.harness))
    if not own:
        return config.sha256()
    return hashlib.sha256(json.dumps([config.sha256(), own]).encode()).hexdigest()


def _check_metrics(config: RetrainAdapterConfig, held_out: HeldOut) -> None:
    for name in (config.decision.metric, *config.decision.row_guards):
        if name not in held_out.metric_names:
            raise UserError(
                f"decision names the metric {name!r}; for answers of the kind {held_out.kind} "
                f"there are {', '.join(held_out.metric_names)}"
            )
    # Call each custom metric once: a broken one must not fail after the training.
    for name in config.evaluation.metrics:
        held_out.metrics[name](held_out.expected[0], held_out.expected[0])


def _check_harness(config: RetrainAdapterConfig, data: DataRecord, base: BaseSource) -> None:
    """Check that the harness's tasks can be loaded and asked, and measure what is guarded."""
    settings = config.evaluation.harness
    if settings is None:
        return
    if settings.apply_chat_template and not (
        data.chat_template or tokenizer_of(base).chat_template
    ):
        raise UserError(
            f"evaluation.harness.apply_chat_template is true, but {base.reference} has no chat "
            "template; set it to false, or data.chat_template to a template"
        )
    check_guards(open_tasks(settings), config.decision.harness_guards)


def _checked_older(
    config: RetrainAdapterConfig, data: DataRecord, base: BaseSource
) -> HeldOut | None:
    """Check the older rows as those that decide; None if there are none."""
    if config.decision.older is None:
        return None
    older = open_older(
        config.decision.older, config.evaluation, config.data, config.base_model.task
    )
    for name in config.decision.older.guards:
        if name not in older.metric_names:
            raise UserError(
                f"decision.older.guards names the metric {name!r}; for answers of the kind "
                f"{older.kind} there are {', '.join(older.metric_names)}"
            )
    _check_rows(data, older, base)
    _check_leakage(config, data, older)
    return older


def _check_count(held_out: HeldOut, min_rows: int) -> None:
    """Check the number of distinct questions; a repeated one is no further evidence."""
    num_rows = len(held_out.examples)
    distinct = len({normalized_question(example) for example in held_out.examples})
    repeated = f" ({num_rows - distinct} repeat another's question)" if distinct < num_rows else ""
    if distinct < min_rows:
        raise UserError(
            f"{held_out.source} has {num_rows} rows{repeated}, and decision.min_rows is "
            f"{min_rows}, so nothing could be promoted; add rows, or lower decision.min_rows"
        )
    if repeated:
        logger().warning(
            "%s has %d rows%s: the confidence interval counts each as independent and is too "
            "narrow; remove the duplicates",
            held_out.source,
            num_rows,
            repeated,
        )


def _check_rows(data: DataRecord, held_out: HeldOut, base: BaseSource) -> None:
    held_out.check(recorded_renderer(data, base, held_out.row_format), base)


def _check_leakage(config: RetrainAdapterConfig, data: DataRecord, held_out: HeldOut) -> Leaks:
    # The tokens include the eval rows: the training selects its checkpoint by them.
    seen = chain.from_iterable(TokenFile(one.path).examples() for one in data.tokens)
    leaks = find_leaks(held_out.examples, seen)
    rows = sorted({*leaks.exact, *leaks.normalized})
    if not rows:
        return leaks
    shown = ", ".join(map(str, rows[:_SHOWN_ROWS])) + (", …" if len(rows) > _SHOWN_ROWS else "")
    message = (
        f"{len(rows)} of the {len(held_out.examples)} rows of {held_out.source} occur in the "
        f"training data, {len(leaks.exact)} of them verbatim, the others by their question, "
        f"ignoring case, punctuation and whitespace: rows {shown}"
    )
    if config.evaluation.on_leakage is OnLeakage.ERROR:
        raise UserError(
            f"{message}; remove them from one of the two, or set evaluation.on_leakage to report"
        )
    logger().warning(message)
    return leaks


def _check_champion(champion: VersionRecord, base: BaseSource) -> None:
    made_for = champion.tags.get(lineage.FINGERPRINT, base.fingerprint)
    if made_for != base.fingerprint:
        raise UserError(
            f"the champion {champion.uri} is for the base {champion.tags.get('lineage.base')} "
            f"({made_for}), and not for {base.reference} ({base.fingerprint}), so the two can't be "
            "compared; set base_model to the champion's base, or use another registry.name"
        )
    here = lineage.answers(base)
    if here != {key: champion.tags.get(key, value) for key, value in here.items()}:
        raise UserError(
            f"the champion {champion.uri} is for another task or other classes than these "
            f"{len(base.labels)} of {base.settings.task.value}, so the two can't be compared; set "
            "base_model.task and labels to the champion's, or use another registry.name"
        )


def _check_beside(
    champion: VersionRecord, base: BaseSource, config: RetrainAdapterConfig, lora: ResolvedLora
) -> None:
    """Check that the champion can be downloaded, and loaded beside the challenger."""
    wanted = AdapterSettings(source=champion.uri, name=CHAMPION)
    challenger = build_config(lora.peft_config)
    try:
        with found_adapters([wanted], tracking_uri(config.tracking)) as (folder,):
            both = {CHAMPION: folder.config, CHALLENGER: challenger}
            check_together(both, load_skeleton(base))
            check_adapter(folder, base, tokenizer_of(base), wanted.template, any_base=False)
    except UserError as mistake:
        raise UserError(
            f"the champion {champion.uri} can't be compared with: {mistake}; restore it, make "
            "another version champion with `adapterflow rollback`, or use another registry.name"
        ) from mistake


def _unchanged_since(
    versions: list[VersionRecord], made_of: dict[str, str], source: SourceRecord | None
) -> int | None:
    """Return the last version that learned the same; None if there is none.

    One that begins with a version would only repeat the rows if that version learned them already,
    whatever it began with itself.
    """
    if (found := _version_made_from(versions, made_of)) or source is None:
        return found
    began = [one for one in versions if one.tags.get(lineage.ADAPTER) == source.weights.sha256]
    return _version_made_from(began, lineage.of_own_rows(made_of))


def _version_made_from(versions: list[VersionRecord], made_of: dict[str, str]) -> int | None:
    """Return the last version made from the same inputs that has a final decision."""
    same = [
        one.version
        for one in versions
        if one.tags.get(OUTCOME_TAG, Outcome.OUTDATED) not in UNDECIDED
        and made_of.items() <= one.tags.items()
    ]
    return same[-1] if same else None


def _report(record: CheckedRecord, name: str) -> None:
    champion = f"version {record.champion.version}" if record.champion else "none yet"
    logger().info(
        "%d held-out rows (answers: %s, sha256 %s); champion of %s: %s",
        record.num_rows,
        record.answers,
        record.held_out.sha256[:12],
        name,
        champion,
    )
