"""Molecules as SMILES: an enumeration of fragments on cores, peptides, ions, the same for the same seed.

A fragment is SMILES with places ``{}`` for further fragments; ``@`` and ``&`` stand for its ring closures, numbered as fragments
are put into each other. What is drawn is put into RDKit's canonical form, and molecules that come twice are kept once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, product

import numpy as np

from sapis.core.errors import ConfigError, MissingDependencyError
from sapis.core.seeds import generator

# Small skeletons, as QM9 has them, with two or three places.
CHAINS = (
    "C{}{}", "CC{}{}", "N({}){}", "O({}){}", "S({}){}", "C(=O)({}){}", "C(=C{}){}", "C#C{}", "C=N{}", "N=C({}){}", "CO{}",
    "CN({}){}", "C(=O)N({}){}", "C(=O)O{}", "CS{}", "S(=O)({}){}", "S(=O)(=O)({}){}", "P({})({}){}", "P(=O)({})({}){}",
    "C(=S)({}){}", "N(N({}){}){}", "NO{}", "OO{}", "CSSC{}", "C(=O)C(=O){}", "C(F)({}){}", "C(Cl)({}){}", "C(Br)({}){}",
    "CC(=NO){}", "C=CC(=O){}", "N=[N+]=[N-]", "C=C=C{}", "CC(C)({}){}", "C(C#N)({}){}", "CP(C){}", "OP(=O)(OC){}",
)
RINGS = (
    "C@C({})C@{}", "C@CC({})C@{}", "C@CCC({})C@{}", "C@CCCC({})C@{}", "C@OC@{}", "C@NC@{}", "C@SC@{}", "C@COC@{}",
    "C@CNC@{}", "C@CCOC@{}", "C@CCNC@{}", "C@CCSC@{}", "C@COCCN@{}", "C@CNCCN@{}", "C@CC(=O)N({})C@{}", "C@CCC(=O)C@{}",
    "c@ccc({})cc@{}", "c@cc({})ccc@{}", "c@c({})cccc@{}", "c@ccncc@{}", "c@cc({})cnc@{}", "c@ncncc@{}", "c@cnc({})nc@{}",
    "c@cc[nH]c@{}", "c@cn({})cc@{}", "c@cocc@{}", "c@csc({})c@{}", "c@cscn@{}", "c@cocn@{}", "c@c[nH]cn@{}", "c@cn[nH]c@{}",
    "c@nn[nH]n@{}", "c@nocc@{}", "c@nnc({})o@{}", "C@=CC(=O)N({})C@{}", "C@=CCCCC@{}", "C@CC=CC@{}", "c@ccc&cc({})ccc&c@",
    "c@ccc&[nH]ccc&c@", "C@CC&CCCC&C@{}",
)
ENDS = (
    "[H]", "[H]", "[H]", "C", "C", "CC", "C(C)C", "F", "Cl", "Br", "O", "O", "OC", "N", "NC", "N(C)C", "C=O", "C(C)=O",
    "C(=O)O", "C(=O)OC", "C(=O)N", "C#N", "C#C", "C=C", "S", "SC", "S(C)(=O)=O", "S(N)(=O)=O", "[N+](=O)[O-]", "CO", "CN",
    "CF", "C(F)F", "C(F)(F)F", "CCl", "CBr", "NC(C)=O", "OC(C)=O", "N=C=O", "P(C)C", "P(C)(C)=O", "OP(=O)(O)O", "SSC", "ON",
    "NN",
)
CHARGED = (
    "C(=O)[O-]", "[NH3+]", "C[NH2+]C", "[N+](C)(C)C", "[O-]", "S(=O)(=O)[O-]", "OP(=O)(O)[O-]", "C(=[NH2+])N", "[S-]",
)
SIDE_CHAINS = (
    "[H]", "C", "C(C)C", "CC(C)C", "[C@@H](C)CC", "CO", "[C@H](O)C", "CS", "CCSC", "CC(=O)N", "CCC(=O)N", "CC(=O)O",
    "CCC(=O)O", "CCCCN", "CCCNC(=N)N", "Cc1ccccc1", "Cc1ccc(O)cc1", "Cc1c[nH]cn1", "Cc1c[nH]c2ccccc12",
)
IONS = (
    "[Cl-]", "[Br-]", "[F-]", "[OH-]", "[OH3+]", "[NH4+]", "C[NH3+]", "CC(=O)[O-]", "[O-]C=O", "C[O-]", "C[S-]", "[SH-]",
    "[C-]#N", "[O-][N+](=O)=O", "O=N[O-]", "OC(=O)[O-]", "OP(=O)(O)[O-]", "OS(=O)(=O)[O-]", "NC(N)=[NH2+]", "C[N+](C)(C)C",
    "c1cc[nH+]cc1", "C1=C[NH+]=CN1", "CC(=O)NCC(=O)[O-]", "[NH3+]CC(=O)OC", "C[PH3+]", "CP(=O)(O)[O-]", "CS(=O)(=O)[O-]",
    "[O-]Cl", "OC(=O)C[NH3+]",
)
SMALL = (
    "[H][H]", "O", "N", "C", "S", "P", "F", "Cl", "Br", "OO", "NN", "C=C", "C#C", "CC", "C#N", "C=O", "CO", "CN", "CF",
    "CCl", "CBr", "CS", "CP", "O=C=O", "S=C=S", "O=S=O", "N#N", "FF", "ClCl", "BrBr", "FCl", "OCl", "OF", "N=N", "NO", "N=C",
    "[C-]#[O+]", "O=[N+]([O-])C", "C(F)(F)(F)F", "C(Cl)(Cl)(Cl)Cl", "P(Cl)(Cl)Cl", "O=P(Cl)(Cl)Cl", "O=S(Cl)Cl", "SS", "C=S",
    "O=C(N)N", "S(F)(F)(F)(F)(F)F", "PP", "[O-][O+]=O", "N=[N+]=[N-]", "C1CC1", "C1CO1", "C1CN1", "C1CS1", "c1ccccc1",
    "O=C=C", "C=C=C", "CC#CC", "O=S(=O)(O)O", "OP(=O)(O)O",
)
MAX_HEAVY, MAX_ATOMS, MAX_CHARGE = 13, 34, 1
MAX_DEPTH, FIRST_RING = 2, 10  # of fragments in fragments; two digits
MAX_DRAWS = 60  # for each molecule that is wanted
# Of a place that it holds a further fragment; of a fragment that it is a ring; of an end that it is charged.
P_SLOT, P_RING, P_CHARGED = 0.45, 0.5, 0.03


def molecules(n: int, seed: int) -> list[str]:
    """``n`` different molecules of H, C, N, O, F, P, S, Cl and Br as canonical SMILES: small ones, ions and peptides first, then
    what the grammar makes.

    Raises:
        ConfigError: more than the grammar has.
        MissingDependencyError: RDKit is not installed.
    """
    try:
        import rdkit  # noqa: F401 - says now that it is missing
    except ImportError:
        raise MissingDependencyError.of("rdkit", extra="smiles", purpose="molecules of a grammar") from None
    found: dict[str, None] = {}
    for smiles in _fixed():
        if (canonical := _canonical(smiles, max_heavy=24, max_atoms=50)) is not None:
            found[canonical] = None
    rng = generator(seed, "molecules")
    for _ in range(MAX_DRAWS * n):
        if len(found) >= n:
            return list(found)[:n]
        if (canonical := _canonical(_drawn(rng))) is not None:
            found[canonical] = None
    raise ConfigError(expected=f"at most {len(found):,} molecules, which is what the grammar gave", received=f"{n:,}",
                      where="n_molecules", todo="ask for fewer")


def _fixed() -> Iterator[str]:
    yield from SMALL
    yield from IONS
    for side in SIDE_CHAINS:
        yield f"CC(=O)N[C@@H]({side})C(=O)NC"
    yield "CC(=O)N1CCC[C@H]1C(=O)NC"
    for one, other in product(SIDE_CHAINS[:12], repeat=2):
        yield f"N[C@@H]({one})C(=O)N[C@@H]({other})C(=O)O"


def _drawn(rng: np.random.Generator) -> str:
    """A fragment with fragments in its places."""
    return _filled(rng, 0, count(FIRST_RING))


def _filled(rng: np.random.Generator, depth: int, numbers: Iterator[int]) -> str:
    pool = RINGS if rng.random() < P_RING else CHAINS
    text = pool[rng.integers(len(pool))]
    for mark in "@&":
        if mark in text:
            text = text.replace(mark, f"%{next(numbers)}")
    while "{}" in text:
        goes_on = depth < MAX_DEPTH and rng.random() < P_SLOT / (1 + depth)
        text = text.replace("{}", f"({_filled(rng, depth + 1, numbers) if goes_on else _end(rng)})", 1)
    return text


def _end(rng: np.random.Generator) -> str:
    pool = CHARGED if rng.random() < P_CHARGED else ENDS
    return pool[rng.integers(len(pool))]


def _canonical(smiles: str, *, max_heavy: int = MAX_HEAVY, max_atoms: int = MAX_ATOMS) -> str | None:
    """RDKit's canonical SMILES; None for what is no molecule, or is too large, or too much charged."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None or molecule.GetNumHeavyAtoms() > max_heavy or abs(Chem.GetFormalCharge(molecule)) > MAX_CHARGE:
            return None
        if Chem.AddHs(molecule).GetNumAtoms() > max_atoms or any(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()):
            return None
        text: str = Chem.MolToSmiles(molecule)
        return text
