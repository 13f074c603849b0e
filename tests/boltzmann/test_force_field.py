"""Force fields: torch against OpenMM, what is refused, and the bridge."""

from __future__ import annotations

import copy
import json
import math
import pickle
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pyro_coupling.boltzmann.force_field import ForceField, OpenMMEnergy, bridge, from_openmm, from_xml
from pyro_coupling.boltzmann.force_field.expressions import match

FIXTURES = Path(__file__).parent / "fixtures"
OBC1, GBSA = "aldp_ff96_obc1_system.xml", "aldp_ff99sb_gbsa_system.xml"
REFERENCE = json.loads((FIXTURES / "openmm_reference.json").read_text())
FRAMES = torch.tensor(REFERENCE["positions"], dtype=torch.float64)

FORCE_FIELDS = {
    "amber96 in vacuum": ["amber96.xml"],
    "amber96 with OBC1": ["amber96.xml", "implicit/obc1.xml"],
    "amber96 with OBC2": ["amber96.xml", "implicit/obc2.xml"],
    "amber99 with GBSA": ["amber99sb.xml", "amber99_obc.xml"],
    "amber14 in vacuum": ["amber14/protein.ff14SB.xml"],
    "amber14 with OBC2": ["amber14/protein.ff14SB.xml", "implicit/obc2.xml"],
}


@cache
def molecule(name: str = OBC1) -> ForceField:
    return from_xml(FIXTURES / name)


def edited(tmp_path: Path, *changes: tuple[str, str], name: str = OBC1) -> Path:
    """A file with the System of the fixture after replacements."""
    text = (FIXTURES / name).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "system.xml"
    path.write_text(text)
    return path


def with_force(tmp_path: Path, xml: str) -> Path:
    return edited(tmp_path, ("</Forces>", f"{xml}</Forces>"))


class TestAgainstStoredNumbersOfOpenMM:
    @pytest.mark.parametrize("name", [OBC1, GBSA])
    def test_float64_agrees_to_rounding(self, name):
        expected = {k: torch.tensor(v, dtype=torch.float64) for k, v in REFERENCE["systems"][name].items()}
        energy, force = molecule(name).energy_and_force(FRAMES)
        torch.testing.assert_close(energy, expected["energies"], rtol=1e-10, atol=0)
        torch.testing.assert_close(force, expected["forces"], rtol=0, atol=1e-8 * expected["forces"].abs().max())

    @pytest.mark.parametrize("name", [OBC1, GBSA])
    def test_float32_agrees_to_a_thousandth_of_a_kilojoule(self, name):
        energy, force = molecule(name).energy_and_force(FRAMES.float())
        assert energy.dtype == force.dtype == torch.float32
        expected = torch.tensor(REFERENCE["systems"][name]["energies"], dtype=torch.float64)
        torch.testing.assert_close(energy.double(), expected, rtol=0, atol=1e-3)


@cache
def simulation(num_frames: int) -> tuple[Tensor, object]:
    """Frames of alanine dipeptide in vacuum, half at 300 K and half at 1200 K, and its topology."""
    openmm = pytest.importorskip("openmm")
    from openmm import app

    pdb = app.PDBFile(str(FIXTURES / "alanine_dipeptide.pdb"))
    system = app.ForceField("amber96.xml").createSystem(pdb.topology)
    frames = []
    for temperature in (300.0, 1200.0):
        integrator = openmm.LangevinMiddleIntegrator(temperature, 5.0, 0.001)
        integrator.setRandomNumberSeed(1)
        context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
        context.setPositions(pdb.positions)
        openmm.LocalEnergyMinimizer.minimize(context)
        context.setVelocitiesToTemperature(temperature, 1)
        for _ in range(num_frames // 2):
            integrator.step(50)
            positions = context.getState(getPositions=True).getPositions(asNumpy=True)
            frames.append(torch.from_numpy(positions._value.copy()))
    return torch.stack(frames), pdb.topology


def assert_agrees(names: list[str], num_frames: int) -> None:
    app = pytest.importorskip("openmm.app")
    x, topology = simulation(num_frames)
    system = app.ForceField(*names).createSystem(topology)
    expected, expected_force = OpenMMEnergy(system, "Reference").energy_and_force(x)
    energy, force = from_openmm(system).energy_and_force(x)
    torch.testing.assert_close(energy, expected, rtol=1e-10, atol=0)
    largest = expected_force.abs().amax((1, 2), keepdim=True)
    torch.testing.assert_close(force / largest, expected_force / largest, rtol=0, atol=1e-8)
    torch.testing.assert_close(from_openmm(system)(x.float()).double(), expected, rtol=0, atol=1e-3)


class TestAgainstOpenMM:
    @pytest.mark.parametrize("names", FORCE_FIELDS.values(), ids=FORCE_FIELDS)
    def test_energies_and_forces_agree(self, names):
        assert_agrees(names, 40)

    @pytest.mark.slow
    @pytest.mark.parametrize("names", FORCE_FIELDS.values(), ids=FORCE_FIELDS)
    def test_energies_and_forces_agree_on_many_frames(self, names):
        assert_agrees(names, 600)

    def test_an_object_and_its_file_are_the_same(self):
        openmm = pytest.importorskip("openmm")
        system = openmm.XmlSerializer.deserialize((FIXTURES / OBC1).read_text())
        assert torch.equal(from_openmm(system)(FRAMES), molecule()(FRAMES))

    @pytest.mark.parametrize("kind", ["GBSAOBCForce", "OBC1", "OBC2"])
    def test_an_atom_inside_another_is_treated_as_in_openmm(self, kind):
        openmm = pytest.importorskip("openmm")
        from openmm.app.internal import customgbforces

        system = openmm.System()
        atoms = [(0.4, 0.12, 0.85), (-0.7, 0.17, 0.9), (0.3, 0.15, 0.8)]  # charge, radius, scale
        if kind == "GBSAOBCForce":
            force = openmm.GBSAOBCForce()
            rows = atoms
        else:
            force = getattr(customgbforces, f"GBSA{kind}Force")(SA="ACE", soluteDielectric=2.0)
            rows = [([q, r, scale],) for q, r, scale in atoms]
        for row in rows:
            system.addParticle(1.0)
            force.addParticle(*row)
        if kind != "GBSAOBCForce":
            force.finalize()
        system.addForce(force)
        # the first two from almost one point to far apart; the third stays at a distance
        distance = torch.logspace(-3, 0, 40, dtype=torch.float64)
        x = torch.zeros(40, 3, 3, dtype=torch.float64)
        x[:, 1, 0], x[:, 2, 1] = distance, 0.2
        expected, expected_force = OpenMMEnergy(system, "Reference").energy_and_force(x)
        energy, force = from_openmm(system).energy_and_force(x)
        torch.testing.assert_close(energy, expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(force, expected_force, rtol=1e-8, atol=1e-8 * expected_force.abs().max())


class TestForceField:
    def test_any_batch_shape(self):
        energy = molecule()
        single = torch.stack([energy(frame) for frame in FRAMES])
        assert energy.event_shape == (22, 3) and single.shape == (5,)
        torch.testing.assert_close(energy(FRAMES), single, rtol=1e-12, atol=0)
        assert torch.equal(energy(FRAMES[:4].unflatten(0, (2, 2))), energy(FRAMES[:4]).unflatten(0, (2, 2)))
        assert energy(FRAMES[:0]).shape == (0,)

    def test_many_frames_are_as_few(self):
        many = FRAMES.repeat(400, 1, 1)
        energy, force = molecule().energy_and_force(many)
        few_energy, few_force = molecule().energy_and_force(FRAMES)
        torch.testing.assert_close(energy, few_energy.repeat(400), rtol=1e-12, atol=0)
        torch.testing.assert_close(force, few_force.repeat(400, 1, 1), rtol=1e-10, atol=1e-8)

    def test_a_bad_frame_has_energy_nan_and_harms_no_other(self):
        x = FRAMES.clone()
        x[1, 7, 2] = math.nan
        x[3] = math.inf
        energy, force = molecule().energy_and_force(x)
        good = [0, 2, 4]
        assert energy.isnan().tolist() == [False, True, False, True, False]
        expected, expected_force = molecule().energy_and_force(FRAMES)
        assert torch.equal(energy[good], expected[good])
        assert torch.equal(force[good], expected_force[good])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("name", [OBC1, GBSA])
    def test_atoms_in_one_place_have_a_finite_energy_and_force(self, name, dtype):
        x = FRAMES[:3].to(dtype).clone()
        x[0] = 0.0
        x[1, 5] = x[1, 20]
        x[2, 5] = x[2, 20] + 1e-3
        energy, force = molecule(name).energy_and_force(x)
        assert energy.isfinite().all() and energy[1] > 1e20
        assert force[1:].isfinite().all()

    def test_moving_the_module_to_another_dtype_does_not_round_its_constants(self):
        moved = copy.deepcopy(molecule()).float()
        assert moved.masses.dtype == torch.float64
        assert torch.equal(moved(FRAMES), molecule()(FRAMES))

    @pytest.mark.parametrize("name", [OBC1, GBSA])
    def test_first_and_second_derivatives(self, name):
        x = FRAMES[0].clone().requires_grad_()
        assert gradcheck(molecule(name), x, fast_mode=True)
        # curvatures are 1e5 kJ/mol/nm^2, and the difference quotient has seven digits of it
        assert gradgradcheck(molecule(name), x, fast_mode=True, rtol=1e-4, atol=1.0)

    def test_vmap(self):
        torch.testing.assert_close(torch.func.vmap(molecule())(FRAMES), molecule()(FRAMES), rtol=1e-12, atol=0)
        gradient = torch.func.vmap(torch.func.grad(molecule()))(FRAMES)
        torch.testing.assert_close(-gradient, molecule().energy_and_force(FRAMES)[1], rtol=1e-10, atol=1e-8)

    # the first traces as the second does, but makes no kernels
    @pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
    def test_compiled_in_one_graph(self, backend):
        x = FRAMES.clone().requires_grad_()
        energy = torch.compile(molecule(), backend=backend, fullgraph=True)(x)
        (gradient,) = torch.autograd.grad(energy.sum(), x)
        expected, force = molecule().energy_and_force(FRAMES)
        torch.testing.assert_close(energy.detach(), expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(-gradient, force, rtol=1e-10, atol=1e-8)

    def test_deepcopy_and_pickle(self):
        for twin in (copy.deepcopy(molecule()), pickle.loads(pickle.dumps(molecule()))):
            assert torch.equal(twin(FRAMES), molecule()(FRAMES))

    def test_masses_bonds_constraints_and_names(self, tmp_path):
        constraint = '<Constraints><Constraint d=".1" p1="21" p2="18"/><Constraint d=".2" p1="0" p2="3"/></Constraints>'
        names = [f"atom {i}" for i in range(22)]
        energy = from_xml(edited(tmp_path, ("<Constraints/>", constraint)), names=names)
        assert energy.masses[:2].tolist() == [1.008, 12.01]
        assert len(molecule().bonds) == 21 and molecule().constraints == () and molecule().names is None
        assert energy.constraints == ((21, 18, 0.1), (0, 3, 0.2))
        assert set(energy.bonds) - set(molecule().bonds) == {(0, 3)}  # 18 and 21 were bonded before
        assert energy.names == tuple(names)
        assert torch.equal(energy(FRAMES), molecule()(FRAMES))

    def test_wrong_numbers_of_atoms_names_or_bits_are_refused(self):
        with pytest.raises(ValueError, match=r"ForceField: .*\(22, 3\).*\(5, 21, 3\)"):
            molecule()(FRAMES[:, :21])
        with pytest.raises(TypeError, match=r"ForceField: .*float32 or float64, got torch.bfloat16"):
            molecule()(FRAMES.bfloat16())
        with pytest.raises(ValueError, match="ForceField: names must be one for each of 22 atoms, got 1"):
            from_xml(FIXTURES / OBC1, names=["CA"])


class TestWhatIsNotRead:
    @pytest.mark.parametrize(
        "kind", ["CustomNonbondedForce", "RBTorsionForce", "CMAPTorsionForce", "MonteCarloBarostat", "AmoebaVdwForce"]
    )
    def test_other_forces_are_refused_by_name(self, tmp_path, kind):
        with pytest.raises(ValueError, match=rf"ForceField: {kind} is not supported; OpenMMEnergy"):
            from_xml(with_force(tmp_path, f'<Force type="{kind}" version="1"/>'))

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('ljnz="0" method="0"', 'ljnz="0" method="4"', "NonbondedForce with a cutoff or periodic"),
            ('cutoff="1" forceGroup="0" method="0"', 'cutoff="1" method="1"', "CustomGBForce with a cutoff"),
            ('name="HarmonicBondForce" type="HarmonicBondForce" usesPeriodic="0"',
             'type="HarmonicBondForce" usesPeriodic="1"', "HarmonicBondForce with periodic boundary"),
            ("<ParticleOffsets/>", "<ParticleOffsets><Offset/></ParticleOffsets>", "parameter offsets"),
            ('<Particle mass="16"/>', '<Particle mass="0"><TwoParticleAverageSite/></Particle>', "a virtual site"),
            ('name="HarmonicAngleForce" type="HarmonicAngleForce" usesPeriodic="0" version="2"',
             'type="HarmonicAngleForce" usesPeriodic="0" version="9"', "version 9 of the XML of HarmonicAngleForce"),
            ("tanh(0.8*psi+2.909125*psi^3)", "tanh(alpha*psi+2.909125*psi^3)", "formula .*alpha.* none of OBC1"),
            ("1/solventDielectric)*charge^2/B", "exp(-kappa*B)/solventDielectric)*charge^2/B", "formula .*kappa"),
            ('name="sr"', 'name="scale"', "without the parameter 'sr'"),
        ],
    )  # fmt: skip
    def test_other_options_are_refused_by_name(self, tmp_path, old, new, message):
        with pytest.raises(ValueError, match=rf"ForceField: .*{message}.* not supported; OpenMMEnergy"):
            from_xml(edited(tmp_path, (old, new)))

    @pytest.mark.parametrize("model", ["hct", "gbn", "gbn2"])
    def test_other_implicit_solvents_are_refused(self, model):
        app = pytest.importorskip("openmm.app")
        pdb = app.PDBFile(str(FIXTURES / "alanine_dipeptide.pdb"))
        system = app.ForceField("amber96.xml", f"implicit/{model}.xml").createSystem(pdb.topology)
        with pytest.raises(ValueError, match=r"ForceField: CustomGBForce with the formula .* OpenMMEnergy"):
            from_openmm(system)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('mass="16"', 'mass="heavy"', "<Particle> has mass='heavy', which is not a finite number"),
            ('mass="16"', 'weight="16"', "<Particle> lacks the attribute 'mass'"),
            ('d=".101"', 'd="nan"', "<Bond> has d='nan'"),
            ('p1="18" p2="21"', 'p1="18" p2="22"', "HarmonicBondForce has an atom number outside of 0 to 21"),
            ('<Particle mass="16"/>', '<Particle mass="8"/><Particle mass="8"/>', "has 22 particles, the System 24"),
            ("Angles>", "Corners>", "HarmonicAngleForce lacks the element <Angles>"),
        ],
    )
    def test_broken_systems_are_refused(self, tmp_path, old, new, message):
        with pytest.raises(ValueError, match=f"ForceField: .*{message}"):
            from_xml(edited(tmp_path, (old, new)))

    @pytest.mark.parametrize(
        "text",
        ["", "not XML", "<State/>", "<System", '<!DOCTYPE System [<!ENTITY a "b">]><System>&a;</System>', "\xff\xfe"],
    )
    def test_other_files_are_refused(self, tmp_path, text):
        path = tmp_path / "file.xml"
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=r"from_xml: .*file.xml is not the XML of an OpenMM System"):
            from_xml(path)

    def test_a_missing_file_and_a_system_without_forces(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"from_xml: there is no file .*none.xml"):
            from_xml(tmp_path / "none.xml")
        path = tmp_path / "empty.xml"
        path.write_text('<System version="1"><Particles/><Constraints/><Forces/></System>')
        with pytest.raises(ValueError, match="ForceField: needs a term that gives an energy"):
            from_xml(path)

    def test_something_else_than_a_system_is_refused(self):
        pytest.importorskip("openmm")
        with pytest.raises(TypeError, match=r"from_openmm: system must be an openmm.System, got SimpleNamespace"):
            from_openmm(SimpleNamespace())


class TestFormulas:
    def test_definitions_spaces_and_names_make_no_difference(self):
        assert match("{a}*x^2/(y+{b}); y=2*x", "3 * x^2/(q+w);q=two*x; w=0.5; two=2") == {"a": 3.0, "b": 0.5}

    def test_a_word_of_python_is_a_name(self):
        assert match("{a}/or", "2e-3/or") == {"a": 0.002}

    def test_globals_have_their_values(self):
        assert match("{a}*x", "strength*x", {"strength": 1.5}) == {"a": 1.5}

    def test_one_open_number_has_one_value(self):
        assert match("{a}*x+{a}*y", "2*x+2*y") == {"a": 2.0}
        assert match("{a}*x+{a}*y", "2*x+3*y") is None

    @pytest.mark.parametrize("other", ["2*x", "x", "exp(x)+2", "2+x*1", "(", "", "x+two", "f(x)(2)", "(" * 5000])
    def test_another_formula_does_not_match(self, other):
        assert match("x+{a}", other) is None


@pytest.fixture
def system():
    openmm = pytest.importorskip("openmm")
    return openmm.XmlSerializer.deserialize((FIXTURES / OBC1).read_text())


class TestOpenMMEnergy:
    def test_energy_gradient_dtype_and_batch_shape(self, system):
        bridge = OpenMMEnergy(system, "Reference")
        expected, force = molecule().energy_and_force(FRAMES)
        x = FRAMES[:4].unflatten(0, (2, 2)).clone().requires_grad_()
        energy = bridge(x)
        (gradient,) = torch.autograd.grad((2 * energy).sum(), x)
        torch.testing.assert_close(energy.detach().flatten(), expected[:4], rtol=1e-10, atol=0)
        torch.testing.assert_close(gradient.flatten(0, 1), -2 * force[:4], rtol=0, atol=1e-8 * force.abs().max())
        single = bridge(FRAMES[0].float())
        assert single.dtype == torch.float32 and single.shape == ()
        assert bridge(FRAMES[:0]).shape == (0,)

    def test_the_cpu_platform_does_the_same_whatever_came_before(self, system):
        bridge = OpenMMEnergy(system)
        energy, force = bridge.energy_and_force(FRAMES)
        torch.testing.assert_close(energy, molecule()(FRAMES), rtol=0, atol=0.01)  # it computes in float32
        order = torch.tensor([3, 0, 4, 1, 2])
        again, force_again = bridge.energy_and_force(FRAMES[order])
        assert torch.equal(again, energy[order]) and torch.equal(force_again, force[order])

    @pytest.mark.parametrize("platform", ["Reference", "CPU"])
    def test_a_bad_frame_has_energy_nan_and_harms_no_other(self, system, platform):
        bridge = OpenMMEnergy(system, platform)
        x = FRAMES.clone()
        x[1, 7, 2] = math.nan
        x[3] = math.inf
        energy, force = bridge.energy_and_force(x)
        assert energy.isnan().tolist() == [False, True, False, True, False]
        expected, expected_force = bridge.energy_and_force(FRAMES)
        assert torch.equal(energy[[0, 2, 4]], expected[[0, 2, 4]])
        assert torch.equal(force[[0, 2, 4]], expected_force[[0, 2, 4]])

    def test_an_error_of_openmm_gives_nan(self, system, monkeypatch):
        openmm = pytest.importorskip("openmm")
        bridge = OpenMMEnergy(system, "Reference")
        expected = bridge(FRAMES)

        class Failing(openmm.Context):
            def setPositions(self, positions):  # noqa: N802 - OpenMM's name
                if (positions == FRAMES[1].numpy()).all():
                    raise openmm.OpenMMException("an error")
                super().setPositions(positions)

        monkeypatch.setattr(openmm, "Context", Failing)
        energy = OpenMMEnergy(system, "Reference")(FRAMES)
        assert energy.isnan().tolist() == [False, True, False, False, False]
        assert torch.equal(energy[2:], expected[2:])

    @pytest.mark.slow
    def test_processes_do_the_same_as_one(self, system):
        x = FRAMES.repeat(60, 1, 1)
        shared = OpenMMEnergy(system, processes=2)
        assert torch.equal(shared(x), OpenMMEnergy(system)(x))
        assert torch.equal(copy.deepcopy(shared)(x[:5]), shared(x[:5]))

    def test_a_process_that_dies_is_told_of_and_the_next_call_begins_anew(self, system, monkeypatch):
        pools = []

        class Dying:
            def __init__(self, *settings):
                pools.append(self)

            def map(self, *work):
                raise BrokenProcessPool

        monkeypatch.setattr(bridge, "ProcessPoolExecutor", Dying)
        energy = OpenMMEnergy(system, processes=2)
        for number in (1, 2):
            with pytest.raises(RuntimeError, match="OpenMMEnergy: a process died"):
                energy(FRAMES)
            assert len(pools) == number

    def test_transformations_and_copies(self, system):
        bridge = OpenMMEnergy(system, "Reference")
        expected, force = bridge.energy_and_force(FRAMES)
        assert torch.equal(torch.func.vmap(bridge)(FRAMES), expected)
        assert torch.equal(torch.func.vmap(torch.func.grad(bridge))(FRAMES), -force)
        assert torch.equal(torch.compile(bridge, backend="eager")(FRAMES), expected)
        for twin in (copy.deepcopy(bridge), pickle.loads(pickle.dumps(bridge))):
            assert torch.equal(twin(FRAMES), expected)

    def test_there_is_no_second_derivative(self, system):
        x = FRAMES[0].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(OpenMMEnergy(system, "Reference")(x), x, create_graph=True)
        with pytest.raises(RuntimeError, match="OpenMMEnergy: there is no second derivative"):
            (x.square().sum() + gradient.square().sum()).backward()

    def test_bad_arguments_are_refused(self, system):
        openmm = pytest.importorskip("openmm")
        with pytest.raises(TypeError, match=r"OpenMMEnergy: system must be an openmm.System, got str"):
            OpenMMEnergy("system.xml")
        with pytest.raises(ValueError, match=r"OpenMMEnergy: platform must be one of .*Reference.*, got 'Abacus'"):
            OpenMMEnergy(system, "Abacus")
        with pytest.raises(ValueError, match="OpenMMEnergy: processes must be None or positive, got 0"):
            OpenMMEnergy(system, processes=0)
        with pytest.raises(ValueError, match=r"OpenMMEnergy: .*\(22, 3\)"):
            OpenMMEnergy(system)(FRAMES[:, :3])
        system.setVirtualSite(3, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
        with pytest.raises(ValueError, match="OpenMMEnergy: virtual sites are not supported"):
            OpenMMEnergy(system)
