"""Train the variants of a set: those that have no adapter yet, in the place that is configured."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from uuid import UUID

from prefect.client.orchestration import get_client

from flows.variants.places import Place, open_place
from flows.variants.variant_runs import VariantRuns
from tasks.config import TrainVariantsConfig
from tasks.durability.device_slot import device_slot
from tasks.errors import UserError
from tasks.records import PlanRecord, ReportRecord, RunRecord, VariantRecord, VariantResult
from tasks.runtime.progress import logger
from tasks.runtime.time_left import time_left_text
from tasks.variants.comparison import failed, trained
from tasks.variants.search import Search


def train_all(
    config: TrainVariantsConfig, plan: PlanRecord, run: RunRecord
) -> tuple[VariantResult, ...]:
    """Train the variants, and return what became of each, in the order of the plan.

    A variant that an earlier attempt trained is not trained again. One that fails does not keep
    the others from being trained.

    Raises:
        BaseException: the set was stopped; its variants are cancelled, and no process is left.
    """
    with ExitStack() as stack:
        client = stack.enter_context(get_client(sync_client=True))
        place = stack.enter_context(open_place(config, run.folder))
        if place.needs_device:
            stack.enter_context(device_slot())
        training = _Training(
            config, VariantRuns(client, config, run, place.deployment_id), place, run
        )
        training.num_planned = plan.num_variants
        if config.variants.search:
            training.search(Search(config, run.folder))
        else:
            training.train(plan.variants)
    return tuple(training.results)


class _Training:
    """The results so far, and how long the rest will take."""

    def __init__(
        self, config: TrainVariantsConfig, runs: VariantRuns, place: Place, run: RunRecord
    ) -> None:
        self._config, self._runs, self._place, self._run = config, runs, place, run
        self.results: list[VariantResult] = []
        self.num_planned = 0
        self._num_done = 0
        self._num_trained = 0
        self._started = time.monotonic()

    def search(self, search: Search) -> None:
        """Train the trials of a search, round after round."""
        variants = search.begun()
        while variants or (variants := search.next_round()):
            for variant, result in zip(variants, self.train(variants), strict=True):
                search.tell(variant, result.score)
            variants = []

    def train(self, variants: Sequence[VariantRecord]) -> list[VariantResult]:
        """Train variants; return their results in order."""
        found: dict[str, VariantResult] = {}
        waiting: dict[UUID, VariantRecord] = {}

        def on_ended(flow_run_id: UUID) -> None:
            variant = waiting[flow_run_id]
            report = self._runs.report(flow_run_id)
            self._num_trained += 1
            found[variant.name] = self._ended(self._result(variant, flow_run_id, report))

        try:
            self._find(variants, found, waiting)
            self._place.execute(list(waiting), on_ended)
        except BaseException:
            self._runs.cancel(waiting)
            raise
        results = [found[variant.name] for variant in variants]
        self.results += results
        return results

    def _find(
        self,
        variants: Sequence[VariantRecord],
        found: dict[str, VariantResult],
        waiting: dict[UUID, VariantRecord],
    ) -> None:
        """Create the variants' flow runs, or find them again, with the results that there are."""
        for variant in variants:
            try:
                flow_run_id = self._runs.create(variant).id
            except UserError as mistake:  # of a search: settings that exclude each other
                found[variant.name] = self._ended(failed(variant, "", str(mistake)))
                continue
            report = self._runs.report(flow_run_id)
            if isinstance(report, ReportRecord):
                found[variant.name] = self._result(variant, flow_run_id, report)
                self._num_done += 1
            else:
                waiting[flow_run_id] = variant
                self._runs.reopen(flow_run_id)
        if found and waiting:
            logger().info("%d variants are trained already; %d to do", len(found), len(waiting))

    def _result(
        self, variant: VariantRecord, flow_run_id: UUID, report: ReportRecord | str
    ) -> VariantResult:
        if isinstance(report, str):
            return failed(variant, str(flow_run_id), report)
        return trained(variant, report, self._config.variants.metric, self._run.folder)

    def _ended(self, result: VariantResult) -> VariantResult:
        """Log that a variant ended, and the time that is left."""
        self._num_done += 1
        left = max(0, self.num_planned - self._num_done)
        each = (time.monotonic() - self._started) / max(1, self._num_trained)
        what = f"failed: {result.error}" if result.error else _numbers(result)
        log = logger().warning if result.error else logger().info
        log(
            "%s: %s (%d of %d%s)",
            result.name,
            what,
            self._num_done,
            self.num_planned,
            f", {time_left_text(left * each)}" if left else "",
        )
        return result


def _numbers(result: VariantResult) -> str:
    held_out = "" if result.eval_loss is None else f", held-out loss {result.eval_loss:.4f}"
    return f"loss {result.train_loss:.4f}{held_out}"
