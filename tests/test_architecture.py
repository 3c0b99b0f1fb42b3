"""The diagram in docs/architecture.md is the imports of the code."""

import ast
import re
from pathlib import Path

import compressor

CORE = Path(compressor.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
PACKAGES = {path.name for path in CORE.iterdir() if (path / "__init__.py").exists()}

Graph = dict[str, set[str]]


def read_imports() -> Graph:
    """Package -> the packages that its modules import; `plugins` are the built-in ones."""
    graph: Graph = {package: set() for package in (*PACKAGES, "plugins")}
    for package in graph:
        folder = CORE.parent / "plugins" if package == "plugins" else CORE / package
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    root, _, rest = node.module.partition(".")
                    if root == "compressor":
                        graph[package] |= {name.partition(".")[0] for name in (rest, *(a.name for a in node.names))}
        graph[package] = (graph[package] & PACKAGES) - {package}
    return graph


def read_diagram() -> Graph:
    """Package -> the packages that its arrows point to."""
    page = PAGE.read_text(encoding="utf-8")
    (diagram,) = re.findall(r"```mermaid\n(.*?)```", page, flags=re.DOTALL)
    graph: Graph = {package: set() for package in (*PACKAGES, "plugins")}
    for start, end in re.findall(r"(\w+) --> (\w+)", diagram):
        graph[start].add(end)
    return graph


def follow(graph: Graph, start: str) -> set[str]:
    """All that can be reached by arrows."""
    found, waiting = set[str](), [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_the_diagram_is_the_imports() -> None:
    diagram, imports = read_diagram(), read_imports()
    for package in imports:
        assert follow(diagram, package) == follow(imports, package), package


def test_no_arrow_follows_from_others() -> None:
    diagram = read_diagram()
    for start, ends in diagram.items():
        for end in ends:
            assert end not in set().union(*(follow(diagram, other) for other in ends - {end})), f"{start} --> {end}"


def test_the_page_names_every_folder_and_file() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for package in PACKAGES:
        assert f"| `{package}/` |" in page
    for name in re.findall(r"`([a-z_]+/[a-z_]+\.py)`", page):
        assert (CORE / name).is_file(), name
    for path in CORE.glob("*.py"):
        assert path.name == "__init__.py" or f"`{path.name}`" in page
