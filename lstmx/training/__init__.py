"""A training loop for any model: bit-exact across kills, with verified checkpoints."""

from lstmx.training.allocator import keep_freed_memory
from lstmx.training.checkpoint import CheckpointError, Restored, restore_params
from lstmx.training.config import (
    config_differences,
    config_from_dict,
    config_to_dict,
    field_types,
    replace_fields,
)
from lstmx.training.loop import NonFiniteError, train, train_in, train_in_memory
from lstmx.training.loop_config import LoopConfig
from lstmx.training.metrics import best_validation, read_metrics
from lstmx.training.module_task import ModuleTask
from lstmx.training.optimizer import OptimizerConfig, decay_mask, make_optimizer, make_schedule
from lstmx.training.result import Result, Trained
from lstmx.training.run import Run, RunError, RunRecord, check_assets, claim_run, open_run, read_assets
from lstmx.training.signals import StopRequest, stop_on_signals
from lstmx.training.state import TrainState, init_state, make_keys, make_step
from lstmx.training.task import VALIDATION, HasAssets, HasPictures, HasReport, Task, assets_of

__all__ = [
    "VALIDATION",
    "CheckpointError",
    "HasAssets",
    "HasPictures",
    "HasReport",
    "LoopConfig",
    "ModuleTask",
    "NonFiniteError",
    "OptimizerConfig",
    "Restored",
    "Result",
    "Run",
    "RunError",
    "RunRecord",
    "StopRequest",
    "Task",
    "TrainState",
    "Trained",
    "assets_of",
    "best_validation",
    "check_assets",
    "claim_run",
    "config_differences",
    "config_from_dict",
    "config_to_dict",
    "decay_mask",
    "field_types",
    "init_state",
    "keep_freed_memory",
    "make_keys",
    "make_optimizer",
    "make_schedule",
    "make_step",
    "open_run",
    "read_assets",
    "read_metrics",
    "replace_fields",
    "restore_params",
    "stop_on_signals",
    "train",
    "train_in",
    "train_in_memory",
]
