"""``ase``: any ASE calculator; ``emt``, ``lj`` and ``potential`` are such ones by a shorter name."""

from __future__ import annotations

import difflib
import importlib
import shutil
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sapis.core.errors import ConfigError, LabelerError, SapisError
from sapis.core.files import hash_file, require_file
from sapis.data.system import System
from sapis.labelers.evaluation import AseLabeler, keep
from sapis.labelers.labeler import Labeler, LabelerConfig

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

# A name by itself for calculators that are at hand. What a model computed is settled by its weights, so it keeps no history;
# the layers above know models, and this one knows only where a calculator is imported from.
SHORT = {"emt": "ase.calculators.emt.EMT", "lj": "ase.calculators.lj.LennardJones", "potential": "sapis.api.calculator"}
LEVELS = {"emt": "EMT", "lj": "Lennard-Jones"}


def build(config: LabelerConfig) -> Labeler:
    """Any ASE calculator. A charge other than 0 or a spin other than 1 reaches it through ``atoms.info``.

    Calculators that run a program get a folder of their own for each label; that of a failed one is kept where ``scratch`` is
    given.

    Raises:
        ConfigError: a path that is none, or no model.
        LabelerError: the calculator cannot be imported or built.
    """
    path = config.calculator or SHORT[config.name]
    module, create = _imported(path)
    method: dict[str, Any] = {"name": config.name, "calculator": path, "arguments": config.arguments, "version": _version(module)}
    level = config.level or LEVELS.get(config.name, path.rpartition(".")[2])
    if config.name == "potential":
        model = _model(config)
        digest = hash_file(model)
        method["arguments"] = {**config.arguments, "path": model.name, "hash": digest}
        level = config.level or f"model {digest[:12]}"
    first = _created(create, config, path)
    is_shared = config.is_stateless or config.name == "potential"

    def calculator(system: System) -> Calculator:
        made = first if is_shared else _created(create, config, path)
        if _runs_a_program(made):
            made.directory = new_scratch(config)
        return made

    return AseLabeler(method, level, calculator, on_success=_clean, on_failure=keep if config.scratch else _clean)


def new_scratch(config: LabelerConfig) -> str:
    """A new folder for one label."""
    if config.scratch is not None:
        config.scratch.mkdir(parents=True, exist_ok=True)
    return tempfile.mkdtemp(prefix="label-", dir=config.scratch)


def _clean(calculator: Calculator) -> None:
    if _runs_a_program(calculator):
        shutil.rmtree(calculator.directory, ignore_errors=True)


def _runs_a_program(calculator: Calculator) -> bool:
    from ase.calculators.calculator import FileIOCalculator
    from ase.calculators.genericfileio import GenericFileIOCalculator

    return isinstance(calculator, FileIOCalculator | GenericFileIOCalculator)


def _model(config: LabelerConfig) -> Path:
    path = config.arguments.get("path")
    if not isinstance(path, str | Path):
        raise ConfigError(expected="arguments: {path: model.sapis}", received=f"path {path!r}", where="labeler potential",
                          todo="give the model's file")
    require_file(Path(path))
    return Path(path)


def _imported(path: str) -> tuple[ModuleType, Callable[..., Any]]:
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ConfigError(expected="an import path such as ase.calculators.emt.EMT", received=repr(path),
                          where="labeler: calculator", todo="write package.module.Class")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs foreign code
        raise LabelerError(
            expected=f"a module {module_name!r} that can be imported",
            received=f"{type(error).__name__}: {error}", where="labeler: calculator",
            todo="check the spelling and install the package, or put your own file's folder on PYTHONPATH",
        ) from error
    create = getattr(module, name, None)
    if not callable(create):
        near = difflib.get_close_matches(name, dir(module), n=1)
        raise LabelerError(
            expected=f"a class or factory {name!r} in {module_name}", received="no such name",
            where=f"labeler: {path}",
            todo=f"did you mean {module_name}.{near[0]}?" if near else f"see the names in {module_name}",
        )
    return module, create


def _created(create: Callable[..., Any], config: LabelerConfig, path: str) -> Calculator:
    try:
        calculator = create(**config.arguments)
    except SapisError:
        raise
    except Exception as error:  # building a calculator runs foreign code, too
        raise LabelerError(
            expected="a calculator that can be built from the given arguments",
            received=f"{type(error).__name__}: {error}",
            where=f"labeler: {path}({config.arguments})",
            todo="mend `arguments`, or whatever the calculator asks for",
        ) from error
    if not hasattr(calculator, "get_forces") or not hasattr(calculator, "implemented_properties"):
        raise LabelerError(
            expected="an ASE calculator", received=f"a {type(calculator).__name__}",
            where=f"labeler: {path}", todo="give a class derived from ASE's Calculator",
        )
    return calculator


def _version(module: ModuleType) -> str:
    """The package's version, or where there is none a hash of the source: an edit makes another method."""
    package = importlib.import_module(module.__name__.partition(".")[0])
    try:
        version: str | None = metadata.version(package.__name__)
    except metadata.PackageNotFoundError:
        version = getattr(package, "__version__", None)
    if version is None and module.__file__ is not None:
        version = hash_file(Path(module.__file__))
    return str(version)
