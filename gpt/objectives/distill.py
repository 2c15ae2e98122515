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
from gpt.ops.reference import IGNORE_INDEX
from gpt.system.paths import existing_run
from gpt.token_files import PreparedData


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 · KL(teacher || student) in nats, summed over rows, of softmax(logits / T), for logits (N, V) of both.

    At a temperature T above 1 improbable tokens count for more; their gradient falls with 1/T^2, hence the factor.
    Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    log_p = torch.log_softmax(teacher / temperature, dim=-1)  # (N, V)
    log_q = torch.log_softmax(student / temperature, dim=-1)  # (N, V)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum()


class Distill(NextToken):
    """label_weight · next-token loss + (1 - label_weight) · distillation loss, at each position.

    Evaluated as next-token prediction, so that the student compares with one that has learnt from labels alone. The
    logits of a whole micro-batch, the student's and the teacher's, are held at once: a large vocabulary wants a small
    batch_size and more of `grad_accum_steps`.
    """

    def __init__(self, model: GPTModel, config: ObjectiveConfig | None = None, teacher: GPTModel | None = None):
        super().__init__(model, config)
        self._teacher = (teacher,)  # in a tuple: it is neither trained nor saved with this module

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(loss summed in nats, targets counted), two scalars, for inputs and targets (B, T)."""
        (teacher,) = self._teacher
        teacher = teacher.to(self.model.tok_emb.weight)  # the student's device and dtype; a no-op after the first step
        counted = targets != IGNORE_INDEX  # (B, T)
        dtype = self.model.tok_emb.weight.dtype  # that dtype under autocast too
        with torch.no_grad():
            expected = teacher.out_head(teacher.hidden_states(inputs)[counted]).to(dtype)  # (N, V)
        logits = self.model.out_head(self.model.hidden_states(inputs)[counted]).to(dtype)  # (N, V)
        labels = self.model.ops.cross_entropy(logits, targets[counted], "sum", self.smoothing)
        soft = distillation_loss(logits, expected, self.config.temperature)
        weight = self.config.label_weight
        return weight * labels + (1 - weight) * soft, counted.sum()

    @classmethod
    def resolve_config(cls, config: TrainConfig, data: PreparedData) -> TrainConfig:
        """See `Objective.resolve_config`; the teacher's best checkpoint is named for good, as RUN:step-NNNNNN, so that a resumed
        run learns from the same one. ValueError where there is no teacher, or none that reads these tokens."""
        name = config.objective.teacher
        if not name:
            raise ValueError("objective.teacher is empty: name the run whose model is to be learnt from")
        run, _, step = name.rpartition(":") if re.search(r":step-\d+$", name) else (name, "", "best")
        folder = RunFolder(existing_run(run))
        teacher = folder.config()
        if folder.tokenizer().to_dict() != data.tokenizer.to_dict():
            raise ValueError(
                f"the teacher {run} has other tokens than {data.folder}: prepare the data with "
                f"--tokenizer {Path(folder.path, 'tokenizer.json')}"
            )
        if teacher.objective.name not in ("next_token", "distill"):
            raise ValueError(
                f"the teacher {run} predicts no next token: its objective is {teacher.objective.name}, and a student "
                f"learns from one of next_token or distill"
            )
        if teacher.model.context_length < config.model.context_length:
            raise ValueError(
                f"model.context_length is {config.model.context_length}, more than the {teacher.model.context_length} "
                f"of the teacher {run}"
            )
        named = dataclasses.replace(config.objective, teacher=f"{run}:{folder.find(step).name}")
        return super().resolve_config(dataclasses.replace(config, objective=named), data)
