"""What a method is, for its records: the meaning of its code, so that a comment or a moved module changes nothing."""

import ast
import hashlib
import json
from typing import Any

from bench import plugin

# what a parser notes beside the meaning
_ASIDE = {"annotation", "ctx", "kind", "returns", "type_comment", "type_ignores", "type_params"}


def method_source(target: str) -> str:
    """SHA-256 over the meanings of a method's module and of the modules of its package, or of the user's own, that it imports.

    Nothing is imported for it. Docstrings, comments, layout, annotations, the names of modules and unused imports do not count: the
    same code in another place is the same method.
    """
    modules = plugin.own_modules(target.rpartition(".")[0])
    return hashlib.sha256("".join(sorted(meaning(plugin.source(name) or "") for name in modules)).encode()).hexdigest()


def meaning(source: str) -> str:
    """SHA-256 of what a module's source means; of the text itself where it does not parse."""
    try:
        tree = plugin.parsed(source)
    except (SyntaxError, ValueError, RecursionError):
        return hashlib.sha256(source.encode()).hexdigest()
    body = [line for line in _without_docstring(tree.body) if not _is_for_types(line)]
    return hashlib.sha256(json.dumps([_imports(body), _plain(body)]).encode()).hexdigest()


def _plain(node: Any) -> Any:
    """A part of a syntax tree as JSON that is the same in every version of Python."""
    if isinstance(node, list):
        return [_plain(entry) for entry in node if not isinstance(entry, ast.Import | ast.ImportFrom)]
    if isinstance(node, ast.Constant):
        return repr(node.value)
    if isinstance(node, ast.AST):
        parts = {name: _without_docstring(value) if name == "body" else value for name, value in ast.iter_fields(node)}
        return [
            type(node).__name__,
            {name: _plain(value) for name, value in parts.items() if name not in _ASIDE and value not in (None, [])},
        ]
    return node


def _imports(body: list[ast.stmt]) -> list[list[str]]:
    """The imported things that the code uses, each with the name it has there; where they come from does not count."""
    nodes = [node for line in body for node in _all_nodes(line)]
    used = {node.id for node in nodes if isinstance(node, ast.Name)} | {"*"}
    aliases = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    things = [
        (alias.name.rpartition(".")[2], alias.asname) if alias.asname else (alias.name, alias.name.partition(".")[0]) for alias in aliases
    ]
    return sorted([thing, name] for thing, name in things if name in used)


def _all_nodes(node: ast.AST) -> list[ast.AST]:
    """A node and all below it, without annotations."""
    values = [value for name, value in ast.iter_fields(node) if name not in _ASIDE]
    below = [child for value in values for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST)]
    return [node, *(deeper for child in below for deeper in _all_nodes(child))]


def _without_docstring(body: Any) -> Any:
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            return rest
    return body


def _is_for_types(line: ast.stmt) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, whose imports serve annotations alone."""
    return isinstance(line, ast.If) and ast.unparse(line.test).endswith("TYPE_CHECKING")
