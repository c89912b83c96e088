"""What all parts of the job spec share: the frozen base class, number types that refuse YAML's booleans, and refusals.

A cross-field check calls `refuse(key, text)`; spec_io.py turns that into a message with file, line and key path.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

SECRET_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+]?\d+")


class SpecPart(BaseModel):
    """Base of every part of a job: frozen, unknown keys refused, values never echoed by pydantic's own messages."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )


def refuse(key: str, message: str) -> NoReturn:
    """Refuse a combination of values from inside a validator.

    Args:
        key: the key to point at, relative to the model being validated, dots allowed ("train.max_length").
        message: complete sentences: what was found, what would be right, what to do.
    """
    raise PydanticCustomError("refused", "{message}", {"message": message, "key": key})


def _number(value: Any) -> Any:
    """Refuse booleans (YAML reads yes, no, on, off as such; pydantic would take them as 1 and 0)."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_wanted", "a number is wanted, not true or false")
    return value


def _whole(value: Any) -> Any:
    """Like `_number`; also accept 1e3, which YAML 1.1 leaves a string."""
    value = _number(value)
    if isinstance(value, str) and _EXPONENT.fullmatch(value.strip()):
        return float(value)
    return value


def one_or_more(value: Any) -> Any:
    """Accept a single name where a list of names is wanted (`infra: local`)."""
    return (value,) if isinstance(value, str) else value


def check_secret_name(value: str) -> str:
    """Return the name of an environment variable; anything else may be the secret itself and is never repeated."""
    if not SECRET_NAME.fullmatch(value):
        raise PydanticCustomError(
            "secret_name",
            "the NAME of an environment variable is wanted, in capitals, such as OPENAI_API_KEY. What stands there is "
            "not repeated here, in case it is the secret itself. Put the value into your environment, never a file",
        )
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number)]
PositiveWhole = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0)]
NotNegative = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Fraction = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
SecretName = Annotated[str, AfterValidator(check_secret_name)]
