"""A task does not inherit another task: what several have in common is a part that each has."""

import importlib
import pkgutil

import fusionkit.tasks
from fusionkit.tasks.base import Task


def concrete_tasks() -> list[type[Task]]:
    modules = [
        importlib.import_module(f"fusionkit.tasks.{m.name}") for m in pkgutil.iter_modules(fusionkit.tasks.__path__)
    ]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    return [kind for kind in found if issubclass(kind, Task) and kind is not Task]


def test_every_task_is_a_task_directly() -> None:
    assert len(concrete_tasks()) >= 15
    for kind in concrete_tasks():
        assert kind.__bases__ == (Task,), kind
