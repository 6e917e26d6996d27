"""`sapis doctor`: is everything here that sapis needs?"""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec

import typer

NEEDED = {"torch": "the model", "ase": "structures", "vesin": "neighbour lists", "safetensors": "model files", "lmdb": "stores"}
OPTIONAL = {"numba": "compiled loops, several times faster than without", "tblite": "xtb: labels by GFN1 and GFN2",
            "pyscf": "dft: labels by density functionals", "openmm": "openmm: labels by force fields",
            "parsl": "cluster: labels as jobs",
            "rdkit": "smiles: molecules from SMILES", "h5py": "hdf5: SPICE and ANI-1x", "pooch": "sets: public data sets by name",
            "tensorboard": "tensorboard: live curves"}


def doctor() -> None:
    """Versions of what sapis uses, threads, and a quick self-test."""
    from sapis.core.records import provenance

    about = provenance()
    machine = about["machine"]
    typer.echo(f"sapis {about['sapis']}, Python {about['python']}, {machine['processor']}, {machine['cores']} cores")
    is_healthy = True
    for package, purpose in (NEEDED | OPTIONAL).items():
        if find_spec(package) is None:
            is_healthy &= package not in NEEDED
            typer.echo(f"  missing  {package:12s} {purpose}  (pip install {package})")
        else:
            typer.echo(f"  ok       {package:12s} {metadata.version(package):12s} {purpose}")
    if is_healthy:
        import torch

        from sapis.model.backend import has_loops

        typer.echo(f"  ok       threads      {torch.get_num_threads()} (training takes them from its settings)")
        typer.echo(f"  ok       back-end     {'compiled' if has_loops() else 'padded, or edges where that is faster'} (on CPUs)")
        typer.echo(f"  ok       self-test    {_self_test()}")
    raise typer.Exit(0 if is_healthy else 1)


def _self_test() -> str:
    """A random model must be indifferent to a turn of the molecule. Compiles the loops where that was not done before."""
    import numpy as np
    from ase.build import molecule

    from sapis.data.system import System
    from sapis.model.config import ModelConfig
    from sapis.model.potential import TransformerPotential

    potential = TransformerPotential(ModelConfig(n_channels=16, n_channels_carried=16, n_heads=2), elements=[1, 6, 8],
                                     reference_energies=[0.0] * 3, scale=1.0, average_neighbors=8, precision="float64")
    atoms = molecule("CH3CH2OH")
    turned = atoms.copy()
    turned.rotate(37, (1, 2, 3))
    first, second = potential.predict([System.from_atoms(atoms), System.from_atoms(turned)])
    difference = abs(first.energy - second.energy)
    verdict = "" if difference < 1e-9 and np.isfinite(first.energy) else " – BROKEN"
    return f"energy changes by {difference:.1e} eV under rotation{verdict}"
