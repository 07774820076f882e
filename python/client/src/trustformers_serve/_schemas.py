"""Schemas of items: what a mapping is made into before it is queued."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from trustformers_serve.errors import DecorationError, InputTypeError, ValidationError

if TYPE_CHECKING:
    import pydantic

WRAPPER = "data"
"""The field of a request's body that has the item."""


class Schema:
    """A pydantic model that each item of a function must be.

    Attributes:
        type: The model.
    """

    def __init__(self, model: Any, function: str) -> None:
        """Of the function that messages name so.

        Raises:
            DecorationError: `model` is no class of a pydantic model.
        """
        import pydantic

        if not (isinstance(model, type) and issubclass(model, pydantic.BaseModel)):
            raise DecorationError(f"the input_schema of {function} must be a pydantic model, not {model!r}")
        self.type: type[pydantic.BaseModel] = model
        self._function = function

    def read(self, item: Any) -> pydantic.BaseModel:
        """The instance that `item` is, or that its fields make.

        A mapping may be the body of a request, whose item is its field `data`: that is tried first, and
        then the whole.

        Raises:
            ValidationError: The fields do not fit; the message names them.
            InputTypeError: It is neither a mapping nor an instance.
        """
        import pydantic

        from trustformers_serve.annotations import in_words

        if isinstance(item, self.type):
            return item
        if not isinstance(item, Mapping):
            raise InputTypeError(
                f"{self._function} takes a {self.type.__name__} or a mapping of its fields, "
                f"not {type(item).__name__}"
            )
        body = dict(cast("Mapping[str, Any]", item))
        candidates: list[Any] = [body[WRAPPER], body] if WRAPPER in body else [body]
        errors: list[pydantic.ValidationError] = []
        for candidate in candidates:
            try:
                return self.type.model_validate(candidate)
            except pydantic.ValidationError as error:
                errors.append(error)
        # Of a body that is wrapped, what is inside is what was meant, unless the schema has such a field.
        error = errors[-1 if WRAPPER in self.type.model_fields else 0]
        raise ValidationError(f"{self._function}: {in_words(error)}") from error
