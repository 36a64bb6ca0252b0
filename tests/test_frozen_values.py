"""What holds of every dataclass that scores, predictions and pictures are made of."""

import importlib
import pkgutil
from dataclasses import is_dataclass

import pytest

from fusionkit import inference, scoring, visual

MODULES = [
    importlib.import_module(f"{room.__name__}.{module.name}")
    for room in (inference, scoring, visual)
    for module in pkgutil.iter_modules(room.__path__)
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
