"""Flows of images and sound: shapes, bases, contexts, temperatures, and that they learn."""

import math

import pytest
import torch
from torch import nn

from pyro_coupling import flows
from pyro_coupling.transforms import ActNorm, Coupling, PlainLinear

IMAGE = (2, 4, 8)
RECIPES = {
    "real_nvp": (flows.real_nvp_image, IMAGE, {"num_scales": 2, "hidden_channels": 4, "num_blocks": 1}),
    "real_nvp-1": (flows.real_nvp_image, (1, 3, 5), {"num_scales": 1, "hidden_channels": 4}),
    "real_nvp-3": (flows.real_nvp_image, IMAGE, {"num_scales": 3, "hidden_channels": 4, "learned_prior": False}),
    "glow": (flows.glow, IMAGE, {"num_scales": 2, "num_steps": 2, "hidden_channels": 4}),
    "glow-1": (flows.glow, (1, 2, 2), {"num_scales": 1, "num_steps": 1, "hidden_channels": 4, "lu": False}),
    "glow-plain": (flows.glow, IMAGE, {"num_scales": 2, "num_steps": 1, "hidden_channels": 4, "learned_prior": False}),
    "wave_glow": (flows.wave_glow, 48, {"num_layers": 5, "hidden_channels": 4, "num_dilations": 2, "early_every": 2}),
}
recipes = pytest.mark.parametrize(("recipe", "event", "settings"), RECIPES.values(), ids=RECIPES)


def contexts(recipe, event):
    """A context for the whole event, and one with features for each position."""
    return [3, (2, 3)] if recipe is flows.wave_glow else [3, (3, *event[1:])]


def randomised(flow, noise=0.1):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return flow.double().eval()


@recipes
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("which", [None, 0, 1])
def test_round_trip_and_shapes(recipe, event, settings, batch, which):
    context_dim = 0 if which is None else contexts(recipe, event)[which]
    flow = randomised(recipe(event, context_dim=context_dim, **settings))
    assert flow.output_shape == flow.event_shape == (torch.Size([event]) if isinstance(event, int) else event)
    x = torch.randn(*batch, *flow.event_shape, dtype=torch.float64)
    context = torch.randn(*batch, *flow.context_shape, dtype=torch.float64) if context_dim else None
    y, log_det = flow.forward_and_log_det(x, context)
    again, opposite = flow.inverse_and_log_det(y, context)
    assert y.shape == x.shape and log_det.shape == batch
    assert torch.allclose(again, x, atol=1e-9) and torch.allclose(opposite, -log_det, atol=1e-8)


@recipes
def test_log_det_is_that_of_the_jacobian(recipe, event, settings):
    flow = randomised(recipe(event, **settings))
    x = torch.randn(flow.event_shape, dtype=torch.float64)
    size = x.numel()
    jacobian = torch.autograd.functional.jacobian(flow, x).reshape(size, size)
    assert flow.forward_and_log_det(x)[1].item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), abs=1e-8)


@recipes
@pytest.mark.parametrize("which", [0, 1])
def test_every_part_of_a_context_matters(recipe, event, settings, which):
    flow = randomised(recipe(event, context_dim=contexts(recipe, event)[which], **settings))
    x = torch.randn(flow.event_shape, dtype=torch.float64)
    context = torch.randn(flow.context_shape, dtype=torch.float64, requires_grad=True)
    y, log_det = flow.forward_and_log_det(x, context)
    (gradient,) = torch.autograd.grad((y * torch.randn_like(y)).sum() + log_det, context)
    assert (gradient != 0).all()


@recipes
def test_every_parameter_learns(recipe, event, settings):
    flow = randomised(recipe(event, **settings))
    z, log_det = flow.inverse_and_log_det(torch.randn(7, *flow.event_shape, dtype=torch.float64))
    (0.5 * z.square().flatten(1).sum(1) - log_det).mean().backward()
    assert all(p.grad is not None for p in flow.parameters())


@recipes
def test_depth_mixes_every_pair(recipe, event, settings):
    flow = randomised(recipe(event, **settings), 0.3)
    jacobian = torch.autograd.functional.jacobian(flow, torch.randn(flow.event_shape, dtype=torch.float64))
    size = flow.event_shape.numel()
    reached = (jacobian.reshape(size, size) != 0).double().mean().item()
    # the reach of a few small kernels ends before the far side of the larger events
    assert reached > (0.99 if size < 20 else 0.3)


@recipes
@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
def test_memory_modes_give_the_same_gradients(recipe, event, settings, mode):
    gradients = []
    for kwargs in ({}, {mode: True}):
        torch.manual_seed(0)
        flow = randomised(recipe(event, **settings, **kwargs))
        y, log_det = flow.inverse_and_log_det(
            torch.linspace(-1, 1, 2 * flow.event_shape.numel()).double().reshape(2, *flow.event_shape)
        )
        gradients.append(torch.autograd.grad(y.square().sum() - log_det.sum(), list(flow.parameters())))
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-8) for a, b in zip(*gradients, strict=True))


def test_the_first_batch_of_images_sets_every_actnorm():
    torch.manual_seed(0)
    flow = flows.glow(IMAGE, 2, 2, 4)
    images = 3 + 2 * torch.randn(200, *IMAGE)
    z, _ = flow.inverse_and_log_det(images)
    norms = [part for part in flow.modules() if isinstance(part, ActNorm)]
    assert len(norms) == 4 and all(bool(norm.initialised) for norm in norms)
    assert z.mean().abs() < 0.3 and 0.5 < z.std() < 2  # noise from the first step on, though no parameter has learned


def test_temperature_scales_the_noise():
    flow = randomised(flows.real_nvp_image(IMAGE, 1, 4), 0.0)
    warm, cold = (flows.distribution(flow, temperature=t) for t in (1.0, 0.5))
    torch.manual_seed(0)
    first = warm.sample((500,))
    torch.manual_seed(0)
    assert torch.allclose(cold.sample((500,)), 0.5 * first)
    assert cold.log_prob(torch.zeros(IMAGE).double()).item() == pytest.approx(64 * math.log(2 / math.sqrt(2 * math.pi)))


def test_a_context_batch_makes_a_batch_of_distributions():
    flow = randomised(flows.glow(IMAGE, 1, 1, 4, context_dim=3))
    d = flows.distribution(flow, context=torch.eye(3).double())
    assert d.batch_shape == (3,) and d.sample().shape == (3, *IMAGE) and d.sample((5,)).shape == (5, 3, *IMAGE)
    assert d.log_prob(torch.zeros(IMAGE).double()).shape == (3,)


def test_parameters_of_wave_glow_serve_every_length():
    short, long = (flows.wave_glow(n, 3, 4, (5, n // 16), num_dilations=2).double() for n in (32, 96))
    long.load_state_dict(randomised(short).state_dict())
    mel, sound = torch.randn(5, 6).double(), torch.randn(96).double()
    # in the middle, out of reach of the ends, the long flow does what the short one does
    y = long.forward_and_log_det(sound, mel)[0]
    assert y.shape == (96,) and torch.isfinite(y).all()


def test_glow_has_plain_matrices_on_request():
    kinds = [{type(part) for part in flows.glow((1, 4, 4), 1, 1, 4, lu=lu).modules()} for lu in (True, False)]
    assert PlainLinear not in kinds[0] and PlainLinear in kinds[1]


def test_a_network_of_ones_own_is_used():
    flow = flows.real_nvp_image((1, 2, 2), 1, network=lambda i, o: nn.Conv2d(i, o, 1))
    assert all(isinstance(p.conditioner, nn.Conv2d) for p in flow.modules() if isinstance(p, Coupling))


def stripes(n):
    """Images whose rows are all alike, with a little noise: 4 of 16 dimensions matter."""
    return torch.randn(n, 1, 1, 4) + 0.1 * torch.randn(n, 1, 4, 4)


@pytest.mark.parametrize(
    "build",
    [lambda: flows.real_nvp_image((1, 4, 4), 2, 8, 1), lambda: flows.glow((1, 4, 4), 1, 3, 16)],
    ids=["real_nvp", "glow"],
)
def test_image_flows_learn_how_pixels_depend_on_each_other(build):
    torch.manual_seed(0)
    flow = build()
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(100):
        loss = -flows.distribution(flow).log_prob(stripes(64)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
    flow.eval()
    # with independent pixels of variance 1.01 the best is 16 * 1.424 nats; the truth, 4 columns of
    # covariance 0.01 I + 1, is near -1.6
    assert -flows.distribution(flow).log_prob(stripes(1000)).mean().item() < 12.0


MISTAKES = {
    "odd": (lambda: flows.glow((1, 6, 6), 2), r"\(1, 6, 6\).*divisible by 4"),
    "one scale less": (lambda: flows.real_nvp_image((1, 5, 4), 2), "divisible by 2"),
    "no image": (lambda: flows.glow((8, 8), 1), "channels, height, width"),
    "scales": (lambda: flows.glow(IMAGE, 0), "num_scales"),
    "steps": (lambda: flows.glow(IMAGE, 1, 0), "num_steps"),
    "context size": (lambda: flows.glow(IMAGE, 1, context_dim=(3, 2, 2)), r"\(3, 2, 2\)"),
    "group": (lambda: flows.wave_glow(50), "50.*group 8"),
    "early": (lambda: flows.wave_glow(64, 12, early_every=1), "early_size"),
    "frames": (lambda: flows.wave_glow(64, 2, context_dim=(5, 3)), "frames"),
    "temperature": (lambda: flows.distribution(flows.nice(2), temperature=0.0), "temperature"),
    "circular": (lambda: flows.base_distribution(flows.nice(2), circular=[True]), "circular"),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake()
