import math

import pytest
import torch
from torch.nn import Parameter

from paretune.core.errors import WiringError
from paretune.training.optimizer import Optimizer, OptimizerConfig


def test_learning_rate_schedules():
    constant = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.2)
    assert [constant.learning_rate_at_step(s, 10) for s in range(4)] == [0.5, 1.0, 1.0, 1.0]
    cosine = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.0, lr_scheduler_type="cosine")
    assert [cosine.learning_rate_at_step(s, 4) for s in (0, 2)] == [1.0, pytest.approx(0.5)]
    # The linear schedule of transformers: (N - s) / (N - warm-up), here also as a fraction of a budget.
    linear = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.2, lr_scheduler_type="linear")
    assert [linear.learning_rate_at_step(s, 10) for s in (1, 2, 6, 9)] == [1.0, 1.0, 0.5, 0.125]
    assert linear.learning_rate_at_fraction(0.6, 0.7) == pytest.approx(0.5)
    assert OptimizerConfig(learning_rate=1.0).learning_rate_at_step(0, 1) == 1.0


def take_steps(parameter, config, grads):
    optimizer = Optimizer(config, [parameter])
    for grad in grads:
        parameter.grad = torch.full_like(parameter, grad)
        optimizer.step(config.learning_rate, optimizer.grad_norm())
    return optimizer


def test_matches_torch_adamw_with_clipping():
    ours, theirs = Parameter(torch.ones(4)), Parameter(torch.ones(4))
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.01, max_grad_norm=1.0)
    take_steps(ours, config, [3.0, -2.0])
    adamw = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.01)
    for grad in (3.0, -2.0):
        theirs.grad = torch.full_like(theirs, grad)
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        adamw.step()
    torch.testing.assert_close(ours, theirs)


def test_bfloat16_weights_accumulate_small_updates():
    p = Parameter(torch.ones(1, dtype=torch.bfloat16))
    config = OptimizerConfig(learning_rate=1e-3, max_grad_norm=math.inf)
    take_steps(p, config, [1.0] * 50)
    assert p.item() == pytest.approx(0.95, abs=0.004)
    plain = Parameter(torch.ones(1, dtype=torch.bfloat16))
    for _ in range(50):
        plain.data -= torch.tensor(1e-3, dtype=torch.bfloat16)
    assert plain.item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bit_exact(dtype):
    grads = [0.3, -0.1, 0.7, 0.2]
    whole = Parameter(torch.ones(3, dtype=dtype))
    take_steps(whole, OptimizerConfig(learning_rate=0.01), grads)
    half = Parameter(torch.ones(3, dtype=dtype))
    state = take_steps(half, OptimizerConfig(learning_rate=0.01), grads[:2]).state_dict()
    again = Parameter(half.detach().clone())
    optimizer = Optimizer(OptimizerConfig(learning_rate=0.01), [again])
    optimizer.load_state_dict(state)
    for grad in grads[2:]:
        again.grad = torch.full_like(again, grad)
        optimizer.step(0.01, optimizer.grad_norm())
    assert torch.equal(again, whole)


def test_grad_norm_covers_all_parameters_and_non_finite_values():
    a, b = Parameter(torch.zeros(2)), Parameter(torch.zeros(1))
    optimizer = Optimizer(OptimizerConfig(), [a, b])
    assert optimizer.grad_norm() == 0.0
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert optimizer.grad_norm() == pytest.approx(5.0)
    b.grad = torch.tensor([math.inf])
    assert not math.isfinite(optimizer.grad_norm())
    optimizer.zero_grad()
    assert a.grad is None


def test_nothing_to_train_is_refused():
    with pytest.raises(WiringError, match="nothing to train"):
        Optimizer(OptimizerConfig(), [Parameter(torch.ones(1), requires_grad=False)])
