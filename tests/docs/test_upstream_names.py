"""What we use of other libraries without their promise: still there, and as it was seen.

`docs/fragile-reaches.md` says what each is for. A failure says what moved and who uses it.
"""

import ast
import inspect
import re
import sqlite3
import tomllib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from tasks.engine.training.trainer import AdapterTrainer
from tasks.tracking.moving import PLACES
from tasks.tracking.store import database_file, store_client

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "fragile-reaches.md"
HARNESS_TASKS = "tasks/engine/scoring/harness_tasks.py"
TRAINER = "tasks/engine/training/trainer.py"
SEEN = {
    "transformers": "5.23",
    "peft": "0.21",
    "mlflow": "3.17",
    "prefect": "3.8",
    "torch": "2.13",
    "ray": "2.60",
    "lm_eval": "0.4.13",
}


@dataclass(frozen=True)
class Reach:
    """A name, by its module and its place in it, and the file of ours that uses it."""

    module: str
    name: str
    user: str
    parameters: tuple[str, ...] | None = None
    """Of a function, those that we give or override, by name."""
    value: object = None
    """Of a constant, what it was."""

    def __str__(self) -> str:
        """Return where it is."""
        return f"{self.module}:{self.name}"

    @property
    def moved(self) -> str:
        """Return what a failure says."""
        library = self.module.partition(".")[0]
        return (
            f"{self} is not in {library} {version(library)} as it was in {SEEN[library]}; "
            f"{self.user} uses it, and {PAGE.name} says what for"
        )


REACHES = (
    Reach("transformers", "Trainer._save", TRAINER, ("output_dir", "state_dict")),
    Reach("transformers", "Trainer._save_checkpoint", TRAINER, ("model", "trial")),
    Reach(
        "transformers",
        "Trainer._load_from_checkpoint",
        TRAINER,
        ("resume_from_checkpoint", "model"),
    ),
    Reach("transformers", "Trainer._load_best_model", TRAINER, ()),
    Reach("transformers", "Trainer._run_epoch", TRAINER, ("model", "epoch")),
    Reach("transformers", "Trainer._determine_best_metric", TRAINER, ("metrics", "trial")),
    Reach("transformers", "Trainer._get_train_sampler", TRAINER, ("train_dataset",)),
    Reach("transformers", "Trainer._save_rng_state", TRAINER, ("output_dir",)),
    Reach("transformers", "Trainer._load_rng_state", TRAINER, ("checkpoint",)),
    Reach("transformers", "Trainer._prepare_inputs", TRAINER, ("inputs",)),
    Reach(
        "transformers",
        "PreTrainedConfig._attn_implementation",
        "tasks/engine/kernels/row_attention.py",
    ),
    Reach(
        "transformers",
        "PreTrainedModel._hf_peft_config_loaded",
        "tasks/engine/adapters/loading.py",
        value=False,
    ),
    Reach("transformers.integrations.peft", "logger", "tasks/engine/adapters/loading.py"),
    Reach(
        "transformers.modeling_gguf_pytorch_utils",
        "tqdm",
        "tasks/engine/base/upstream_progress.py",
    ),
    Reach("transformers.modeling_utils", "logger", "tasks/engine/base/weight_files.py"),
    Reach(
        "transformers.utils.chat_template_utils",
        "render_jinja_template",
        "tasks/engine/data/rendering/template_process.py",
        ("conversations", "chat_template", "add_generation_prompt", "tools"),
    ),
    Reach("transformers.activations", "ACT2FN", "tasks/engine/base/config_file.py"),
    Reach(
        "transformers.modeling_rope_utils",
        "ROPE_INIT_FUNCTIONS",
        "tasks/engine/base/config_file.py",
    ),
    Reach(
        "transformers.quantizers.auto",
        "AutoQuantizationConfig.from_dict",
        "tasks/engine/base/config_file.py",
        ("quantization_config_dict",),
    ),
    Reach(
        "peft.tuners.tuners_utils",
        "BaseTunerLayer.adapter_layer_names",
        "tasks/engine/adapters/loading.py",
    ),
    *(
        Reach("peft.tuners.lora", name, "tasks/engine/adapters/siblings.py", value=value)
        for name, value in (
            (
                "LoraLayer.adapter_layer_names",
                (
                    "lora_A",
                    "lora_B",
                    "lora_embedding_A",
                    "lora_embedding_B",
                    "lora_magnitude_vector",
                ),
            ),
            (
                "LoraLayer.other_param_names",
                (
                    "r",
                    "lora_alpha",
                    "scaling",
                    "lora_dropout",
                    "use_dora",
                    "use_rslora",
                    "lora_bias",
                ),
            ),
        )
    ),
    Reach(
        "peft.tuners.tuners_utils",
        "_check_lora_target_modules_mamba",
        "tasks/engine/adapters/adaptable.py",
        ("peft_config", "model", "target_name"),
    ),
    Reach(
        "peft.utils.transformers_weight_conversion",
        "convert_peft_config_for_transformers",
        "tasks/engine/adapters/adaptable.py",
        ("peft_config", "model", "conversions"),
    ),
    *(
        Reach("peft.utils.transformers_weight_conversion", name, "tasks/engine/adapters/experts.py")
        for name in (
            "_MODEL_TO_CONVERSION_PATTERN",
            "_MOE_TARGET_MODULE_MAPPING",
            "_MOE_FUSED_TARGETS",
        )
    ),
    Reach(
        "peft.tuners.tuners_utils",
        "check_target_module_exists",
        "tasks/engine/adapters/patterns.py",
        ("config", "key"),
    ),
    Reach(
        "peft.tuners.tuners_utils",
        "match_target_against_key",
        "tasks/engine/adapters/selection.py",
        ("target_pattern", "key"),
    ),
    Reach(
        "peft.utils.other",
        "get_pattern_key",
        "tasks/engine/adapters/patterns.py",
        ("pattern_keys", "key_to_match"),
    ),
    Reach("peft.optimizers.lorafa", "LoraFAOptimizer", "tasks/engine/training/optimizers.py"),
    Reach("peft.tuners.lora.layer", "ParamWrapper", "tasks/engine/adapters/injection.py"),
    Reach("peft.mapping", "PEFT_TYPE_TO_PREFIX_MAPPING", "tasks/engine/adapters/adapter_state.py"),
    *(
        Reach("peft.mapping", name, "tasks/engine/adapters/methods.py")
        for name in ("PEFT_TYPE_TO_CONFIG_MAPPING", "PEFT_TYPE_TO_TUNER_MAPPING")
    ),
    Reach(
        "peft.tuners.tuners_utils",
        "BaseTuner.uses_shared_state",
        "tasks/engine/adapters/methods.py",
        value=False,
    ),
    Reach(
        "peft.tuners.loha",
        "LoHaModel.target_module_mapping",
        "tasks/engine/adapters/method_config.py",
    ),
    Reach(
        "peft.utils",
        "ModulesToSaveWrapper.adapter_layer_names",
        "tasks/engine/adapters/loading.py",
        value=("modules_to_save",),
    ),
    Reach(
        "peft.utils.constants",
        "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",
        "tasks/engine/adapters/targets.py",
    ),
    Reach(
        "mlflow.store.tracking.sqlalchemy_store",
        "SqlAlchemyStore",
        "tasks/tracking/store.py",
        ("db_uri", "default_artifact_root"),
    ),
    Reach(
        "mlflow.store.tracking.sqlalchemy_store",
        "SqlAlchemyStore._hard_delete_run",
        "tasks/tracking/offline/discarding.py",
        ("run_id",),
    ),
    Reach("mlflow.db", "upgrade.callback", "tasks/tracking/store.py", ("url",)),
    Reach("mlflow.tracking.context.registry", "resolve_tags", "tasks/tracking/run.py", ("tags",)),
    Reach("mlflow.utils.validation", "MAX_PARAM_VAL_LENGTH", "tasks/tracking/run.py", value=6000),
    Reach(
        "mlflow.utils.validation",
        "MAX_PARAMS_TAGS_PER_BATCH",
        "tasks/tracking/offline/writer.py",
        value=100,
    ),
    Reach(
        "mlflow.utils.validation",
        "MAX_METRICS_PER_BATCH",
        "tasks/tracking/offline/writer.py",
        value=1000,
    ),
    Reach(
        "mlflow.utils.validation",
        "MAX_DATASET_DIGEST_SIZE",
        "tasks/tracking/datasets.py",
        value=36,
    ),
    Reach("mlflow.store.db.utils", "_logger", "tasks/tracking/store.py"),
    Reach(
        "prefect.server.database",
        "provide_database_interface",
        "flows/server/prefect_server.py",
        (),
    ),
    Reach(
        "prefect.server.database.interface",
        "PrefectDBInterface.session_context",
        "flows/server/prefect_server.py",
        ("begin_transaction",),
    ),
    Reach(
        "prefect.server.api.server",
        "create_app",
        "flows/server/embedded_server.py",
        ("ephemeral", "final"),
    ),
    Reach(
        "prefect.server.events.ordering.memory",
        "CausalOrdering.wait_for_leader",
        "flows/server/event_order.py",
        ("event",),
    ),
    Reach(
        "prefect.filesystems",
        "LocalFileSystem.write_path",
        "tasks/durability/kept_results.py",
        ("path", "content"),
    ),
    Reach(
        "prefect.filesystems",
        "LocalFileSystem._block_type_name",
        "tasks/durability/kept_results.py",
    ),
    Reach(
        "prefect.filesystems",
        "LocalFileSystem._block_type_slug",
        "tasks/durability/kept_results.py",
    ),
    Reach("prefect.flow_engine", "run_flow", "flows/cli/runs.py", ("flow", "flow_run")),
    Reach(
        "prefect.utilities.engine",
        "_prefect_sigterm_handler",
        "tasks/durability/stopping.py",
        ("sig_num",),
    ),
    Reach("prefect.utilities.names", "generate_slug", "flows/cli/runs.py", ("n_words",)),
    Reach("prefect._internal.concurrency", "logger", "flows/cli/console.py"),
    Reach("torch", "ops.aten._softmax_backward_data", "tasks/engine/kernels/tiled_attention.py"),
    Reach("torch", "Tensor._backward_hooks", "tasks/engine/base/pristine.py"),
    Reach("torch", "ops.aten.silu_backward", "tasks/engine/kernels/norms_and_gates.py"),
    *(
        Reach("torch", f"ops.mkldnn.{name}", "tasks/engine/kernels/answer_layers.py")
        for name in ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    ),
    Reach(
        "transformers.cache_utils",
        "DynamicLayer.update",
        "tasks/engine/objectives/key_value_cache.py",
        ("key_states", "value_states"),
    ),
    Reach(
        "transformers.cache_utils",
        "DynamicLayer.lazy_initialization",
        "tasks/engine/objectives/key_value_cache.py",
        ("key_states", "value_states"),
    ),
    Reach(
        "torch.distributed.elastic.multiprocessing",
        "SubprocessContext.close",
        "tasks/launching/ranks.py",
        ("death_sig", "timeout"),
    ),
    Reach(
        "ray.train.torch",
        "TorchTrainer._create_default_callbacks",
        "tasks/launching/ray_supervisor.py",
    ),
    Reach(
        "ray._private.state",
        "state.get_max_resources_from_cluster_config",
        "tasks/launching/ray_group.py",
    ),
    Reach(
        "lm_eval",
        "evaluate",
        "tasks/engine/scoring/harness.py",
        (
            "lm",
            "task_dict",
            "limit",
            "bootstrap_iters",
            "log_samples",
            "apply_chat_template",
            "fewshot_as_multiturn",
        ),
    ),
    Reach(
        "lm_eval.api.model",
        "LM.set_cache_hook",
        "tasks/engine/scoring/harness.py",
        ("cache_hook",),
    ),
    *(
        Reach("lm_eval.tasks", name, HARNESS_TASKS, parameters)
        for name, parameters in (
            ("TaskManager", ("include_path", "include_defaults")),
            ("TaskManager.task_index", None),
            ("TaskManager.load", ("task_list",)),
        )
    ),
    *(
        Reach("lm_eval.api.task", name, HARNESS_TASKS, parameters)
        for name, parameters in (
            ("Task.set_config", ("key", "value")),
            ("Task.set_fewshot_seed", ("seed",)),
            ("Task.build_all_requests", ("limit",)),
        )
    ),
    *(
        Reach(module, "tqdm", "tasks/engine/scoring/harness_library.py")
        for module in ("lm_eval.api.task", "lm_eval.models.huggingface")
    ),
    Reach(
        "torch.nn.attention.varlen",
        "varlen_attn",
        "tasks/engine/kernels/kernel_attention.py",
        ("query", "key", "value", "scale", "window_size", "enable_gqa"),
    ),
)
OF_EXTRAS = ("ray", "lm_eval")
SET_WHILE_RUNNING = ("_tr_loss", "_globalstep_last_logged", "_initial_global_step")
"""Attributes of a Trainer that no class has."""


@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_the_name_is_as_it_was_seen(reach: Reach) -> None:
    """It is there, takes the arguments that it is given, and a constant has its value."""
    library = reach.module.partition(".")[0]
    if library in OF_EXTRAS:
        pytest.importorskip(library)
    try:
        found: Any = import_module(reach.module)
        for part in reach.name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        pytest.fail(reach.moved)
    if reach.parameters is not None:
        known = inspect.signature(found).parameters
        assert set(reach.parameters) <= set(known), f"{reach.moved}: it takes {', '.join(known)}"
    if reach.value is not None:
        assert found == reach.value, f"{reach.moved}: it is {found!r}, and was {reach.value!r}"


@pytest.mark.parametrize("name", SET_WHILE_RUNNING)
def test_trainer_still_sets_what_the_class_does_not_have(name: str) -> None:
    """What is taken from, or set in, a running Trainer is set by its own code."""
    moved = f"transformers {version('transformers')}: Trainer sets no {name}; {TRAINER} uses it"
    assert f"self.{name} = " in inspect.getsource(Trainer), moved


def test_trainer_calls_an_epoch_by_keywords() -> None:
    """Our `_run_epoch` passes on whatever it is given by name."""
    assert re.search(r"self\._run_epoch\(\s*model=", inspect.getsource(Trainer)), (
        f"transformers {version('transformers')}: Trainer calls _run_epoch otherwise; {TRAINER}"
    )


def test_a_control_keeps_whether_training_had_ended() -> None:
    """A checkpoint's state has the flag that a resumed run is stopped by."""
    from transformers import TrainerControl

    assert "should_training_stop" in TrainerControl().state()["args"], (
        f"transformers {version('transformers')}: TrainerControl keeps another state; {TRAINER}"
    )


def test_a_lora_layer_has_what_tells_it_from_other_kinds() -> None:
    """The attributes by which plain LoRA is recognized are there, without documentation."""
    import torch
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    layer = Linear(torch.nn.Linear(4, 4), "default", LoraConfig(r=2), r=2)
    needed = ("lora_variant", "lora_bias", "scaling", "merged", "disable_adapters", "lora_A")
    gone = [name for name in needed if not hasattr(layer, name)]
    user = "tasks/engine/kernels/adapter_layers.py"
    assert not gone, f"peft {version('peft')}: a LoRA layer has no {gone}; {user} uses it"


def test_mlflow_s_tables_have_the_columns_that_are_rewritten(tmp_path: Path) -> None:
    """A store of this MLflow has each column that the repair of a moved store sets."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    store_client(uri)
    with closing(sqlite3.connect(str(database_file(uri)))) as database:
        for table, column in PLACES:
            known = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
            assert column in known, (
                f"mlflow {version('mlflow')}: table {table} has no {column}, but "
                f"{', '.join(sorted(known))}; tasks/tracking/moving.py rewrites it"
            )


def test_prefect_s_tables_have_the_columns_that_are_set() -> None:
    """The time until which a heartbeat is waited for is where the server gives it grace."""
    from prefect.server.database import provide_database_interface

    db = provide_database_interface()
    for table, columns in (
        (db.Automation, {"id", "name"}),
        (db.AutomationBucket, {"automation_id", "start", "end"}),
    ):
        gone = columns - {column.name for column in table.__table__.columns}
        assert not gone, (
            f"prefect {version('prefect')}: {table.__tablename__} has no {', '.join(gone)}; "
            "flows/server/prefect_server.py sets it"
        )


def test_a_flow_s_results_are_kept_where_we_replace_the_storage() -> None:
    """A flow run's context has the store, and the store the storage."""
    from prefect.context import FlowRunContext
    from prefect.results import ResultStore

    fields = {*FlowRunContext.model_fields, *ResultStore.model_fields}
    assert {"result_store", "result_storage"} <= fields, (
        f"prefect {version('prefect')}: tasks/durability/kept_results.py finds no result storage"
    )


@pytest.mark.parametrize("library", SEEN)
def test_only_the_seen_minor_version_is_allowed(library: str) -> None:
    """The project's bounds are the minor version that the page names."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["ray"], *extras["harness"]]
    [bounds] = [one for one in needed if re.match(rf"{library}\W", one)]
    before, _, last = SEEN[library].rpartition(".")
    assert bounds == f"{library}>={SEEN[library]},<{before}.{int(last) + 1}"
    assert re.search(
        rf"^## {library} {SEEN[library]}$", PAGE.read_text(), re.IGNORECASE | re.MULTILINE
    )


def test_the_page_lists_every_private_name_that_is_used() -> None:
    """No file reaches for a private name of a library that the page, and this test, lack."""
    page = PAGE.read_text()
    listed = {reach.name.split(".")[-1] for reach in REACHES} | {*SET_WHILE_RUNNING}
    overridden = {name for name in vars(AdapterTrainer) if hasattr(Trainer, name)}
    used = {name: TRAINER for name in overridden if re.match(r"_[a-z]", name)}
    for file in _sources():
        used |= dict.fromkeys(_foreign(file), str(file.relative_to(CHECKOUT)))
    missing = {name: file for name, file in used.items() if name not in listed or name not in page}
    assert not missing, f"not in {PAGE.name} and its test: {missing}"


@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_the_file_that_is_named_uses_it(reach: Reach) -> None:
    """What nobody reaches for any more goes from the page and from here."""
    text = (CHECKOUT / reach.user).read_text()
    assert reach.name.split(".")[-1] in text or reach.module in text


def _foreign(file: Path) -> Iterator[str]:
    """Return the private attributes that a file uses and none of our classes defines."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Attribute(attr=name) if re.match(r"_[a-z]", name) and name not in _ours():
                yield name


@cache
def _ours() -> set[str]:
    """Return the private names that our code defines: functions, fields, what objects are given."""
    names = {"_asdict", "_exit"}  # public: NamedTuple's, and of os
    for file in _sources():
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.FunctionDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                    names.add(name)
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                    names.add(name)
    return names.difference(SET_WHILE_RUNNING)


def _sources() -> list[Path]:
    return sorted([*CHECKOUT.glob("tasks/**/*.py"), *CHECKOUT.glob("flows/**/*.py")])
