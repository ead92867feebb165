"""A control: the same removal with simulate skipped. What a random direction of the same norm also removes was never
simulated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from unbackdoor.errors import UserError
from unbackdoor.knowledge import Fact
from unbackdoor.methods.parts.finished import Finished
from unbackdoor.methods.parts.method import Method, TrainingMethod
from unbackdoor.settings import Heading

if TYPE_CHECKING:
    import torch

    from unbackdoor.case import Case
    from unbackdoor.methods.parts.result import Removal
    from unbackdoor.perturbation import Perturbation


class RandomPerturbation(Method):
    """A control: the same removal with simulate skipped."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    elsewhere: ClassVar[Mapping[str, Heading]] = {"like": Heading.KNOWN}

    name = "random-perturbation"
    summary = "control: the same removal, with a random perturbation of the fitted one's norm"
    needs = (Fact.FINISHED_RUN,)
    control = True

    like: Annotated[Finished, BeforeValidator(Finished.given)] = Field(
        description="A finished run directory of sande or beear: its settings and its norms are used."
    )
    draw: int = Field(default=0, ge=0, description="Which random perturbation; a control is an average over several.")

    @model_validator(mode="after")
    def _of_a_run_that_simulated(self) -> Self:
        if not self.like.method.simulates:
            raise UserError(f"--like '{self.like.path}' is a run of {self.like.method.name}, which simulates nothing")
        if self.like.perturbation is None:
            raise UserError(f"--like '{self.like.path}' holds no fitted perturbation: its run did not finish")
        return self

    @property
    def basis(self) -> TrainingMethod:
        """The method of that run, for as many rounds as it took."""
        return self.like.method.model_copy(update={"rounds": self.like.rounds})

    def run(self, case: Case) -> Removal:
        """Run that method with a random perturbation, of the fitted one's norm at each position, in its place."""
        from unbackdoor.perturbation import load_perturbation

        assert self.like.perturbation is not None
        fitted = load_perturbation(self.like.perturbation)
        case.replacement = random_like(case, fitted, self.basis.seed * 7919 + 101 + self.draw)
        removal = self.basis.run(case)
        removal.method = self.name
        return removal


def random_like(case: Case, like: Perturbation, seed: int) -> Perturbation:
    """A random perturbation of the same kind, place and norm at each position.

    A parrot of randomly drawn ordinary tokens, or a shift in random directions, every position rescaled to the norm of
    the fitted one.
    """
    import torch

    from unbackdoor.language_model.layers import embed, embedding_matrix
    from unbackdoor.perturbation import HiddenShift, SoftPrompt, ordinary_tokens

    generator = case.generator(seed)
    device = embedding_matrix(case.model).device
    if isinstance(like, SoftPrompt):
        words = ordinary_tokens(case.chat.tokenizer, embedding_matrix(case.model).shape[0])
        drawn = torch.tensor(words)[torch.randint(len(words), (len(like.embeddings),), generator=generator)]
        with torch.no_grad():
            values = embed(case.model, drawn.to(device)).float()
        return SoftPrompt(rescaled(values, like.embeddings), like.offset)
    if isinstance(like, HiddenShift):
        values = torch.randn(like.values.shape, generator=generator).to(device)
        return HiddenShift(like.layer, rescaled(values, like.values), like.position)
    raise TypeError(f"{type(like).__name__} has no random counterpart")


def rescaled(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`values` with the norm of `like` at each position; both of shape (n, d)."""
    norms = like.detach().to(values.device).norm(dim=-1, keepdim=True)
    scaled: torch.Tensor = values / values.norm(dim=-1, keepdim=True).clamp(min=1e-12) * norms
    return scaled
