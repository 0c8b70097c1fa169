"""LordConfig: what a LoRD adapter is, in PEFT's terms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from peft import PeftConfig, PeftType

DEFAULT_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
ACTIVATIONS = ("relu", "silu", "gelu")
GRANULARITIES = ("token", "sample")
GATE_INPUTS = ("branch", "down", "input")
GATE_NORMS = ("none", "layer", "rms")


def ensure_lord_peft_type() -> PeftType:
    """The member ``PeftType.LORD``, added to PEFT's enum if it is not there yet.

    PEFT looks its methods up by members of this closed enum, and a plain string passes only on the newest versions.
    """
    if "LORD" in PeftType._member_map_:
        return PeftType["LORD"]
    member = str.__new__(PeftType, "LORD")
    member._name_ = "LORD"
    member._value_ = "LORD"
    member._sort_order_ = len(PeftType._member_names_)  # type: ignore[attr-defined]
    # Set first: once the name is in the member map, the enum's metaclass refuses the attribute.
    type.__setattr__(PeftType, "LORD", member)
    PeftType._member_names_.append("LORD")
    PeftType._member_map_["LORD"] = member
    PeftType._value2member_map_["LORD"] = member
    return member


@dataclass
class LordConfig(PeftConfig):
    """Configuration of a LoRD adapter (paper, Eq. 4 and 5).

    Args:
        r: Rank of A (r, K), B and B' (N, r). At least 1.
        lord_alpha: The branches are scaled by ``lord_alpha / r`` (8 in the paper).
        target_modules: Names of the linear layers to adapt: a list matches whole names or their endings, a string is
            a regular expression over whole names (or ``"all-linear"``), as in every PEFT method.
        exclude_modules: The same syntax; what matches here is left alone.
        gate_hidden: Width H of the gate's hidden layer.
        gate_activation: ``"relu"``, ``"silu"`` or ``"gelu"``.
        gate_granularity: ``"token"``: one lambda per token, Eq. 4 read literally. ``"sample"``: the logit is averaged
            over a sample's tokens, so all of them share one lambda.
        gate_input: What the gate reads. ``"branch"``: s B u, Eq. 4. ``"down"``: u = A x. ``"input"``: the layer's x.
        gate_norm: ``"none"``, Eq. 4; ``"layer"`` or ``"rms"`` normalise the gate's input token by token, without
            trainable numbers.
        gate_timestep: The gate also knows the diffusion timestep, which is embedded and added in its hidden layer.
        gate_temperature: T in lambda = sigmoid(logit / T), positive.
        gate_init_bias: Start value of the gate's last bias; lambda starts near its sigmoid (0.5 at 0).
        init_weights: True starts with B = B' = 0: injecting LoRD changes no output bit. False draws them at random,
            for tests that need an adapter that does something.

    Raises:
        TypeError, ValueError: naming the field, what came and what was expected.
    """

    r: int = field(default=4, metadata={"help": "Rank of A, B and B'."})
    lord_alpha: float = field(default=32, metadata={"help": "The branches are scaled by lord_alpha / r."})
    target_modules: list[str] | str = field(
        default_factory=lambda: list(DEFAULT_TARGETS),
        metadata={"help": "Names (or endings) of the linear layers to adapt, or one regular expression."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names (or endings) to leave alone, or one regular expression."}
    )
    gate_hidden: int = field(default=16, metadata={"help": "Width of the gate's hidden layer."})
    gate_activation: str = field(default="silu", metadata={"help": "relu, silu or gelu."})
    gate_granularity: str = field(default="token", metadata={"help": "token or sample."})
    gate_input: str = field(default="branch", metadata={"help": "branch (s B u), down (A x) or input (x)."})
    gate_norm: str = field(default="none", metadata={"help": "none, layer or rms: of the gate's input, by token."})
    gate_timestep: bool = field(default=False, metadata={"help": "True: the gate knows the diffusion timestep."})
    gate_temperature: float = field(default=1.0, metadata={"help": "lambda = sigmoid(logit / temperature)."})
    gate_init_bias: float = field(default=0.0, metadata={"help": "Start value of the gate's last bias."})
    init_weights: bool = field(default=True, metadata={"help": "True: B = B' = 0, an exact no-op at the start."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = ensure_lord_peft_type()
        _check_count("r", self.r)
        _check_count("gate_hidden", self.gate_hidden)
        _check_number("lord_alpha", self.lord_alpha)
        _check_number("gate_init_bias", self.gate_init_bias)
        if self.lord_alpha <= 0:
            raise ValueError(f"lord_alpha must be positive, got {self.lord_alpha}")
        _check_number("gate_temperature", self.gate_temperature)
        if self.gate_temperature <= 0:
            raise ValueError(f"gate_temperature must be positive, got {self.gate_temperature}")
        for name in ("init_weights", "gate_timestep"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        _check_choice("gate_activation", self.gate_activation, ACTIVATIONS)
        _check_choice("gate_granularity", self.gate_granularity, GRANULARITIES)
        _check_choice("gate_input", self.gate_input, GATE_INPUTS)
        _check_choice("gate_norm", self.gate_norm, GATE_NORMS)
        self.target_modules = _names("target_modules", self.target_modules)
        if self.exclude_modules is not None:
            self.exclude_modules = _names("exclude_modules", self.exclude_modules)

    @property
    def scaling(self) -> float:
        """s = lord_alpha / r."""
        return self.lord_alpha / self.r

    @property
    def has_papers_gate(self) -> bool:
        """Whether the gate reads what Eq. 4 says and nothing else, which is what the fused kernels compute."""
        return (self.gate_input, self.gate_norm, self.gate_timestep) == ("branch", "none", False)

    def to_record(self) -> dict[str, Any]:
        """LoRD's own fields as plain JSON values (what ``save_lord`` stores).

        The gate's later options are left out where they are the paper's: such a file is the one that versions without
        them write, and read.
        """
        record = {name: getattr(self, name) for name in _record_fields()}
        record = {name: value for name, value in record.items() if _LATER.get(name, _ABSENT) != value}
        # PEFT may have put a set in place of a long list of names, or of "all-linear".
        return {name: sorted(value) if isinstance(value, set) else value for name, value in record.items()}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> LordConfig:
        """The inverse of :meth:`to_record`.

        Raises:
            ValueError: if the record has fields that this version does not know, or lacks some that all versions write.
        """
        expected, came = set(_record_fields()), set(record)
        unknown, missing = came - expected, expected - came - set(_LATER)
        if unknown or missing:
            raise ValueError(
                f"the stored LoRD config does not fit this version of lordfast: unknown fields "
                f"{sorted(unknown)}, missing fields {sorted(missing)}"
            )
        return cls(**record)


_LATER = {"gate_input": "branch", "gate_norm": "none", "gate_timestep": False, "gate_temperature": 1.0}
"""Fields that the first files did not have, and what they mean there: the paper's gate."""
_ABSENT = object()


def _record_fields() -> list[str]:
    inherited = {f.name for f in fields(PeftConfig)}
    return [f.name for f in fields(LordConfig) if f.name not in inherited]


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _names(name: str, value: Any) -> list[str] | str:
    """A non-empty regular expression, or a list of non-empty names; sets are sorted, so that files are stable."""
    if isinstance(value, str):
        if not value:
            raise ValueError(f"{name} must not be an empty string")
        return value
    if not isinstance(value, list | tuple | set | frozenset):
        raise TypeError(f"{name} must be a list of names or one string, got {value!r} of type {type(value).__name__}")
    names = sorted(value) if isinstance(value, set | frozenset) else list(value)
    if not names or not all(isinstance(item, str) and item for item in names):
        raise ValueError(f"{name} must hold at least one name and only non-empty strings, got {names!r}")
    return names
