"""What all parts of the job spec share: the frozen base class, number types that refuse booleans, and ways to say no.

A validator says no with `want` (this value), `refuse` (these values together) or `want_hidden` (a value that may be a
secret). spec_io.py turns all three into a message with file, line and key path.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

SECRET_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_AWS_KEY_ID = re.compile(r"A[KS]IA[A-Z0-9]{16}")  # a value that looks like a name


class SpecPart(BaseModel):
    """Base of every part of a job: frozen, unknown keys refused, values never echoed by pydantic's own messages."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )


def refuse(key: str, predicate: str) -> NoReturn:
    """Refuse a combination of values from inside a validator.

    Args:
        key: the key to point at, relative to the model being validated, dots allowed ("train.max_length").
        predicate: what follows the key's name in the message: what was found, what would be right, what to do.
    """
    raise PydanticCustomError("refused", "{message}", {"message": predicate, "key": key})


def want(what: str) -> NoReturn:
    """Refuse one value from inside its own validator; the message names the value found, then `what` is wanted."""
    raise PydanticCustomError("wanted", "{message}", {"message": what})


def want_hidden(what: str) -> NoReturn:
    """Like `want`, for a value that may be a secret: the message does not repeat it."""
    raise PydanticCustomError("wanted_hidden", "{message}", {"message": what})


def _number(value: Any) -> Any:
    """Refuse booleans, which pydantic would take as 1 and 0."""
    if isinstance(value, bool):
        want("a number is wanted")
    return value


def one_or_more(value: Any) -> Any:
    """Accept a single name where a list of names is wanted (`infra: local`)."""
    return (value,) if isinstance(value, str) else value


def check_secret_name(value: str) -> str:
    """Return the name of an environment variable; anything else may be the secret itself and is never repeated."""
    if not SECRET_NAME.fullmatch(value) or _AWS_KEY_ID.fullmatch(value):
        want_hidden(
            "the NAME of an environment variable is wanted, in capitals, such as OPENAI_API_KEY. What stands there is "
            "not repeated here, in case it is the secret itself. Keep the value in your environment, never in a file"
        )
    return value


Whole = Annotated[int, BeforeValidator(_number)]
# The bounds stand before the validator: behind it they would hold, but be missing from the JSON schema.
PositiveWhole = Annotated[int, Field(ge=1), BeforeValidator(_number)]
TwoOrMore = Annotated[int, Field(ge=2), BeforeValidator(_number)]
Count = Annotated[int, Field(ge=0), BeforeValidator(_number)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(_number)]
NotNegative = Annotated[float, Field(ge=0), BeforeValidator(_number)]
Fraction = Annotated[float, Field(ge=0, le=1), BeforeValidator(_number)]
PositiveFraction = Annotated[float, Field(gt=0, le=1), BeforeValidator(_number)]
BelowOne = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)]
SecretName = Annotated[str, AfterValidator(check_secret_name)]
