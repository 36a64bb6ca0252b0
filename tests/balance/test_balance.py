"""What each balancer's paper says, on two quadratics whose Pareto front is the line from one minimum to the other."""

import math
from functools import partial

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from fusionkit.balance import DWA, Balancer, Fixed, GradNorm, PCGrad, Schedule, Step, Uncertainty
from fusionkit.balance.gradients import gradient_matrix
from fusionkit.balance.pcgrad import draw_orders, surgery
from fusionkit.errors import ConfigError
from tests.toys import CONF, choices

NAMES = ["coco/itc", "coco/itm"]
LEFT, RIGHT = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0])


def started(balancer: Balancer, names=NAMES) -> Balancer:
    balancer.start(names)
    return balancer


def step_of(number: int = 0, total: float = 10, is_first: bool = True, **parameters) -> Step:
    named = {"model." + name[2:] if name.startswith("m_") else "tasks." + name: p for name, p in parameters.items()}
    return Step(number, total, is_first, named)


def distances(point: torch.Tensor, offsets=(0.0, 0.0)) -> dict[str, torch.Tensor]:
    ends = zip((LEFT, RIGHT), offsets, strict=True)
    return dict(zip(NAMES, [(point - end).square().sum() / 2 + offset for end, offset in ends], strict=True))


def descend(balancer, weights=(1.0, 1.0), steps=400, lr=0.05, start=(0.4, 2.0), offsets=(0.0, 0.0)):
    """Gradient descent; gives the points that were passed."""
    point = nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.SGD([point, *started(balancer).parameters()], lr=lr)
    points = []
    for number in range(steps):
        losses = distances(point, offsets)
        loss = balancer(losses, dict(zip(NAMES, weights, strict=True)), step_of(number, m_point=point)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        points.append(point.detach().clone())
    return torch.stack(points)


def gradient(balancer, losses_of, weights, **parameters):
    """Gradients by parameter of one balanced step."""
    losses = dict(zip(balancer.objectives, losses_of(parameters), strict=True))
    given = dict(zip(balancer.objectives, weights, strict=True))
    balancer(losses, given, step_of(**parameters)).loss.backward()
    return {name: parameter.grad for name, parameter in parameters.items()}


@pytest.mark.parametrize("name", choices("balance"))
def test_every_choice_starts_as_the_weighted_sum_and_logs_the_weights(name):
    balancer = started(instantiate(OmegaConf.load(CONF / "balance" / f"{name}.yaml")))
    point = nn.Parameter(torch.tensor([0.5, 1.0]))
    losses = distances(point)
    found = balancer(losses, {NAMES[0]: 3.0, NAMES[1]: 1.0}, step_of(m_point=point))
    assert found.loss.item() == pytest.approx(3 * losses[NAMES[0]].item() + losses[NAMES[1]].item())
    assert found.metrics["train/coco/itc_weight"] == pytest.approx(3.0)
    found.loss.backward()
    torch.testing.assert_close(point.grad, 3 * (point.detach() - LEFT) + point.detach() - RIGHT)


def test_fixed_weights_multiply_gradients_exactly():
    def once(*weights):
        leaf = nn.Parameter(torch.tensor([0.3, 0.7]))
        losses_of = lambda p: [3.1 * p["m_x"][0].sin(), 5.7 * p["m_x"][1].exp()]  # noqa: E731
        return gradient(started(Fixed()), losses_of, weights, m_x=leaf)["m_x"]

    base, doubled = once(1.0, 0.5), once(2.0, 0.5)
    assert doubled[0] == 2 * base[0]  # to the last bit
    assert doubled[1] == base[1]


def test_fixed_weights_choose_the_point_of_the_front():
    torch.testing.assert_close(descend(Fixed(), (3.0, 1.0))[-1], (3 * LEFT + RIGHT) / 4, atol=1e-5, rtol=0)


def test_uncertainty_rests_where_its_weights_are_one_over_twice_the_loss():
    balancer, offsets = Uncertainty(), (1.0, 2.0)
    point = descend(balancer, steps=3000, offsets=offsets)[-1].requires_grad_()
    losses = distances(point, offsets)
    twice = torch.stack([2 * loss for loss in losses.values()]).detach()
    torch.testing.assert_close(balancer.log_variances.detach().exp(), twice, atol=1e-3, rtol=0)
    (balance,) = torch.autograd.grad(sum(loss.log() for loss in losses.values()), point)
    torch.testing.assert_close(balance, torch.zeros(2), atol=1e-4, rtol=0)
    assert point[1].item() == pytest.approx(0.0, abs=1e-4)


def test_dwa_weighs_by_the_ratio_of_the_last_two_windows():
    balancer = started(DWA(temperature=2.0, window=2))
    seen = [(4.0, 4.0), (2.0, 4.0), (1.0, 3.0), (2.0, 3.0), (9.0, 9.0)]
    for number, losses in enumerate(seen):
        named = dict(zip(NAMES, map(torch.tensor, losses), strict=True))
        metrics = balancer(named, dict.fromkeys(NAMES, 1.0), step_of(number)).metrics
        found = [float(metrics[f"train/{name}_weight"]) for name in NAMES]
        if number < 4:
            assert found == [1.0, 1.0]
    ratios = [math.exp(1.5 / 3 / 2), math.exp(3 / 4 / 2)]
    assert found == pytest.approx([2 * ratio / sum(ratios) for ratio in ratios])
    assert balancer.means.tolist() == [[1.5, 3.0], [3.0, 4.0]]  # of the last window and of the one before


def test_gradnorm_brings_the_norms_together():
    """With alpha 0 the factors tend to K / n_i / sum_j 1 / n_j; here the norms are 1 and 10 for ever."""
    balancer = started(GradNorm(alpha=0.0, lr=0.01))
    point = nn.Parameter(torch.tensor([1.0, 1.0]))
    for number in range(200):
        losses = dict(zip(NAMES, (point[0], 10 * point[1]), strict=True))
        balancer(losses, dict.fromkeys(NAMES, 1.0), step_of(number, m_x=point))
    assert balancer.used_factors.tolist() == pytest.approx([20 / 11, 2 / 11], abs=0.03)
    assert balancer.used_factors.sum().item() == pytest.approx(2.0)


def test_gradnorm_favours_what_learns_slowly_and_moves_once_a_step():
    balancer = started(GradNorm(alpha=1.0, lr=0.1))
    point = nn.Parameter(torch.tensor([1.0, 1.0]))
    run = lambda number, scale, is_first=True: balancer(  # noqa: E731
        dict(zip(NAMES, (scale * point[0], point[1] + 0 * scale), strict=True)),
        dict.fromkeys(NAMES, 1.0),
        step_of(number, is_first=is_first, m_x=point),
    )
    run(0, 1.0)
    assert balancer.next_factors.tolist() == [1.0, 1.0]  # equal norms, equal rates
    run(1, 1.0)
    with torch.no_grad():
        point[0] = 0.5  # the first has come half its way, with the gradient it always had
    run(2, 1.0)
    # the second lags: G = (1, 1), r = (2/3, 4/3), so each moves by lr against the sign of G - r
    assert balancer.next_factors.tolist() == pytest.approx([0.9, 1.1])
    run(2, 1.0, is_first=False)
    assert balancer.used_factors.tolist() == [1.0, 1.0]  # all micro-batches of a step have its factors
    run(3, 1.0)
    assert balancer.used_factors.tolist() == pytest.approx([0.9, 1.1])


def test_pcgrad_takes_from_conflicting_gradients_their_conflict_alone():
    one, other = torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 1.0])
    surgically = one - (one @ other) / (other @ other) * other + other - (one @ other) / (one @ one) * one
    linear = lambda p: [one @ p["m_x"], other @ p["m_x"]]  # noqa: E731
    found = gradient(started(PCGrad()), linear, (1.0, 1.0), m_x=nn.Parameter(torch.ones(2)))["m_x"]
    torch.testing.assert_close(found, surgically)
    agreeing = lambda p: [one @ p["m_x"], (other + 2 * one) @ p["m_x"]]  # noqa: E731
    found = gradient(started(PCGrad()), agreeing, (1.0, 3.0), m_x=nn.Parameter(torch.ones(2)))["m_x"]
    torch.testing.assert_close(found, one + 3 * (other + 2 * one))


def test_pcgrad_leaves_heads_their_own_gradient():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.1])
    losses_of = lambda p: [one @ p["m_x"] + 5 * p["head"].sum(), other @ p["m_x"]]  # noqa: E731
    parts = {"m_x": nn.Parameter(torch.ones(2)), "head": nn.Parameter(torch.ones(3))}
    assert gradient(started(PCGrad()), losses_of, (2.0, 1.0), **parts)["head"].tolist() == [10.0] * 3


def test_pcgrad_in_coefficients_is_the_published_algorithm():
    torch.manual_seed(0)
    gradients, orders = torch.randn(4, 3, dtype=torch.float64), draw_orders(4, seed=3)
    expected = torch.zeros(3, dtype=torch.float64)
    for own, order in enumerate(orders):
        projected = gradients[own].clone()
        for other in order:
            if (product := projected @ gradients[other]) < 0:
                projected -= product / gradients[other].square().sum() * gradients[other]
        expected += projected
    assert sorted(orders[2]) == [0, 1, 3]
    torch.testing.assert_close(surgery(gradients @ gradients.T, orders) @ gradients, expected)


def test_pcgrad_reaches_the_front_and_never_makes_an_objective_worse():
    points = descend(PCGrad(), start=(0.4, 2.0))
    assert points[-1][1].item() == pytest.approx(0.0, abs=1e-2)
    assert -1 < points[-1][0] < 1
    losses = torch.stack([torch.stack(list(distances(point).values())) for point in points])
    assert (losses.diff(dim=0) <= 1e-6).all()


def test_gradients_are_logged_on_their_steps():
    point = nn.Parameter(torch.tensor([0.0, 1.0]))  # the gradients are (1, 1) and (-1, 1)
    balancer = started(Fixed(gradients_every_n_steps=2))
    weights = {NAMES[0]: 7.0, NAMES[1]: 1.0}

    def run(number, is_first=True):
        return balancer(distances(point), weights, step_of(number, is_first=is_first, m_point=point)).metrics

    metrics = run(2)
    assert float(metrics["train/coco/itc_gradient_norm"]) == pytest.approx(2**0.5)
    assert float(metrics["train/gradient_cosine/coco.itc-coco.itm"]) == pytest.approx(0.0, abs=1e-6)
    assert set(run(1)) == set(run(2, is_first=False)) == {f"train/{name}_weight" for name in NAMES}
    metrics = started(PCGrad())(distances(point), dict.fromkeys(NAMES, 3.0), step_of(m_point=point)).metrics
    assert float(metrics["train/coco/itc_gradient_norm"]) == pytest.approx(2**0.5)  # of the loss, whatever its weight


def test_a_frozen_objective_has_a_zero_gradient():
    point = nn.Parameter(torch.tensor([0.5, 1.0]))
    losses = dict(zip(NAMES, (distances(point)[NAMES[0]], torch.tensor(2.0)), strict=True))
    found = started(PCGrad())(losses, dict.fromkeys(NAMES, 1.0), step_of(m_point=point))
    found.loss.backward()
    torch.testing.assert_close(point.grad, point.detach() - LEFT)
    assert found.metrics["train/coco/itm_gradient_norm"] == 0


def test_without_parameters_each_objective_has_one_zero():
    torch.testing.assert_close(gradient_matrix(torch.tensor([1.0, 2.0]), []), torch.zeros(2, 1))


def test_gradients_under_autocast_are_those_of_an_ordinary_backward_pass():
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)
    balancer = started(PCGrad(), NAMES[:1])
    loss_of = lambda: torch.tanh(layer(x)).float().square().mean()  # noqa: E731
    with torch.autocast("cpu", torch.bfloat16):
        plain = loss_of()
        balanced = balancer({NAMES[0]: loss_of()}, {NAMES[0]: 1.0}, step_of(m_w=layer.weight, m_b=layer.bias)).loss
    expected = torch.autograd.grad(plain, list(layer.parameters()))
    balanced.backward()
    for parameter, gradient_of in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient_of)


@pytest.mark.parametrize("balancer", [PCGrad(), Fixed(gradients_every_n_steps=1), GradNorm()])
def test_autocast_rounds_neither_gradients_nor_their_products(balancer):
    def once(enabled):
        point = nn.Parameter(torch.tensor([0.123456, 1.234567]))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            balanced = started(balancer)(distances(point), dict.fromkeys(NAMES, 1.2345), step_of(m_point=point))
        balanced.loss.backward()
        return point.grad, {name: float(value) for name, value in balanced.metrics.items()}

    (plain, logged), (rounded, also_logged) = once(False), once(True)
    assert torch.equal(plain, rounded)
    assert logged == also_logged
    assert len(logged) == 5


@pytest.mark.parametrize(
    ("unit", "number", "factor"), [("step", 0, 0.5), ("step", 15, 1.25), ("step", 99, 2.0), ("progress", 150, 1.25)]
)
def test_a_schedule_is_linear_between_its_points(unit, number, factor):
    points = [[10, 0.5], [20, 2.0]] if unit == "step" else [[0.1, 0.5], [0.2, 2.0]]
    balancer = started(Schedule({"coco": {"itm": points}}, unit))
    losses = dict.fromkeys(NAMES, torch.tensor(1.0))
    metrics = balancer(losses, {NAMES[0]: 1.0, NAMES[1]: 4.0}, step_of(number, total=1000)).metrics
    assert [float(metrics[f"train/{name}_weight"]) for name in NAMES] == pytest.approx([1.0, 4 * factor])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(Schedule, {"coco": {"itn": [[0, 1]]}}), "balance.points.coco.itn: no such objective; did you mean"),
        (partial(Schedule, {"coco": {"itm": [[5, 1], [5, 2]]}}), "balance.points.coco.itm: the points must rise"),
        (partial(Schedule, {"coco": {"itm": [[0, -1]]}}), "a factor is a number from 0 up"),
        (partial(Schedule, {"coco": {"itm": [1, 2]}}), "expected [[at, factor], ...]"),
        (partial(Schedule, unit="epoch"), "balance.unit is 'epoch'; known: progress, step"),
        (partial(DWA, window=0), "window at least 1 step, got 2.0 and 0"),
        (partial(GradNorm, lr=0.0), "balance: lr must be above 0"),
        (partial(Fixed, gradients_every_n_steps=-1), "balance.gradients_every_n_steps is -1"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(ConfigError) as caught:
        started(make())
    assert words in str(caught.value)


def test_progress_needs_an_end_and_gradnorm_parameters():
    losses = dict.fromkeys(NAMES, torch.ones(1, requires_grad=True).sum())
    weights = dict.fromkeys(NAMES, 1.0)
    with pytest.raises(ConfigError, match=r"set trainer.max_steps, or use balance.unit=step"):
        started(Schedule({"coco": {"itm": [[0, 1]]}}, "progress"))(losses, weights, step_of(total=math.inf))
    with pytest.raises(
        ConfigError,
        match=r"balance.parameters: 'vision' matches none of the parameters, whose names begin with model.x",
    ):
        started(GradNorm(parameters="vision"))(losses, weights, step_of(m_x=nn.Parameter(torch.ones(1))))


def test_the_penalty_of_uncertainty_has_the_users_weight():
    balancer = started(Uncertainty())
    with torch.no_grad():
        balancer.log_variances.copy_(torch.tensor([0.5, -1.0]))
    losses = {NAMES[0]: torch.tensor(2.0), NAMES[1]: torch.tensor(3.0)}
    found = balancer(losses, {NAMES[0]: 4.0, NAMES[1]: 1.0}, step_of())
    expected = 4 * (math.exp(-0.5) * 2 + 0.25) + 1 * (math.exp(1.0) * 3 - 0.5)
    assert found.loss.item() == pytest.approx(expected, rel=1e-6)


def test_gradnorm_reckons_progress_from_each_objectives_own_first_loss():
    """Losses of unequal size that fall by the same share have one rate, so equal norms stay where they are."""
    balancer = started(GradNorm(alpha=1.0, lr=0.1))
    move = lambda *losses: balancer._move(torch.tensor(losses), torch.ones(2))  # noqa: E731
    move(8.0, 0.5)
    move(4.0, 0.25)
    assert balancer.next_factors.tolist() == [1.0, 1.0]
    move(4.0, 0.125)  # the second is ahead: rates 1/2 and 1/4, targets 4/3 and 2/3
    assert balancer.next_factors.tolist() == pytest.approx([1.1, 0.9])


def test_gradnorm_moves_each_factor_by_its_share_of_the_norms():
    """The derivative of |w_i n_i - target| is n_i, here in parts of the mean norm; the sum of the factors stays."""
    balancer = started(GradNorm(alpha=1.0, lr=0.1))
    balancer._move(torch.ones(2), torch.tensor([1.0, 3.0]))  # target 2 for both
    moved = [1 + 0.1 * 0.5, 1 - 0.1 * 1.5]
    assert balancer.next_factors.tolist() == pytest.approx([2 * each / sum(moved) for each in moved])
    balancer.used_factors.copy_(torch.tensor([1.7, 0.3]))  # now 1.7 and 0.9 for a target of 1.3
    balancer._move(torch.ones(2), torch.tensor([1.0, 3.0]))
    moved = [1.7 - 0.1 * 0.5, 0.3 + 0.1 * 1.5]
    assert balancer.next_factors.tolist() == pytest.approx([2 * each / sum(moved) for each in moved])
