"""The seam: what an averager is. What weights can be drawn from stands in `posteriors`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from ..arguments import whole
from ..arithmetic.moments import FINITE, MEAN, first_nonfinite, limit
from ..arithmetic.passes import Passes
from ..weights.kinds import check_kinds, check_same_kinds
from ..weights.named import Select, Weights, check_same, clone_of, parameters, select_name
from ..weights.shards import anywhere, check_same_placements, is_sharded, local
from .beside import Beside, own_lock, pays
from .kinds import Kinds
from .reader import Reader, since_the_first
from .shown import table
from .slots import Settings as Settings
from .slots import Slot as Slot
from .slots import (
    allocated,
    check_codes,
    check_slots,
    check_state,
    check_tensors,
    codes_of,
    fitting,
    kept_on,
)

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

    # What numbers must leave room for, so that what is stored stays finite.
    _room: ClassVar[str] = MEAN
    # An update that calls back into the user's model never runs beside the training step.
    _asks_the_user: ClassVar[bool] = False

    def __init__(
        self, *, select: Select = parameters, device: torch.device | str | None = None, check_finite: bool = True
    ) -> None:
        self.select = select
        self.device = None if device is None else torch.device(device)
        self.check_finite = check_finite
        self._updates = 0
        self._kept: dict[str, Slot] = {}
        self._codes: list[str] = []  # tensors that may be codes of a quantised weight
        self._bounded = False  # whether the numbers held were seen to leave room
        self._make_tools()

    def _make_tools(self) -> None:
        """What belongs to this object and process alone, and enters no copy."""
        self._passes, self._reader, self._beside = Passes(), Reader(), Beside()
        self._lock = own_lock(self)

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
        with self._lock:
            self._settle()
            fresh = not self._kept
            read, same = self._read(model_or_weights)
            # As at the last update: nothing to check anew, and no shards.
            weights = read if same and not fresh else self._admitted(model_or_weights, read)
            if self._codes:
                check_codes(self._codes, self._like(), weights)
            beside = not fresh and not self._asks_the_user and pays(self.device, weights)
            # Sharded weights are checked here and not beside the step, whose own collectives must not be crossed.
            check_here = self.check_finite and (not beside or any(map(is_sharded, weights.values())))
            self._passes.expect(weights, same and not fresh)
            try:
                if check_here:
                    self._check_numbers(weights, same)
                if not beside:
                    self._take(weights, fresh)
            finally:
                self._passes.done()
            if beside:
                check = self._check_copies if self.check_finite and not check_here else None
                self._beside.run(weights, check, self._absorb_copies)
            if weights is read:
                self._reader.accept()
            else:
                self._reader.forget()

    @final
    @torch.no_grad()
    def allocate(self, model_or_weights: nn.Module | Weights) -> None:
        """Make room for tensors like these without counting them, so that a sharded checkpoint can load in place.

        Raises:
            RuntimeError: the averager already holds weights.
        """
        with self._lock:
            if self._slots:
                raise RuntimeError(f"{type(self).__name__} already holds {self.count} updates: allocate a new one")
            weights, _ = self._reader.read(model_or_weights, self.select)
            check_kinds(weights)
            self._kept, self._codes = self._make_slots(weights), codes_of(weights)

    @property
    def count(self) -> int:
        """How many updates the averager has taken."""
        self._settle()
        return self._updates

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
        with self._lock:
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
        with self._lock:
            self._settle()
            self._check_kind(state)
            check_tensors(state["slots"])
            count, slots = whole("the state's count", state["count"], 0, 2**62), state["slots"]
            if count and not slots:
                raise ValueError(f"the state counts {count} updates and holds no tensor: it is damaged")
            wanted = self._slot_count()
            if slots and wanted is not None and len(slots) != wanted:
                raise ValueError(f"the state has {len(slots)} slots, wanted {wanted}: another version's")
            if self._kept and slots:
                what = f"of {type(self).__name__}"
                if set(slots) != set(self._kept):
                    raise ValueError(f"the state has the slots {sorted(slots)}, wanted {sorted(self._kept)}")
                slots = {s: fitting(own, slots[s], f"loading the slot {s!r} {what}") for s, own in self._kept.items()}
            taken = {
                slot: {name: kept_on(self.device, tensor, copy) for name, tensor in tensors.items()}
                for slot, tensors in slots.items()
            }
            if taken:
                check_slots(taken, self._allocate)
            # First of all, as a method may refuse damaged scalars.
            self._set_scalars(dict(state.get("scalars", {})))
            self._kept, self._updates, self._bounded = taken, count, False
            self._codes = codes_of(next(iter(taken.values()), {}))
            self._reader.forget()

    def __repr__(self) -> str:
        shown = {**self.settings, "select": select_name(self.select)}
        if self.device is not None:
            shown["device"] = str(self.device)
        if not self.check_finite:
            shown["check_finite"] = False
        inside = ", ".join(f"{key}={value}" for key, value in shown.items())
        self._beside.wait()  # a refused iterate is no reason for a repr to raise
        return f"{type(self).__name__}({inside}) after {self._updates} updates"

    def _repr_html_(self) -> str:
        rows = [(key, str(value)) for key, value in {**self.settings, "select": select_name(self.select)}.items()]
        self._beside.wait()
        return table(type(self).__name__, [("updates", str(self._updates)), *rows])

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            self._settle()
            own = {"_passes", "_reader", "_beside", "_lock"}
            return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_tools()

    # Private helpers.

    @property
    def _slots(self) -> dict[str, Slot]:
        self._settle()
        return self._kept

    def _settle(self) -> None:
        """Wait for an update under way and raise what it raised; in the thread that makes it, do nothing."""
        self._beside.join()

    def _read(self, model_or_weights: nn.Module | Weights) -> tuple[Slot, bool]:
        try:
            return self._reader.read(model_or_weights, self.select)
        except ValueError:
            if not self._kept or not isinstance(model_or_weights, nn.Module):
                raise
            return {}, False  # nothing is selected any more: the names held are looked for

    def _admitted(self, model_or_weights: nn.Module | Weights, weights: Slot) -> Slot:
        """Check weights that do not lie as those of the last update; return those of the names held."""
        if not self._kept:
            check_kinds(weights)
            return weights
        what, own = f"update of {type(self).__name__}", self._like()
        if isinstance(model_or_weights, nn.Module) and own.keys() != weights.keys():
            weights = since_the_first(model_or_weights, own, weights, what)
        check_kinds(weights)
        check_same(own, weights, what=what)
        check_same_kinds(own, weights, what)
        check_same_placements(own, weights, what=what)
        return weights

    def _take(self, weights: Slot, fresh: bool) -> None:
        if fresh:
            self._kept, self._codes, self._bounded = self._make_slots(weights), codes_of(weights), False
        try:
            self._count_and_absorb(weights)
        except BaseException:
            if fresh:
                self._kept, self._codes = {}, []
            raise

    def _count_and_absorb(self, weights: Slot) -> None:
        self._updates += 1
        try:
            self._absorb(weights)
        except BaseException:
            self._updates -= 1
            raise

    # The two halves of an update beside the step, on the device and on the CPU, in the thread that makes it.

    def _check_copies(self, copies: Slot) -> None:
        self._refuse(first_nonfinite(copies, self._room), {}, copies)

    @torch.no_grad()
    def _absorb_copies(self, copies: Slot, same: bool) -> None:
        self._passes.expect(copies, same)
        try:
            if self.check_finite and self._updates:
                self._check_held()
            self._count_and_absorb(copies)
        finally:
            self._passes.done()

    def _check_numbers(self, weights: Slot, same: bool) -> None:
        """Refuse an iterate with a number that is not finite, or that leaves no room beside those that are held."""
        room = FINITE if not self._updates and self._room == MEAN else self._room
        self._refuse(self._passes.first_nonfinite(weights, room), {} if same else weights, weights)
        if self._updates:
            self._check_held()

    def _check_held(self) -> None:
        """The same of what is held, once: after the first update, and after loading."""
        if not self._bounded:
            held = self._like()
            name = first_nonfinite({name: local(tensor) for name, tensor in held.items()}, self._room)
            self._refuse(name, held, held, "the average itself is of no use, and this iterate is refused")
            self._bounded = True

    def _refuse(
        self,
        name: str | None,
        shared: Slot,
        weights: Slot,
        what: str = "this iterate is refused and the average unchanged",
    ) -> None:
        """Raise if a tensor's name is given, here or on another rank that holds shards of the same tensors."""
        if not anywhere(name is not None, shared):
            return
        seen = "a value that is not finite"
        if name is not None and bool((tensor := local(weights[name])).isfinite().all()):
            size, most = float(tensor.abs().max()), limit(tensor.dtype, self._room)
            seen = f"a value of size {size:.3g}, beyond {most:.3g}, where sums no longer fit {tensor.dtype}"
        raise ValueError(
            f"{'a tensor, on another rank,' if name is None else name} holds {seen}: {what}; "
            "lower the learning rate or clip gradients, or pass check_finite=False to average it"
        )

    def _make_slots(self, weights: Slot) -> dict[str, Slot]:
        return allocated(weights, self._allocate, self.device)

    def _slot_count(self) -> int | None:
        """How many slots `_allocate` makes, where that depends on the settings: a state may claim any number."""
        return None

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
        # Whoever uses the average may be done with the model.
        self._reader.release()
        if self.count < at_least:
            wanted = "call update(model) first" if at_least == 1 else f"at least {at_least} updates are needed"
            held = "no weights yet" if self.count == 0 else f"{self.count} update(s)"
            raise RuntimeError(f"{type(self).__name__} has {held}: {wanted}")
