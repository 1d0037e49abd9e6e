"""The seam: what an averager is. What weights can be drawn from stands in `posteriors`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from ..arithmetic.moments import first_nonfinite
from ..arithmetic.passes import Passes
from ..weights.named import Select, Weights, check_same, clone_of, parameters, select_name
from ..weights.shards import anywhere, check_same_placements, is_sharded
from . import beside as background
from .kinds import Kinds
from .reader import Reader, named_tensors
from .slots import Settings as Settings
from .slots import Slot as Slot
from .slots import allocated, check_real, check_state, fitting, kept_on

KINDS: Kinds[type[Averager]] = Kinds()  # every averager by its class name, for reading state files


class Averager(ABC):
    """A count, a few scalars and a few slots of named tensors, fed with `update`.

    Subclasses are final. They hold hyper-parameters only until the first `update` shows them the tensors' names; from
    then on the names and shapes are fixed.

    Args of every averager:
        select: which tensors of a model are averaged (a mapping given to `update` is taken as it is).
        device: where the averages are kept; None keeps each beside the tensor it averages. With `"cpu"` and weights on
            a CUDA device, `update` copies them on that device and returns; the rest runs beside the next step. Every
            other call waits for it, and raises what it raised: a refused iterate is reported then.
        check_finite: refuse an iterate with a NaN or an infinity by the name of its tensor; one more read. With sharded
            weights (DTensors) the ranks agree, by one number each, and all refuse; everything else an averager does
            with shards needs no communication.
    """

    # Whether an update may run beside the training step: not where it calls back into the user's model.
    _may_run_beside: ClassVar[bool] = True
    # None: where it pays, for weights on CUDA averaged on the CPU. Tests set it.
    _run_beside: bool | None = None

    def __init__(
        self, *, select: Select = parameters, device: torch.device | str | None = None, check_finite: bool = True
    ) -> None:
        self.select = select
        self.device = None if device is None else torch.device(device)
        self.check_finite = check_finite
        self._updates = 0
        self._kept: dict[str, Slot] = {}
        self._passes = Passes()
        self._reader = Reader()
        self._background: background.Background | None = None
        self._snapshots: background.Snapshots | None = None

    def __init_subclass__(cls) -> None:
        KINDS[cls.__name__] = cls

    # What a method provides.

    @property
    @abstractmethod
    def settings(self) -> Settings:
        """The hyper-parameters that decide the numbers, as plain data: loading under others is an error."""

    @abstractmethod
    def _allocate(self, like: Slot) -> dict[str, Slot]:
        """Return the zeroed slots for tensors like these (already on the averager's device)."""

    @abstractmethod
    def _absorb(self, weights: Weights) -> None:
        """Take one checked iterate into the slots; `self.count` already counts it, so the first call sees 1."""

    @abstractmethod
    def mean(self) -> dict[str, Tensor]:
        """Return the average, by name: copies, in float32 or wider.

        Raises:
            RuntimeError: there has been no update.
        """

    @classmethod
    def build(cls, settings: Settings, **given: Any) -> Averager:
        """Make one from `settings`, as a state file holds them, and the arguments that no file can hold."""
        return cls(**{**settings, **given})

    def _scalars(self) -> Settings:
        """Plain data of the state beside the count; a method that has none inherits the empty one."""
        return {}

    def _set_scalars(self, scalars: Settings) -> None:  # noqa: B027 (most methods have no scalars)
        """Take back what `_scalars` gave."""

    # What every averager shares.

    @final
    @torch.no_grad()
    def update(self, model_or_weights: nn.Module | Weights) -> None:
        """Absorb the current weights. The first update copies them; the model is left untouched.

        Raises:
            ValueError: names or shapes differ from the first update's, or a value is not finite. Nothing is changed.
        """
        self._settle()
        weights = named_tensors(model_or_weights, self._reader, self.select)
        fresh = not self._slots
        known = not fresh and self._passes.knows(weights)  # as at the last update: nothing to check anew, no shards
        if not known:
            check_real(weights)
        if not fresh and not known:
            what = f"update of {type(self).__name__}"
            check_same(self._like(), weights, what=what)
            check_same_placements(self._like(), weights, what=what)
        beside = not fresh and self._wants_to_run_beside(weights)
        check_now = self.check_finite and (not beside or any(is_sharded(tensor) for tensor in weights.values()))
        if check_now:
            # Sharded weights are checked here and not beside the step, whose own collectives must not be crossed.
            self._refuse(self._passes.first_nonfinite(weights), {} if known else weights)
        if beside:
            self._background = self._background or background.Background()
            self._snapshots = self._snapshots or background.Snapshots()
            snapshot = self._snapshots.take(weights)
            self._background.submit(lambda: self._absorb_beside(snapshot, self.check_finite and not check_now))
            return
        if fresh:
            self._slots = self._make_slots(weights)
        try:
            self._count_and_absorb(weights)
        except BaseException:
            if fresh:
                self._slots = {}
            raise

    @final
    @torch.no_grad()
    def allocate(self, model_or_weights: nn.Module | Weights) -> None:
        """Make room for tensors like these without counting them, so that a sharded checkpoint can load in place.

        Raises:
            RuntimeError: the averager already holds weights.
        """
        if self._slots:
            raise RuntimeError(f"{type(self).__name__} already holds {self.count} updates: allocate a new one")
        weights = named_tensors(model_or_weights, self._reader, self.select)
        check_real(weights)
        self._slots = self._make_slots(weights)

    @property
    def count(self) -> int:
        """How many updates the averager has taken."""
        self._settle()
        return self._updates

    @count.setter
    def count(self, count: int) -> None:
        self._settle()
        self._updates = count

    @final
    def bytes_per_parameter(self, dtype: torch.dtype = torch.float32) -> int:
        """Return the memory that the averager holds for one parameter of `dtype`, in bytes.

        For weights on CUDA averaged on the CPU there is one copy of the weights in pinned memory beside this, and while
        an update is under way one on the device.

        >>> from lowland import EMA, SWAG
        >>> EMA().bytes_per_parameter(), SWAG(rank=20).bytes_per_parameter()
        (4, 88)
        """
        slots = self._allocate({"parameter": torch.empty(1, dtype=dtype, device="meta")})
        return sum(tensor.numel() * tensor.element_size() for slot in slots.values() for tensor in slot.values())

    @final
    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers and named tensors: copies, which later updates do not change.

        `torch.load(weights_only=True)`, `torch.distributed.checkpoint` and `lowland.save` all hold it.
        """
        state = self._views()
        return {**state, "slots": {slot: clone_of(tensors) for slot, tensors in state["slots"].items()}}

    @final
    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state made by `state_dict` of the same class under the same hyper-parameters.

        An averager that holds or has allocated sharded tensors takes its parts of a state of whole ones.

        Raises:
            ValueError: the class, a hyper-parameter, a name or a shape differs, by name. Nothing is changed.
        """
        # DCP and torch.load may hand back the very tensors we would go on writing into: keep copies.
        self._adopt(state, copy=True)

    def _adopt(self, state: Mapping[str, Any], *, copy: bool = False) -> None:
        """Take a state; without `copy` its tensors are ours from now on, where device and placement allow."""
        self._check_kind(state)
        count, slots = state["count"], state["slots"]
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"the state's count must be a whole number >= 0, got {count!r}")
        if slots:
            own = list(self._allocate({"parameter": torch.empty(1, device="meta")}))
            if set(slots) != set(own):
                raise ValueError(f"the state has the slots {sorted(slots)}, wanted {sorted(own)}: another version's")
        if self._slots and slots:
            what = f"of {type(self).__name__}"
            slots = {s: fitting(own, slots[s], f"loading the slot {s!r} {what}") for s, own in self._slots.items()}
        taken = {
            slot: {name: kept_on(self.device, tensor, copy) for name, tensor in tensors.items()}
            for slot, tensors in slots.items()
        }
        # First of the three, as a method may refuse damaged scalars.
        self._set_scalars(dict(state.get("scalars", {})))
        self._slots, self.count = taken, count

    def __repr__(self) -> str:
        shown = {**self.settings, "select": select_name(self.select)}
        if self.device is not None:
            shown["device"] = str(self.device)
        if not self.check_finite:
            shown["check_finite"] = False
        inside = ", ".join(f"{key}={value}" for key, value in shown.items())
        if self._background is not None:
            self._background.wait()  # a refused iterate is no reason for a repr to raise
        return f"{type(self).__name__}({inside}) after {self._updates} updates"

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        return {**self.__dict__, "_background": None, "_snapshots": None, "_passes": Passes(), "_reader": Reader()}

    # Private helpers.

    @property
    def _slots(self) -> dict[str, Slot]:
        self._settle()
        return self._kept

    @_slots.setter
    def _slots(self, slots: dict[str, Slot]) -> None:
        self._settle()
        self._kept = slots

    def _settle(self) -> None:
        """Wait for an update under way and raise what it raised; in the thread that makes it, do nothing."""
        if self._background is not None:
            self._background.join()

    def _wants_to_run_beside(self, weights: Slot) -> bool:
        if not self._may_run_beside or self._run_beside is not None:
            return self._may_run_beside and bool(self._run_beside)
        on_cpu = self.device is not None and self.device.type == "cpu"
        return on_cpu and any(tensor.is_cuda for tensor in weights.values())

    @torch.no_grad()
    def _absorb_beside(self, snapshot: background.Snapshot, check: bool) -> None:
        if check:
            with snapshot.beside():
                name = first_nonfinite(snapshot.copies)
            self._refuse(name, {})
        self._count_and_absorb(snapshot.fetch())

    def _count_and_absorb(self, weights: Slot) -> None:
        self._updates += 1
        try:
            self._absorb(weights)
        except BaseException:
            self._updates -= 1
            raise

    def _refuse(self, name: str | None, weights: Slot) -> None:
        """Raise if a tensor's name is given, here or on another rank that holds shards of the same tensors."""
        if not anywhere(name is not None, weights):
            return
        what = "a tensor, on another rank," if name is None else name
        raise ValueError(
            f"{what} holds a value that is not finite: this iterate is refused and {type(self).__name__} is "
            "unchanged; lower the learning rate or clip gradients, or pass check_finite=False to average it"
        )

    def _make_slots(self, weights: Slot) -> dict[str, Slot]:
        return allocated(weights, self._allocate, self.device)

    def _check_kind(self, state: Mapping[str, Any]) -> None:
        """Refuse a state of another class or made under other hyper-parameters; its tensors are not looked at."""
        check_state(state, type(self).__name__, self.settings)

    def _views(self) -> dict[str, Any]:
        """The state with the slots' own tensors, which the next update changes."""
        return {
            "class": type(self).__name__,
            "count": self.count,
            "settings": self.settings,
            "scalars": self._scalars(),
            "slots": {slot: dict(tensors) for slot, tensors in self._slots.items()},
        }

    def _like(self) -> Slot:
        """The first slot: by convention its tensors have the shapes of the weights."""
        return next(iter(self._slots.values()))

    def _need(self, at_least: int = 1) -> None:
        if self.count < at_least:
            wanted = "call update(model) first" if at_least == 1 else f"at least {at_least} updates are needed"
            held = "no weights yet" if self.count == 0 else f"{self.count} update(s)"
            raise RuntimeError(f"{type(self).__name__} has {held}: {wanted}")
