"""The source text that decides what a function does, as far as its own module says it.

Decides what counts as a change of a step's code: the text of the function and of every top-level definition of
its module that it uses, directly or through others, comments included. It does not look into other modules:
of an import it sees which name comes from where.
"""

import ast
import inspect
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from batch_platform.errors import RecipeError

_Definitions = dict[str, list[tuple[ast.AST, str]]]


def code_of(name: str, function: Callable[..., Any]) -> str:
    """The text of a function and of what it uses of its module, in the order of the names.

    Args:
        name: what the function is called in messages.
        function: a function defined in a file.

    Raises:
        RecipeError: the source cannot be read.
    """
    try:
        own = textwrap.dedent(inspect.getsource(function))
        module, _ = inspect.findsource(function)
        definitions = _definitions("".join(module))
        used = _reachable(ast.parse(own), definitions)
    except (OSError, TypeError, SyntaxError) as error:
        raise RecipeError(
            f"step {name}: its source code cannot be read ({error}), so that the recipe has no version; "
            "define it as a function in a module"
        ) from error
    return "\n".join([own, *(text for key in sorted(used) for _, text in definitions[key])])


def _definitions(source: str) -> _Definitions:
    """What the top level of a module defines: by name, the nodes and their text."""
    lines = source.splitlines()
    found: _Definitions = defaultdict(list)
    for node in _top_level(ast.parse(source).body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                origin = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
                name = alias.asname or alias.name.split(".")[0]
                found[name].append((node, f"{origin}import {alias.name} as {name}"))
        else:
            for name in _names_defined(node):
                found[name].append((node, _text(node, lines)))
    return found


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With):
            nested = (child for child in ast.iter_child_nodes(node))
            handlers = [handler.body for handler in getattr(node, "handlers", [])]
            yield from _top_level([child for child in nested if isinstance(child, ast.stmt)])
            for handler in handlers:
                yield from _top_level(handler)
        else:
            yield node


def _names_defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and _is_store(part)}
    return set()


def _is_store(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _text(node: ast.stmt, lines: list[str]) -> str:
    decorators = [decorator.lineno for decorator in getattr(node, "decorator_list", [])]
    return "\n".join(lines[min([node.lineno, *decorators]) - 1 : node.end_lineno])


def _reachable(start: ast.AST, definitions: _Definitions) -> set[str]:
    found: set[str] = set()
    waiting: list[ast.AST] = [start]
    while waiting:
        used = {part.id for part in ast.walk(waiting.pop()) if isinstance(part, ast.Name)}
        for name in (used & definitions.keys()) - found:
            found.add(name)
            waiting += [node for node, _ in definitions[name]]
    return found
