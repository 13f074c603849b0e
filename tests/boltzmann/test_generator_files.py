"""A training goes on from its checkpoint as if nothing had happened; a saved generator is loaded as it was."""

import json
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_coupling import AutoCouplingFlow, FlowVI, flows, nn
from pyro_coupling.boltzmann import BoltzmannGenerator, InternalCoordinates, from_xml
from pyro_coupling.boltzmann.energies import DW4, DoubleWell, Energy, ManyWell
from pyro_coupling.files import read_safetensors, write_safetensors
from pyro_coupling.training import Trainer
from pyro_coupling.training.checkpoint import CheckpointFile, Snapshot
from pyro_coupling.transforms import Affine, Bijection, Chain, Coupling, DiagonalAffine

FIXTURES = Path(__file__).parent / "fixtures"
DATA = ManyWell(2).sample(200, generator=torch.Generator().manual_seed(0))
# of 40 steps, the first 4 are hot, 12 go down four rungs, and the step size decays from the 28th on
PHASES = {"hot": 2, "a rung": 8, "the last rung": 14, "the target": 20, "the decay": 35}


class Spring(Energy):
    """A Gaussian."""

    def energy(self, x):
        return x.square().sum(-1)


def made(energy=None, **settings):
    """A generator whose flow is always the same at its start."""
    settings = {"kT": 1.0, "num_rungs": 4, "buffer_size": 100, "num_particles": 16, "seed": 0} | settings
    if energy is None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            settings = {"flow": flows.real_nvp(2, 2, (8,))} | settings
    return BoltzmannGenerator(energy or ManyWell(2), progress=False, **settings)


def trained(path=None, max_steps=40, data=None, **settings):
    return made(**settings).train(max_steps=max_steps, data=data, by_example=0.5, checkpoint=path)


def outcome(generator):
    figures = {name: value for name, value in generator.diagnostics(50).items() if name != "seconds"}
    figures["rungs"], figures["curve"] = list(map(list, generator.rungs)), generator.record.elbo
    return json.dumps(figures), generator.flow.state_dict() | generator.sample(20)._asdict()


def assert_same(first, second):
    (figures, tensors), (expected_figures, expected_tensors) = outcome(first), outcome(second)
    assert figures == expected_figures
    torch.testing.assert_close(tensors, expected_tensors, rtol=0, atol=0)


class Killed(BaseException):
    """Comes as suddenly as a signal: nothing catches it."""


def kill():
    raise Killed


def at_step(monkeypatch, step, action):
    """Does something in the middle of a step."""
    original = Trainer.clip_and_step

    def stepping(self):
        if self.record.num_steps == step:
            action()
        original(self)

    monkeypatch.setattr(Trainer, "clip_and_step", stepping)


def killed_at(monkeypatch, path, step, train=trained, **options):
    due = []
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(CheckpointFile, "save_if_due", lambda self, take: due and self.save(take()))
        at_step(patch, step - 1, lambda: due.append(True))
        at_step(patch, step, kill)
        train(path, **options)
    assert Snapshot(path.read_bytes()).record.num_steps == step


# Going on


@pytest.mark.parametrize("step", PHASES.values(), ids=PHASES)
def test_a_killed_training_goes_on_bit_for_bit(monkeypatch, tmp_path, step):
    killed_at(monkeypatch, tmp_path / "run", step)
    assert_same(trained(tmp_path / "run"), trained())


@pytest.mark.parametrize("step", [5, 30])
def test_a_training_on_data_goes_on_bit_for_bit(monkeypatch, tmp_path, step):
    killed_at(monkeypatch, tmp_path / "run", step, data=DATA)
    assert_same(trained(tmp_path / "run", data=DATA), trained(data=DATA))


def test_a_long_training_goes_on_bit_for_bit(monkeypatch, tmp_path):
    # beyond the hundredth step steps are recorded, after 300 at the target there are new samples, and a step size
    # that decays because the fit is good does not go up again
    def train(path=None):
        flow = DiagonalAffine(torch.zeros(2))
        return trained(path, max_steps=1000, energy=Spring((2,)), flow=flow, learning_rate=2e-3)

    for step in (610, 750):
        killed_at(monkeypatch, tmp_path / "run", step, train)
    _, metadata = read_safetensors(tmp_path / "run", "pyro_coupling.checkpoint", 1)
    assert json.loads(metadata["state"])["decay_began"][0] == 600
    assert_same(train(tmp_path / "run"), train())


def test_dropout_goes_on_bit_for_bit(monkeypatch, tmp_path):
    def train(path=None):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            flow = Chain([Coupling([True, False], nn.MLP(1, 2, (8,), dropout=0.5), Affine())])
        generator = trained(path, flow=flow)
        flow.eval()
        return generator

    killed_at(monkeypatch, tmp_path / "run", 20, train)
    assert_same(train(tmp_path / "run"), train())


def test_a_training_that_was_killed_before_its_first_save_begins_anew(monkeypatch, tmp_path):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_step(patch, 3, kill)
        trained(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert_same(trained(tmp_path / "run"), trained())


def test_ctrl_c_saves_and_the_same_generator_goes_on(monkeypatch, tmp_path):
    generator = made()
    with monkeypatch.context() as patch:
        at_step(patch, 8, lambda: signal.raise_signal(signal.SIGINT))
        generator.train(max_steps=40, checkpoint=tmp_path / "run")
    assert generator.record.stopped_by == "interrupt" and generator.record.num_steps == 9
    assert_same(generator.train(max_steps=40, by_example=0.5, checkpoint=tmp_path / "run"), trained())


def test_a_finished_training_is_not_repeated(monkeypatch, tmp_path):
    straight = outcome(trained(tmp_path / "run"))
    monkeypatch.setattr(Trainer, "clip_and_step", lambda self: kill())
    with pytest.warns(UserWarning, match=r"holds a training that was finished \(max_steps after 40 steps\)"):
        figures, tensors = outcome(trained(tmp_path / "run"))
    assert figures == straight[0]
    torch.testing.assert_close(tensors, straight[1], rtol=0, atol=0)


def test_the_seconds_of_earlier_parts_count(monkeypatch, tmp_path):
    killed_at(monkeypatch, tmp_path / "run", 20)
    before = Snapshot((tmp_path / "run").read_bytes()).record.seconds
    generator = made().train(max_seconds=before, checkpoint=tmp_path / "run")
    assert generator.record.num_steps == 20 and generator.record.stopped_by == "max_seconds"


def test_a_raised_limit_trains_on_and_never_heats_up_again(tmp_path):
    first = trained(tmp_path / "run")
    second = trained(tmp_path / "run", max_steps=500)  # of which the first 40 would be hot
    assert second.record.num_steps == 500 and second.rungs == first.rungs
    # a second fill of the buffer, after 300 steps at the target; 16 samples in each step
    assert second.diagnostics()["num_energies"] - first.diagnostics()["num_energies"] == 460 * 16 + 100


def test_two_trainings_with_a_file_each(monkeypatch, tmp_path):
    def train(path=None):
        files = (None, None) if path is None else (path.with_suffix(".first"), path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*that was finished")
            return made().train(max_steps=20, checkpoint=files[0]).train(max_steps=30, checkpoint=files[1])

    killed_at(monkeypatch, tmp_path / "run", 25, train)  # of the second, as the first has 20 steps
    assert_same(train(tmp_path / "run"), train())


def test_without_a_seed_it_goes_on_with_that_of_the_file(monkeypatch, tmp_path):
    killed_at(monkeypatch, tmp_path / "run", 20)
    with torch.random.fork_rng():
        assert_same(trained(tmp_path / "run", seed=None), trained())


# Refusing


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "the seed is not the same, 0 there, 1 here"),
        ({"kT": 1.1}, "the kT is not the same, 1.0 there, 1.1 here"),
        ({"energy": DoubleWell()}, "the flow is not the same"),
        ({"energy": DoubleWell(2, b=-5.0), "flow": flows.real_nvp(2, 2, (8,))}, "log density at fixed points"),
        ({"num_rungs": 3}, "the num_rungs is not the same, 4 there, 3 here"),
        ({"data": DATA}, r"the shape of the data is not the same, None there, \[200, 2\] here"),
        ({"dtype": torch.float64}, "the dtype is not the same, torch.float32 there, torch.float64 here"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, change, words):
    trained(tmp_path / "run", max_steps=2)
    content = (tmp_path / "run").read_bytes()
    with pytest.raises(ValueError, match=f"checkpoint .*run' belongs to another training: .*{words}"):
        trained(tmp_path / "run", **change)
    assert (tmp_path / "run").read_bytes() == content


def test_other_data_are_refused(tmp_path):
    trained(tmp_path / "run", max_steps=2, data=DATA)
    with pytest.raises(ValueError, match="the mean square of the data is not the same"):
        trained(tmp_path / "run", data=1.01 * DATA)


def test_a_torn_checkpoint_is_refused(tmp_path):
    trained(tmp_path / "run", max_steps=2)
    content = (tmp_path / "run").read_bytes()
    for torn in (b"", content[:100], content[:-1], bytes(len(content))):
        (tmp_path / "run").write_bytes(torn)
        with pytest.raises(ValueError, match=r"run' .*damaged"):
            trained(tmp_path / "run")


def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path):
    trained(tmp_path / "run", max_steps=10)
    tensors, metadata = read_safetensors(tmp_path / "run", "pyro_coupling.checkpoint", 1)
    state = json.loads(metadata["state"])
    del state["extra"]["_phase"]
    write_safetensors(tmp_path / "run", tensors, metadata | {"state": json.dumps(state)})
    with pytest.raises(ValueError, match=r"is damaged .KeyError: '_phase'"):
        trained(tmp_path / "run", max_steps=10)


def test_a_checkpoint_of_a_pyro_model_is_refused_and_the_other_way_round(tmp_path):
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    def fit(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            guide = AutoCouplingFlow(model, lambda dim: flows.real_nvp(dim, 1, (4,)), warm_start="init")
            FlowVI(model, guide, max_steps=2, seed=0, progress=False, checkpoint=path).run()

    fit(tmp_path / "model")
    with pytest.raises(ValueError, match="is not one of BoltzmannGenerator"):
        trained(tmp_path / "model")
    trained(tmp_path / "energy", max_steps=2)
    with pytest.raises(ValueError, match="is not one of FlowVI"):
        fit(tmp_path / "energy")


# Saved generators


def saved(path, generator):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generator.save(path)
    return generator


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loaded_generator_is_the_one_that_was_saved(tmp_path, dtype):
    generator = saved(tmp_path / "generator", trained(dtype=dtype, hottest=2.0, learning_rate=1e-3))
    loaded = BoltzmannGenerator.load(tmp_path / "generator", ManyWell(2), progress=False)
    assert repr(loaded.flow) == repr(generator.flow) and loaded.target.dtype == dtype
    assert all(getattr(loaded, name) == getattr(generator, name) for name in BoltzmannGenerator.SETTINGS)
    assert loaded.rungs == generator.rungs and loaded.record == generator.record
    assert loaded.diagnostics(50)["seconds"] == generator.diagnostics(50)["seconds"]
    assert_same(loaded, generator)  # random state and all
    assert_same(loaded.train(max_steps=5), generator.train(max_steps=5))  # at the temperature asked for


def test_an_untrained_generator_is_saved_as_such(tmp_path):
    generator = saved(tmp_path / "generator", made())
    assert BoltzmannGenerator.load(tmp_path / "generator", ManyWell(2), progress=False).record is None
    assert generator.record is None


def test_a_fresh_process_finds_the_same_log_density(tmp_path):
    generator = saved(tmp_path / "generator", trained(energy=DW4(), max_steps=5))
    positions = generator.sample(10).positions
    torch.save(positions, tmp_path / "positions")
    script = f"""
        import torch
        from pyro_coupling.boltzmann import BoltzmannGenerator, energies
        generator = BoltzmannGenerator.load({str(tmp_path / "generator")!r}, energies.DW4(), progress=False)
        log_prob = generator.log_prob(torch.load({str(tmp_path / "positions")!r}))
        torch.save(log_prob.detach(), {str(tmp_path / "log_prob")!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120)
    assert torch.equal(torch.load(tmp_path / "log_prob"), generator.log_prob(positions))


def test_a_molecule_is_saved_with_its_coordinates(tmp_path):
    lines = (FIXTURES / "alanine_dipeptide.pdb").read_text().splitlines()
    atoms = [line for line in lines if line.startswith(("ATOM", "HETATM"))]
    reference = 0.1 * torch.tensor([[float(line[i : i + 8]) for i in (30, 38, 46)] for line in atoms])
    energy = from_xml(FIXTURES / "aldp_ff96_obc1_system.xml")
    coordinates = InternalCoordinates(reference.double(), energy.bonds)
    generator = saved(
        tmp_path / "molecule", BoltzmannGenerator(energy, temperature=300.0, coordinates=coordinates, seed=0)
    )
    loaded = BoltzmannGenerator.load(tmp_path / "molecule", energy)
    for found, expected in zip(loaded.sample(20), generator.sample(20), strict=True):
        assert torch.equal(found, expected)


class Shift(Bijection):
    """A bijection that is not registered."""

    def __init__(self):
        super().__init__((2,))
        self.register_buffer("shift", torch.ones(2))

    def forward_and_log_det(self, x, context=None):
        return x + self.shift, x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, y, context=None):
        return y - self.shift, y.new_zeros(y.shape[:-1])


@pytest.mark.parametrize("part", ["flow", "coordinates"])
def test_what_can_not_be_described_is_given_again(tmp_path, part):
    generator = made(**{part: Shift()})
    with pytest.warns(UserWarning, match=f"what the {part} is made of is not stored .*Shift is not registered"):
        generator.save(tmp_path / "generator")
    with pytest.raises(
        ValueError, match=rf"does not tell what its {part} is made of, pass that: .*load\(..., {part}={part}\)"
    ):
        BoltzmannGenerator.load(tmp_path / "generator", ManyWell(2))
    loaded = BoltzmannGenerator.load(tmp_path / "generator", ManyWell(2), progress=False, **{part: Shift()})
    for found, expected in zip(loaded.sample(20), generator.sample(20), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("energy", "words"),
    [
        (ManyWell(2, c=1.01), "is of another energy, or of other coordinates: the log density at fixed points"),
        (ManyWell(4), r"the flow must map \(4,\)"),
        (DW4(), "the flow must map"),
    ],
)
def test_another_energy_is_refused(tmp_path, energy, words):
    made().save(tmp_path / "generator")
    with pytest.raises(ValueError, match=words):
        BoltzmannGenerator.load(tmp_path / "generator", energy)


def test_files_that_can_not_be_are_refused(tmp_path):
    path = tmp_path / "generator"
    with pytest.raises(FileNotFoundError, match="no such file"):
        BoltzmannGenerator.load(path, ManyWell(2))
    made().save(path)
    content = path.read_bytes()
    for torn in (b"", content[:50], content[:-1]):
        path.write_bytes(torn)
        with pytest.raises(ValueError, match="is damaged or no safetensors file"):
            BoltzmannGenerator.load(path, ManyWell(2))
    trained(tmp_path / "run", max_steps=1)
    with pytest.raises(ValueError, match=r"has the format 'pyro_coupling\.checkpoint'"):
        BoltzmannGenerator.load(tmp_path / "run", ManyWell(2))


@pytest.mark.parametrize(
    "change",
    [
        {"flow": {"module": {"name": "os.system"}, "frozen": [], "training": True}},
        {"flow": {"module": {"class": "os.system", "arguments": {"command": "true"}}, "frozen": [], "training": True}},
        {"coordinates": 3},
        {"seed": 1e400},
        {"seed": -(2**70)},
        {"settings": {}},
        {"history": {"num_energies": "x"}},
        {"problem": {"kT": -1.0}},
        {"problem": []},
        {"dtype": {"name": "float"}},
    ],
)
def test_a_file_that_was_made_to_harm_is_refused(tmp_path, change):
    path = tmp_path / "generator"
    made().save(path)
    tensors, metadata = read_safetensors(path, "pyro_coupling.BoltzmannGenerator", 1)
    state = json.loads(metadata["state"]) | change
    write_safetensors(path, tensors, metadata | {"state": json.dumps(state)})
    with pytest.raises(ValueError, match=r"generator' (can't be loaded|is damaged|is of another energy)"):
        BoltzmannGenerator.load(path, ManyWell(2))
