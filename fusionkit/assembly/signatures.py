"""What the classes and functions of a configuration take, read from their source, so that torch need not be imported."""

import ast
import functools
import importlib.util
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

Parameters = Mapping[str, inspect.Parameter]
TRANSPARENT = {"_defaults_from_env_vars"}  # decorators that leave a signature as it is: lightning.Trainer's
KINDS: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "None": type(None)}
LISTS = ("tuple", "list", "Sequence")
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Unreadable(Exception):
    """The source does not tell: what is asked for has to be imported."""


class Definition(NamedTuple):
    """A statement that defines a name, and the module that it stands in."""

    module: str
    node: ast.stmt


def signature_of(name: str) -> Parameters:
    """The parameters of the class or function with this dotted name; ImportError where there is none."""
    try:
        return _read(_definition(name)) or {}
    except Unreadable:
        return _inspect(name)


def attribute_of(name: str, attribute: str) -> Any:
    """A set or another plain value that is written into the class with this dotted name."""
    try:
        return _class_value(_definition(name), attribute)
    except Unreadable:
        from hydra.utils import get_object

        return getattr(get_object(name), attribute)


def _inspect(name: str) -> Parameters:
    from hydra.utils import get_object

    target = get_object(name)
    constructor = getattr(target, "__init__", None)
    if isinstance(target, type) and getattr(constructor, "__module__", None) == "torch.nn.modules.module":
        return {}  # nn.Module's own constructor seems to take anything, and takes nothing
    try:
        return inspect.signature(target, eval_str=True).parameters
    except NameError:  # an annotation of something that is imported for type checkers only
        return inspect.signature(target).parameters


def _read(found: Definition) -> Parameters | None:
    """None of a class without a constructor."""
    node = found.node
    if isinstance(node, Function):
        is_bound = [ast.unparse(decorator) for decorator in node.decorator_list] == ["classmethod"]
        if not is_bound:
            _require_plain(node.decorator_list)
        return dict(list(_parameters(node.args, found.module).items())[is_bound:])
    if not isinstance(node, ast.ClassDef):
        raise Unreadable
    if [ast.unparse(decorator).partition("(")[0].split(".")[-1] for decorator in node.decorator_list] == ["dataclass"]:
        return _fields(node, found.module)
    _require_plain(node.decorator_list)
    for statement in node.body:
        if isinstance(statement, Function) and statement.name in ("__init__", "__new__"):
            _require_plain(statement.decorator_list)
            return dict(list(_parameters(statement.args, found.module).items())[1:])
    names = [ast.unparse(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases]
    names = [named for named in names if named.split(".")[-1] not in ("Generic", "Protocol", "ABC", "object")]
    for named in names:
        if named == "nn.Module":
            continue
        above = _definition(f"{found.module}.{named}")
        if not isinstance(above.node, ast.ClassDef):  # such as NamedTuple
            raise Unreadable
        if (taken := _read(above)) is not None:  # a base without a constructor leaves it to the next
            return taken
    if node.keywords:  # a metaclass
        raise Unreadable
    return None


def _require_plain(decorators: Sequence[ast.expr]) -> None:
    if any(ast.unparse(decorator) not in TRANSPARENT for decorator in decorators):
        raise Unreadable


def _parameters(arguments: ast.arguments, module: str) -> Parameters:
    found = []
    plain = [*arguments.posonlyargs, *arguments.args]
    missing: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults))
    for argument, default in zip(plain, [*missing, *arguments.defaults], strict=True):
        found.append(_parameter(argument, default, inspect.Parameter.POSITIONAL_OR_KEYWORD, module))
    if arguments.vararg:
        found.append(_parameter(arguments.vararg, None, inspect.Parameter.VAR_POSITIONAL, module))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append(_parameter(argument, default, inspect.Parameter.KEYWORD_ONLY, module))
    if arguments.kwarg:
        found.append(_parameter(arguments.kwarg, None, inspect.Parameter.VAR_KEYWORD, module))
    return {parameter.name: parameter for parameter in found}


def _parameter(argument: ast.arg, default: ast.expr | None, kind: Any, module: str) -> inspect.Parameter:
    return inspect.Parameter(
        argument.arg, kind, default=_default(default), annotation=_annotation(argument.annotation, module)
    )


def _default(node: ast.expr | None) -> Any:
    """The value of a constant; of any other default only that there is one."""
    if node is None:
        return inspect.Parameter.empty
    return node.value if isinstance(node, ast.Constant) else ...


def _fields(node: ast.ClassDef, module: str) -> Parameters:
    """The arguments of a dataclass."""
    found: dict[str, inspect.Parameter] = {}
    for base in node.bases:
        found |= _read(_definition(f"{module}.{ast.unparse(base)}")) or {}
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or "ClassVar" in ast.unparse(field.annotation):
            continue
        if isinstance(field.value, ast.Call) and "init=False" in ast.unparse(field.value):
            continue
        argument = ast.arg(ast.unparse(field.target), field.annotation)
        found[argument.arg] = _parameter(argument, field.value, inspect.Parameter.POSITIONAL_OR_KEYWORD, module)
    return found


def _annotation(node: ast.expr | None, module: str) -> Any:
    """The type that an annotation of numbers, texts, truth values, lists and unions of them says; ``object`` for others."""
    if node is None:
        return inspect.Parameter.empty
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _annotation(ast.parse(node.value, mode="eval").body, module)
    text = ast.unparse(node)
    if text in KINDS:
        return KINDS[text]
    if isinstance(node, ast.BinOp):
        return _annotation(node.left, module) | _annotation(node.right, module)
    if isinstance(node, ast.Subscript):
        outer = ast.unparse(node.value).split(".")[-1]
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if outer in ("Optional", "Union"):
            members = [_annotation(part, module) for part in inner] + [type(None)] * (outer == "Optional")
            return functools.reduce(lambda left, right: left | right, members)
        outer = outer.lower() if outer in ("List", "Tuple") else outer
        return _list_of(outer, [ast.unparse(part) for part in inner]) if outer in LISTS else object
    if isinstance(node, ast.Name | ast.Attribute):
        try:  # a name for an annotation; those of other libraries are not looked up: their sources are long
            alias = _definition(f"{module}.{text}", within=module.partition(".")[0])
        except (Unreadable, ImportError):
            return object
        if isinstance(alias.node, ast.Assign):
            return _annotation(alias.node.value, alias.module)
    return object


def _list_of(outer: str, inner: Sequence[str]) -> Any:
    """The type of a list, with that of its values where one holds for all and is written there."""
    held = KINDS.get(inner[0], Any) if outer != "tuple" or inner[1:] == ["..."] else Any
    kind: Any = {"tuple": tuple, "list": list, "Sequence": Sequence}[outer]
    return kind[held, ...] if outer == "tuple" else kind[held]


def _class_value(found: Definition, name: str) -> Any:
    if not isinstance(found.node, ast.ClassDef):
        raise Unreadable
    for statement in found.node.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return _value(statement.value, found.module)
    for base in found.node.bases:
        if isinstance(base, ast.Name):
            with suppress(Unreadable):
                return _class_value(_definition(f"{found.module}.{base.id}"), name)
    raise Unreadable


def _value(node: ast.expr, module: str) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "frozenset":
        return frozenset().union(*(_value(argument, module) for argument in node.args))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _value(node.left, module) | _value(node.right, module)
    if isinstance(node, ast.Attribute):
        return _class_value(_definition(f"{module}.{ast.unparse(node.value)}"), node.attr)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise Unreadable from None


def _definition(name: str, depth: int = 0, within: str | None = None) -> Definition:
    """Where a dotted name is defined, through the imports of other modules, or of those ``within`` one package and ours."""
    parts = name.split(".")
    path, module, package = None, "", True
    for count in range(1, len(parts)):
        following = ".".join(parts[:count])
        found = _file_of(following) if package else None
        if found is None:
            break
        path, module, package = found, following, found.name == "__init__.py"
    rest = parts[module.count(".") + 1 :] if module else parts
    if path is None or not 1 <= len(rest) <= 2 or depth > 9:
        raise Unreadable
    body = _tree(path).body
    if len(rest) == 2:  # a method
        owner = _definition(f"{module}.{rest[0]}", depth + 1, within)
        if not isinstance(owner.node, ast.ClassDef):
            raise Unreadable
        module, body, rest = owner.module, owner.node.body, rest[1:]
    for statement in reversed(list(_statements(body))):
        if isinstance(statement, ast.ClassDef | Function) and statement.name == rest[0]:
            return Definition(module, statement)
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == rest[0]:
            return Definition(module, statement)
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == f"{rest[0]}.__signature__":
            borrowed = ast.unparse(statement.value).removeprefix("inspect.signature(").removesuffix(")")
            return _definition(f"{module}.{borrowed}", depth + 1, within)
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == rest[0]:
                    home = module.split(".")[: module.count(".") + 1 + package - statement.level]
                    source = ".".join([*(home if statement.level else []), *filter(None, [statement.module])])
                    if within and source.partition(".")[0] not in (within, "fusionkit"):
                        raise Unreadable
                    return _definition(f"{source}.{alias.name}", depth + 1, within)
    raise Unreadable


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _statements([*statement.body, *statement.orelse])


@functools.cache
def _file_of(module: str) -> Path | None:
    """The source of a module, which is not imported, nor is its package."""
    parent, _, _ = module.rpartition(".")
    try:
        if not parent:
            spec = importlib.util.find_spec(module)
        else:
            folder = _file_of(parent)
            spec = PathFinder.find_spec(module, [str(folder.parent)]) if folder else None
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@functools.cache
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        raise Unreadable from None
