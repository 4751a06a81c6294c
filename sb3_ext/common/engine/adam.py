"""Adam for graphs: the step that a compiler or a CUDA graph can record, on the state of the optimizer itself."""

from collections.abc import Sequence

import torch as th
from torch.optim.adam import adam as functional_adam

Optimizer = th.optim.Optimizer


def is_supported(optimizer: Optimizer) -> bool:
    """Whether :func:`adam_` is this optimizer's step: Adam or AdamW with one group and no variants."""
    return (
        type(optimizer) in (th.optim.Adam, th.optim.AdamW)
        and len(optimizer.param_groups) == 1
        and not any(optimizer.param_groups[0].get(name) for name in ("amsgrad", "maximize", "differentiable"))
    )


def initialise_state(optimizer: Optimizer) -> None:
    """Make the state that Adam's first step makes, in the same format, so that either can go on from the other."""
    for parameter in optimizer.param_groups[0]["params"]:
        state = optimizer.state[parameter]
        if not state:
            state["step"] = th.zeros((), dtype=th.float32, device=parameter.device)
            state["exp_avg"] = th.zeros_like(parameter, memory_format=th.preserve_format)
            state["exp_avg_sq"] = th.zeros_like(parameter, memory_format=th.preserve_format)
        # PyTorch counts on the CPU where its kernel is not fused
        state["step"] = state["step"].to(parameter.device)


def state_tensors(optimizer: Optimizer) -> list[th.Tensor]:
    """All tensors of the state, in a fixed order."""
    return [
        optimizer.state[parameter][name]
        for parameter in optimizer.param_groups[0]["params"]
        for name in ("step", "exp_avg", "exp_avg_sq")
    ]


def hyperparameters(optimizer: Optimizer) -> tuple:
    """What a recorded step has in it as constants."""
    group = optimizer.param_groups[0]
    return (*group["betas"], group["eps"], group["weight_decay"], type(optimizer))


@th.no_grad()
def adam_(
    optimizer: Optimizer, grads: Sequence[th.Tensor | None], learning_rate: th.Tensor, fused: bool = False
) -> None:
    """
    One step (Kingma & Ba 2014, https://arxiv.org/abs/1412.6980; decoupled weight decay for AdamW, Loshchilov & Hutter
    2017, https://arxiv.org/abs/1711.05101).

    :param optimizer: its parameters and state are changed in place
    :param grads: one per parameter, None for those that the loss does not depend on
    :param learning_rate: 0-d tensor, so that a schedule changes it without a new recording
    :param fused: by PyTorch's kernel instead of in operations that a compiler fuses
    """
    group = optimizer.param_groups[0]
    beta1, beta2 = group["betas"]
    pairs = [(p, grad) for p, grad in zip(group["params"], grads, strict=True) if grad is not None]
    if fused:
        columns = [[optimizer.state[p][name] for p, _ in pairs] for name in ("exp_avg", "exp_avg_sq", "step")]
        functional_adam(
            [p for p, _ in pairs],
            [grad for _, grad in pairs],
            columns[0],
            columns[1],
            [],
            columns[2],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=learning_rate,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            decoupled_weight_decay=isinstance(optimizer, th.optim.AdamW),
        )
        return
    for parameter, grad in pairs:
        state = optimizer.state[parameter]
        step, exp_avg, exp_avg_sq = state["step"], state["exp_avg"], state["exp_avg_sq"]
        if group["weight_decay"] != 0:
            if isinstance(optimizer, th.optim.AdamW):
                parameter.mul_(1 - learning_rate * group["weight_decay"])
            else:
                grad = grad + group["weight_decay"] * parameter
        step.add_(1)
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        # Both corrections of the bias on scalars (the end of section 2 of the paper): one division a weight, not two
        correction2 = (1 - beta2**step).sqrt()
        step_size = learning_rate * correction2 / (1 - beta1**step)
        parameter.sub_(step_size * exp_avg / (exp_avg_sq.sqrt() + group["eps"] * correction2))
