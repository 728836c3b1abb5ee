"""What every group of settings is: typed and frozen. YAML in, resolved config out; an unknown key is an error."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Settings are values: frozen, closed to unknown keys, and never echoed in error texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_from_yes(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, on and true as a truth value, which would count as 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("write a number or a text in quotes, not a bare yes, no, true or false")
        return value
