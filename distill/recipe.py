"""The distill stage's recipe."""

from __future__ import annotations

from pydantic import Field, field_validator

from distill.teacher.renderer import RENDERED_FAMILIES
from eval.judge.shared import JudgeRecipe, judge_faults
from recipes.schema import InputPath, KeyFault, StageRecipe, StrictModel


class TeacherRecipe(StrictModel):
    mistake_share: float = Field(
        default=0.15, ge=0, le=1, description="share of traces with a mistake that is found and mended, 0 to 1"
    )
    check_share: float = Field(
        default=1.0, ge=0.0, le=1.0, description="share of traces that end with a verification of the result"
    )


class Recipe(StageRecipe):
    """What to distil: how many problems of which families, and how the teacher writes."""

    families: dict[str, int] = Field(
        min_length=1,
        description=f"problems per family, of the training split; families: {', '.join(RENDERED_FAMILIES)}",
    )
    start: int = Field(
        default=0, ge=0, description="index of each family's first problem; a second data set starts after the first"
    )
    teacher: TeacherRecipe = Field(default_factory=TeacherRecipe, description="how traces are written")
    judge: JudgeRecipe = Field(default=JudgeRecipe(), description="how programs are judged")
    tokenizer: InputPath | None = Field(
        default=None, description="a tokenizer's folder, to report lengths in tokens; null reports characters only"
    )
    chunk: int = Field(default=512, ge=1, description="problems between two writes to disk")

    @field_validator("families")
    @classmethod
    def _are_known(cls, families: dict[str, int]) -> dict[str, int]:
        for name, count in families.items():
            if name not in RENDERED_FAMILIES:
                raise ValueError(f"no trace renderer for the family {name!r}")
            if count < 0:
                raise ValueError(f"{name}: a count of problems is 0 or more, not {count}")
        if not sum(families.values()):
            raise ValueError("no problems: every family's count is 0")
        return families

    def machine_faults(self) -> list[KeyFault]:
        return judge_faults(self.judge, needed="code" in self.families)
