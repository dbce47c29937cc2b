"""Sweeps of hyperparameters: spaces of configs, studies that survive their processes, leaderboards."""

from lstmx.sweeps.journal import SweepError
from lstmx.sweeps.leaderboard import Entry, entries
from lstmx.sweeps.sampling import PRUNERS, SAMPLERS
from lstmx.sweeps.search import Asked, Search
from lstmx.sweeps.space import Choice, Range, Space, parse_space
from lstmx.sweeps.study import Claim, Spec, Study, read_spec
from lstmx.sweeps.trial import train_trial

__all__ = [
    "PRUNERS",
    "SAMPLERS",
    "Asked",
    "Choice",
    "Claim",
    "Entry",
    "Range",
    "Search",
    "Space",
    "Spec",
    "Study",
    "SweepError",
    "entries",
    "parse_space",
    "read_spec",
    "train_trial",
]
