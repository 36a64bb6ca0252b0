"""What holds of every module of the room."""

import importlib
import pkgutil
from dataclasses import is_dataclass

import pytest

from fusionkit import evaluation

MODULES = [
    importlib.import_module(f"fusionkit.evaluation.{module.name}")
    for module in pkgutil.iter_modules(evaluation.__path__)
]
CLASSES = {
    value
    for module in MODULES
    for value in vars(module).values()
    if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.__name__
}


@pytest.mark.parametrize("kind", sorted(CLASSES, key=lambda kind: kind.__name__))
def test_values_are_not_changed_once_made(kind):
    assert kind.__dataclass_params__.frozen
