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
        then the whole, if it has a field of the schema's.

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
        candidates: list[Any] = [body]
        if WRAPPER in body:
            candidates = [body[WRAPPER], body] if self._has_field(body) else [body[WRAPPER]]
        errors: list[pydantic.ValidationError] = []
        for candidate in candidates:
            try:
                return self.type.model_validate(candidate)
            except pydantic.ValidationError as error:
                errors.append(error)
        # The whole was meant where it alone has fields of the schema's.
        error = errors[0 if self._has_field(candidates[0]) else -1]
        raise ValidationError(f"{self._function}: {in_words(error)}") from error

    def _has_field(self, candidate: Any) -> bool:
        """Whether the schema reads a field of the candidate; one of a single value reads whatever it is."""
        if self.type.__pydantic_root_model__:
            return True
        if not isinstance(candidate, Mapping):
            return False
        return not _names(self.type).isdisjoint(cast("Mapping[Any, Any]", candidate))


def _names(model: type[pydantic.BaseModel]) -> set[Any]:
    """The names by which a mapping gives the model its fields."""
    import pydantic

    config = model.model_config
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    by_alias = config.get("validate_by_alias", True)
    names: set[Any] = set()
    for name, field in model.model_fields.items():
        alias = field.validation_alias
        if alias is None or by_name:
            names.add(name)
        if by_alias:
            choices = alias.choices if isinstance(alias, pydantic.AliasChoices) else [alias]
            names.update(
                choice.path[0] if isinstance(choice, pydantic.AliasPath) else choice for choice in choices
            )
    return names - {None}
