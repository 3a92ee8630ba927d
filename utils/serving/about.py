"""What the page says of the model that it serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from config import BloomConfig, costs

MANY = "46 languages and 13 programming languages"
LANGUAGES = {"bloom_tiny": "English", "bloomz": MANY, "bloom-": MANY}
"""What a model was trained on, by how its name begins."""


@dataclass(frozen=True)
class About:
    """A model's name and precision, and its number of parameters, 0 where it is not known."""

    name: str = "BLOOM"
    precision: str = ""
    parameters: int = 0

    @classmethod
    def of(cls, config: BloomConfig) -> About:
        model = config.model
        return cls(PurePath(model.hf_model).name, model.precisions, costs.parameters(model))

    @property
    def languages(self) -> str:
        """'' where they are not known."""
        name = self.name.lower()
        return next((text for begin, text in LANGUAGES.items() if name.startswith(begin)), "")

    @property
    def follows_instructions(self) -> bool:
        return self.name.lower().startswith("bloomz")

    @property
    def size(self) -> str:
        """`560 million parameters, float16`; '' where nothing is known."""
        unit = "million" if self.parameters < 1e9 else "billion"
        count = self.parameters / (1e6 if unit == "million" else 1e9)
        parts = [f"{count:.3g} {unit} parameters"] if self.parameters else []
        return ", ".join([*parts, *filter(None, [self.precision])])
