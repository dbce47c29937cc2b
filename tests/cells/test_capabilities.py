"""What cells and networks offer besides the protocol, and that no other code looks for it."""

import re
from pathlib import Path

import pytest

import lstmx
from lstmx.cells import capabilities
from lstmx.cells.capabilities import has

OFFERED = {
    "HasOutputSize": [lstmx.LSTM(4, projection_size=2), lstmx.Stack((lstmx.GRU(4),))],
    "LearnsInitialState": [lstmx.GRU(4), lstmx.Mogrifier(lstmx.GRU(4))],
    "HasGates": [lstmx.LSTM(4), lstmx.Regularized(lstmx.LSTM(4), cell_zoneout=0.1).parts[0]],
    "HasCandidate": [lstmx.LSTM(4), lstmx.MGU(4)],
    "MasksByGate": [lstmx.LSTM(4)],
    "IsLinear": [lstmx.MinLSTM(4), lstmx.MinGRU(4)],
    "SetsOwnDtype": [lstmx.Mogrifier(lstmx.GRU(4))],
    "DrawsNoise": [lstmx.Regularized(lstmx.LSTM(4), cell_zoneout=0.1).parts[0]],
    "Network": [
        lstmx.Stack((lstmx.GRU(4),)), lstmx.Bidirectional(lstmx.GRU(4)), lstmx.Regularized(lstmx.GRU(4))
    ],
    "IsStochastic": [lstmx.Stack((lstmx.GRU(4),))],
}  # fmt: skip


@pytest.mark.parametrize("name", OFFERED)
def test_what_is_offered_is_found(name):
    capability = getattr(capabilities, name)
    assert all(has(cell, capability) for cell in OFFERED[name])
    assert not has(object(), capability)
    others = [lstmx.Elman(4), lstmx.Stack((lstmx.GRU(4),)), lstmx.MinGRU(4)]
    assert not all(has(other, capability) for other in others)


def test_optional_members_are_looked_for_in_one_place():
    names = {name for each in OFFERED for name in capabilities._members(getattr(capabilities, each))}
    names -= {"dtype"}  # arrays have one too
    assert names >= {"gates", "noise", "coefficients", "start", "learn_initial_state"}
    pattern = re.compile(rf"(?:hasattr|getattr)\([\w.]+, \"({'|'.join(names)})\"")
    folder = Path(lstmx.__file__).parent
    found = {path.name: pattern.findall(path.read_text()) for path in folder.rglob("*.py")}
    assert {name: hits for name, hits in found.items() if hits} == {}
