"""The engine's side of step 4: trainer, plan, checkpoints and arguments."""

from tasks.engine.training.callbacks import OnTraining, TrainingProgress
from tasks.engine.training.checkpoints import Checkpoints
from tasks.engine.training.group import (
    ALONE,
    Group,
    LostPeerError,
    ProcessGroup,
    meeting,
    passing_together,
)
from tasks.engine.training.loss_curve import draw_loss_curve
from tasks.engine.training.optimizers import check_training_settings
from tasks.engine.training.plan import LAYOUT, planned, training_identity
from tasks.engine.training.sharding import ShardingGroup, base_bytes
from tasks.engine.training.training import retrain, train

__all__ = [
    "ALONE",
    "LAYOUT",
    "Checkpoints",
    "Group",
    "LostPeerError",
    "OnTraining",
    "ProcessGroup",
    "ShardingGroup",
    "TrainingProgress",
    "base_bytes",
    "check_training_settings",
    "draw_loss_curve",
    "meeting",
    "passing_together",
    "planned",
    "retrain",
    "train",
    "training_identity",
]
