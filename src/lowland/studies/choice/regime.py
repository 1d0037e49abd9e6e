"""Whether a run of the choice study could show its claim at all, in its own sentences.

The claim is that SWAG mends what training made too sure. So training must have made it sure, and the draws must differ.
"""

from __future__ import annotations

from dataclasses import dataclass

POINT = 0.01  # nats of mutual information below which draws are one model
SURE = 1.1  # a temperature up to which a model is not overconfident
BEFORE = 1.2  # a temperature of the untrained model from which it was overconfident already
GREW = 1.25  # by which factor training must have raised it to have a part in it


@dataclass(frozen=True)
class Regime:
    """What the sentences are made of: means over members; temperatures are those that validation questions want."""

    train_accuracy: float
    untrained: float  # temperature
    trained: float  # temperature of the base model
    mutual_information: float  # nats, of SWAG's draws on test questions

    def says(self) -> list[str]:
        """Return what stands in the way of the claim, or that nothing does.

        >>> Regime(0.99, 1.0, 2.2, 0.03).says()
        ['The claim can be asked here: the base model has a training accuracy of 0.99 and wants a temperature of 2.20,
        the untrained one 1.00, and the draws of SWAG disagree (mutual information 0.030 nats).']
        >>> print(*Regime(0.45, 1.5, 1.6, 0.001).says(), sep=chr(10))
        The posterior is a point: SWAG's draws have a mutual information of 0.0010 nats, below 0.01; no average over
        them can mend confidence.
        The overconfidence was there before training: the untrained model wants a temperature of 1.50, the base model
        1.60.
        """
        found = []
        if self.mutual_information < POINT:
            found.append(
                f"The posterior is a point: SWAG's draws have a mutual information of {self.mutual_information:.4f} "
                f"nats, below {POINT:g}; no average over them can mend confidence."
            )
        if self.trained <= SURE:
            found.append(
                f"The base model is not overconfident (it wants a temperature of {self.trained:.2f}): there is nothing "
                "that an average over weights could mend."
            )
        elif self.untrained >= BEFORE and self.trained < GREW * self.untrained:
            found.append(
                f"The overconfidence was there before training: the untrained model wants a temperature of "
                f"{self.untrained:.2f}, the base model {self.trained:.2f}."
            )
        return found or [
            f"The claim can be asked here: the base model has a training accuracy of {self.train_accuracy:.2f} and "
            f"wants a temperature of {self.trained:.2f}, the untrained one {self.untrained:.2f}, and the draws of SWAG "
            f"disagree (mutual information {self.mutual_information:.3f} nats)."
        ]
