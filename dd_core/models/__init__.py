"""The architectures, each parametrised by the width multiplier k, alone or with all trials of an arm in one network."""

from dd_core.models.build import build, build_trials
from dd_core.models.stacking import load_state, stack_states

__all__ = ["build", "build_trials", "load_state", "stack_states"]
