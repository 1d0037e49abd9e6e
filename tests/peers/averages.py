"""Adapters of the plain and the exponential averages."""

from __future__ import annotations

from typing import Any

from known import DECAY
from torch import Tensor, nn

from problems import Row, ema_row, put, section, swa_row, teacher_rows


@section("lowland", "swa")
def _() -> list[Row]:
    from lowland import SWA

    def again(average: Any) -> Tensor:
        fresh = SWA()
        fresh.load_state_dict(average.state_dict())
        return fresh.mean()["weight"]

    return [swa_row("SWA", SWA(), lambda a, m, _: a.update(m), lambda a: a.mean()["weight"], lambda a: a.count, again)]


@section("lowland", "ema")
def _() -> list[Row]:
    from lowland.ema import EMA

    return [ema_row("EMA", lambda _: EMA(DECAY), lambda a, m: a.update(m), lambda a: a.mean()["weight"])]


@section("lowland", "teacher")
def _() -> list[Row]:
    from lowland import EMA
    from lowland.teacher import Teacher

    return teacher_rows(
        "Teacher(EMA)",
        lambda model, rate: Teacher(EMA(1 - rate), model),
        lambda teacher, _: teacher.update(),
        lambda teacher: teacher.averager.mean()["weight"],
    )


@section("trl", "teacher")
def _() -> list[Row]:
    import copy

    from trl.experimental.sdft.teacher_sync import SyncTeacherModelCallback

    def begin(model: nn.Module, rate: float) -> Any:
        return copy.deepcopy(model), rate

    def update(teacher: Any, model: nn.Module) -> None:
        SyncTeacherModelCallback._sync_target_model(model, *teacher)

    return teacher_rows("SyncTeacherModelCallback", begin, update, lambda teacher: teacher[0].weight)


@section("torch", "swa")
def _() -> list[Row]:
    from torch.optim.swa_utils import AveragedModel

    def again(average: Any) -> Tensor:
        fresh = AveragedModel(nn.Linear(1, 1, bias=False))
        fresh.load_state_dict(average.state_dict())
        return fresh.module.weight

    return [
        swa_row(
            "AveragedModel",
            AveragedModel(nn.Linear(1, 1, bias=False)),
            lambda a, m, _: a.update_parameters(m),
            lambda a: a.module.weight,
            lambda a: a.n_averaged,
            again,
        )
    ]


@section("torch", "ema")
def _() -> list[Row]:
    from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

    functions = {"multi_avg_fn": get_ema_multi_avg_fn(DECAY), "avg_fn": get_ema_avg_fn(DECAY)}
    return [
        ema_row(
            f"AveragedModel({name}=)",
            lambda model, chosen={name: function}: AveragedModel(model, **chosen),
            lambda a, m: a.update_parameters(m),
            lambda a: a.module.weight,
        )
        for name, function in functions.items()
    ]


@section("torch-uncertainty", "swa")
def _() -> list[Row]:
    from torch_uncertainty.methods import SWA

    model = nn.Linear(1, 1, bias=False)

    def again(average: Any) -> Tensor:
        fresh = SWA(nn.Linear(1, 1, bias=False), cycle_start=0, cycle_length=1)
        fresh.load_state_dict(average.state_dict())
        return fresh.swa_model.weight

    def update(average: Any, shown: nn.Module, epoch: int) -> None:
        put(model, shown.weight.detach())
        average.update_wrapper(epoch)

    average = SWA(model, cycle_start=0, cycle_length=1)
    return [swa_row("SWA", average, update, lambda a: a.swa_model.weight, lambda a: a.num_avgd_models, again)]


@section("timm", "ema")
def _() -> list[Row]:
    from timm.utils import ModelEmaV2, ModelEmaV3

    return [
        ema_row(
            cls.__name__, lambda m, cls=cls: cls(m, decay=DECAY), lambda a, m: a.update(m), lambda a: a.module.weight
        )
        for cls in (ModelEmaV2, ModelEmaV3)
    ]


@section("ema-pytorch", "ema")
def _() -> list[Row]:
    from ema_pytorch import EMA

    # min_value switches the warm-up off, so that every update has the same decay.
    def begin(model: nn.Module) -> Any:
        return EMA(model, beta=DECAY, min_value=DECAY, update_after_step=0, update_every=1)

    return [ema_row("EMA", begin, lambda a, _: a.update(), lambda a: a.ema_model.weight)]


@section("torch-ema", "ema")
def _() -> list[Row]:
    from torch_ema import ExponentialMovingAverage

    def begin(model: nn.Module) -> Any:
        return ExponentialMovingAverage(model.parameters(), decay=DECAY, use_num_updates=False)

    return [ema_row("ExponentialMovingAverage", begin, lambda a, _: a.update(), lambda a: a.shadow_params[0])]


@section("diffusers", "ema")
def _() -> list[Row]:
    from diffusers.training_utils import EMAModel

    # min_decay switches the warm-up off.
    def begin(model: nn.Module) -> Any:
        return EMAModel(model.parameters(), decay=DECAY, min_decay=DECAY)

    return [ema_row("EMAModel", begin, lambda a, m: a.step(m.parameters()), lambda a: a.shadow_params[0])]
