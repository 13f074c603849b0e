"""What methods of a generator pass on: to free energies, and from examples to each way of training by energy."""

import pytest
import torch

from pyro_coupling.boltzmann import BoltzmannGenerator
from pyro_coupling.boltzmann.energies import Energy


class Spring(Energy):
    def __init__(self):
        super().__init__((2,))

    def energy(self, x):
        return 0.5 * x.square().sum(-1)


def generator(kT=1.0, **settings):
    return BoltzmannGenerator(Spring(), kT=kT, seed=0, progress=False, **settings)


def test_the_free_energy_of_the_other_less_its_own():
    found = generator(kT=1.0).free_energy_difference(generator(kT=2.0), 2000)
    # Z is proportional to kT in two dimensions
    assert abs(found.value + torch.tensor(2.0).log()) < 4 * found.standard_error


@pytest.mark.parametrize("method", ["annealing", "fab", "cmt"])
def test_every_method_goes_on_from_examples(method):
    data = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    small = {"method": method, "num_particles": 16, "buffer_size": 64, "num_rungs": 2, "hottest": 1.0}
    example, both = (generator(**small).train(max_steps=8, data=data, by_example=share) for share in (1.0, 0.5))
    assert example.diagnostics()["num_energies"] == len(data)
    assert both.diagnostics()["num_energies"] > len(data) and both.diagnostics()["num_steps"] == 8
