"""How interventions take part in training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from recovery_probe import plugins
from recovery_probe.errors import HookError, InputError
from recovery_probe.hooking import hooked, shapes_at
from recovery_probe.interventions import Edit, Intervention
from recovery_probe.moments import Step
from recovery_probe.plugins import AUTHORS, reason
from recovery_probe.settings import Settings
from recovery_probe.training import Training


class Interventions:
    """Those of one run. `attached` holds their hooks; the loop calls the moments."""

    def __init__(self, interventions: Iterable[Intervention], training: Training) -> None:
        self.training = training
        self.all = list(interventions)
        self.edits = {i.name: self._start(i) for i in self.all}
        training.join("interventions", self)

    def state(self) -> dict[str, Any]:
        states = {i.name: i.state() for i in self.all}
        return {name: state for name, state in states.items() if state}

    def restore(self, state: dict[str, Any]) -> None:
        for intervention in self.all:
            if intervention.name in state:
                intervention.restore(state[intervention.name])

    def _start(self, intervention: Intervention) -> tuple[Edit, ...]:
        try:
            edits = tuple(intervention.start(self.training) or ())
            points = [edit.name for edit in edits]
        except (InputError, HookError):
            raise
        except AUTHORS as error:
            raise InputError(
                f"intervention {intervention.name} cannot start with this model and these "
                f"settings: {reason(error)}"
            ) from error
        fired = shapes_at(self.training, points) if points else {}
        if silent := [point for point in points if point not in fired]:
            raise InputError(
                f"intervention {intervention.name} cannot change {silent[0]}: this model has no "
                "such hook point, or it never fires"
            )
        return edits

    @property
    def editing(self) -> list[str]:
        """Those that change activations: without them the network is another."""
        return [name for name, edits in self.edits.items() if edits]

    @property
    def relabelling(self) -> bool:
        """Whether steps go after something else than what evaluations measure."""
        return any(type(i).labels is not Intervention.labels for i in self.all)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Edits in place; gone when it ends, also after an error. Attached before recorders, they
        act before these see."""
        hooks = [
            (edit.name, "fwd", self._editing(name, edit))
            for name, edits in self.edits.items()
            for edit in edits
        ]
        with hooked(self.training.model.bridge, hooks):
            yield

    def _editing(self, name: str, edit: Edit) -> Callable[..., Tensor | None]:
        def editing(tensor: Tensor, *, hook: Any) -> Tensor | None:
            moment = self.training.passing
            if moment is None or isinstance(moment, Step) != (edit.during == "training"):
                return None
            try:
                changed = edit.function(tensor, hook=hook, moment=moment)
            except HookError:
                raise
            except AUTHORS as error:
                raise HookError(
                    f"intervention {name} failed at {hook.name}, in {_when(moment)}: "
                    f"{reason(error)}"
                ) from error
            if changed is not None and getattr(changed, "shape", None) != tensor.shape:
                raise HookError(
                    f"intervention {name} gave {_what(changed)} at {hook.name}, in "
                    f"{_when(moment)}, for a tensor of shape {tuple(tensor.shape)}"
                )
            return changed

        return editing

    def before_step(self, step: Step) -> None:
        self._each("before_step", step)

    def shown(self, step: Step) -> dict[str, Any]:
        """What the network is given at a step."""
        return self._changed("inputs", step)

    def wanted(self, step: Step) -> dict[str, Any]:
        """The document that the loss of a step is of."""
        return self._changed("labels", step)

    def _changed(self, moment: str, step: Step) -> dict[str, Any]:
        """The inputs of a step, as each makes them of the one before. Each gets copies, which it
        may change in place."""
        inputs = step.inputs
        for intervention in self.all:
            if getattr(type(intervention), moment) is getattr(Intervention, moment):
                continue
            with _failures(intervention, step):
                copies = {n: t.clone() for n, t in inputs.items()}
                changed = getattr(intervention, moment)(step, copies)
            if _shapes(changed) != _shapes(inputs):
                raise HookError(
                    f"intervention {intervention.name} gave {moment} of {_shapes(changed)} in "
                    f"{_when(step)}, for {_shapes(inputs)}"
                )
            inputs = changed
        return inputs

    def gradients(self, step: Step) -> None:
        self._each("gradients", step)

    def weights(self, step: Step) -> None:
        self._each("weights", step)

    def _each(self, moment: str, step: Step) -> None:
        for intervention in self.all:
            with _failures(intervention, step):
                getattr(intervention, moment)(step)


@contextmanager
def _failures(intervention: Intervention, step: Step) -> Iterator[None]:
    try:
        yield
    except HookError:
        raise
    except AUTHORS as error:
        raise HookError(
            f"intervention {intervention.name} failed in {_when(step)}: {reason(error)}"
        ) from error


def find(settings: Settings, given: Iterable[Intervention] = ()) -> list[Intervention]:
    """The interventions that the settings name, with their settings; of those `given` as objects,
    these."""
    at_hand = {intervention.name: intervention for intervention in given}
    return [
        at_hand.get(spec)
        or plugins.made(
            plugins.find("interventions", spec),
            settings.tables.get(plugins.key_of(spec), {}),
            plugins.key_of(spec),
        )
        for spec in settings.interventions
    ]


def _when(moment: Step | range) -> str:
    if isinstance(moment, Step):
        return f"step {moment.index}"
    return f"the evaluation of documents {moment.start} to {moment.stop - 1}"


def _shapes(inputs: Any) -> Any:
    """Name -> shape of inputs; of anything else, its type."""
    if not isinstance(inputs, dict):
        return type(inputs).__name__
    return {name: tuple(getattr(values, "shape", ())) for name, values in inputs.items()}


def _what(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")
