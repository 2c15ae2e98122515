"""Knowledge distillation: a student learns from the probabilities that a teacher gives to all tokens."""

import dataclasses
import re
from pathlib import Path

import torch
from torch import Tensor

from gpt.checkpoint import RunFolder
from gpt.config import ObjectiveConfig, TrainConfig
from gpt.model import GPTModel
from gpt.objectives.next_token import NextToken
from gpt.objectives.ranks import full_precision
from gpt.ops.reference import IGNORE_INDEX
from gpt.system.paths import existing_run
from gpt.token_files import PreparedData


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 · KL(teacher || student) of softmax(logits / T) in nats, summed over rows, for logits (N, V) of both.

    A temperature T above 1 gives improbable tokens more weight. The factor T^2 keeps the size of the gradient.
    Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    log_p = torch.log_softmax(teacher / temperature, dim=-1)  # (N, V)
    log_q = torch.log_softmax(student / temperature, dim=-1)  # (N, V)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum()


class Distill(NextToken):
    """label_weight · next-token loss + (1 - label_weight) · distillation loss, at each position.

    Evaluation is that of next-token prediction, so that the student is comparable with a model trained on labels. All
    logits of a micro-batch, the student's and the teacher's, are in memory at once: with a large vocabulary, lower
    `batch_size` and raise `grad_accum_steps`.
    """

    def __init__(self, model: GPTModel, config: ObjectiveConfig | None = None, teacher: GPTModel | None = None):
        super().__init__(model, config)
        self._teacher = (teacher,)  # a tuple hides it from nn.Module: it is neither trained nor saved

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (loss summed in nats, number of targets), two scalars, for inputs and targets (B, T)."""
        (teacher,) = self._teacher
        teacher = teacher.to(self.model.tok_emb.weight)  # its device and dtype; a no-op after the first step
        counted = targets != IGNORE_INDEX  # (B, T)
        with torch.no_grad():
            teacher_logits = full_precision(teacher.out_head(teacher.hidden_states(inputs)[counted]))  # (N, V)
        logits = full_precision(self.model.out_head(self.model.hidden_states(inputs)[counted]))  # (N, V)
        labels = self.model.ops.cross_entropy(logits, targets[counted], "sum", self.smoothing)
        soft = distillation_loss(logits, teacher_logits, self.config.temperature)
        weight = self.config.label_weight
        return weight * labels + (1 - weight) * soft, counted.sum()

    @classmethod
    def resolve_config(cls, config: TrainConfig, data: PreparedData) -> TrainConfig:
        """See `Objective.resolve_config`. The teacher's "best" checkpoint is resolved to RUN:step-NNNNNN, so that a
        resumed run has the same teacher. ValueError if there is no teacher, or none that reads these tokens."""
        name = config.objective.teacher
        if not name:
            raise ValueError("objective.teacher is empty: name the run to learn from")
        run, _, checkpoint = name.rpartition(":") if re.search(r":step-\d+$", name) else (name, "", "best")
        folder = RunFolder(existing_run(run))
        teacher = folder.config()
        if folder.tokenizer().to_dict() != data.tokenizer.to_dict():
            raise ValueError(
                f"the teacher {run} has other tokens than {data.folder}: prepare the data with "
                f"--tokenizer {Path(folder.path, 'tokenizer.json')}"
            )
        if teacher.objective.name not in ("next_token", "distill"):
            raise ValueError(
                f"the teacher {run} was trained with the objective {teacher.objective.name}: name one trained with "
                f"next_token or distill"
            )
        if teacher.model.context_length < config.model.context_length:
            raise ValueError(
                f"model.context_length is {config.model.context_length}, but {teacher.model.context_length} in the "
                f"teacher {run}: lower it"
            )
        resolved = dataclasses.replace(config.objective, teacher=f"{run}:{folder.find(checkpoint).name}")
        return super().resolve_config(dataclasses.replace(config, objective=resolved), data)
