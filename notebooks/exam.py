"""The final examination: thirty questions over the sixteen notebooks, from the arithmetic of a loss to sick curves.

    python notebooks/exam.py                 # all of them, one after another, with a score
    python notebooks/exam.py 7 12            # these
    python notebooks/exam.py --language zh   # in Chinese

In a notebook: `from exam import ask`, then `ask(7)` shows a question and `check("exam.07", 0.25)` checks an answer.
"""

import argparse
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import exp, log, sqrt

from exercises import check, choice, exercise, number
from language import current, say, translate


@dataclass(frozen=True)
class Question:
    """A question with its answer, a number or the letter of an option, and why that is the answer."""

    notebook: int  # that teaches it
    text: str
    right: float | str
    wrong: Sequence[tuple[float, str]] | Mapping[str, str]  # known mistakes with their hints; wrong letters with theirs
    because: str
    tolerance: float = 0.01  # relative

    def check(self, answer: float | str) -> str:
        """Return the explanation. Wrong, with a hint, unless the answer is right."""
        if isinstance(self.right, str):
            choice(answer, self.right, self.wrong)
        else:
            number(answer, self.right, self.wrong, tolerance=self.tolerance)
        return self.because


QUESTIONS = [
    Question(
        1,
        "A source writes a, b, c and d with the probabilities 1/2, 1/4, 1/8 and 1/8. What is its entropy, in bits?",
        1.75,
        [
            (2, "That would be the entropy of four equally likely letters."),
            (2.25, "That is the plain mean of the four surprises. Often the source writes a: weight each surprise."),
            (1.75 * log(2), "That is in nats."),
        ],
        "The surprises are 1, 2, 3 and 3 bits; each counts as often as its letter comes: "
        "1/2 · 1 + 1/4 · 2 + 1/8 · 3 + 1/8 · 3 = 1.75 bits.",
    ),
    Question(
        1,
        "A model predicts the source of question 1, but takes the four letters for equally likely. How many bits per "
        "letter is its cross-entropy above the entropy?",
        0.25,
        [
            (2, "That is the cross-entropy itself."),
            (1.75, "That is the entropy of the source."),
            (-0.25, "No model beats the entropy of its source."),
            (0.25 * log(2), "That is in nats."),
        ],
        "The model needs log2(4) = 2 bits for every letter, the source has 1.75: the difference, 0.25, is the KL "
        "divergence, the price of a wrong model.",
    ),
    Question(
        2,
        "A text of 1,000 bytes is 250 tokens long. A model has a loss of 2.0 nats per token on it. How many bits per "
        "byte are that?",
        2 / log(2) * 250 / 1000,
        [
            (2 / log(2), "These are bits per token. How many tokens does a byte have?"),
            (2 * 250 / 1000, "These are nats per byte."),
            (2 / log(2) * 4, "Is there more information in a token of four bytes, or in a single byte?"),
            (2 * log(2) / 4, "A bit is the smaller unit: there are more bits than nats."),
        ],
        "2.0 nats are 2.0 / ln 2 = 2.885 bits per token, and a token has 4 bytes: 0.721 bits per byte.",
    ),
    Question(
        2,
        "On the same text, model A has a loss of 3.2 nats per token, model B one of 2.9. Their tokenizers differ. "
        "Which model predicts the text better?\n\n"
        "    a  model A\n    b  model B\n    c  that depends on the number of tokens that each makes of the text",
        "c",
        {
            "a": "A higher loss per token is not better by itself.",
            "b": "Lower per token, but per whose token? Think of a tokenizer that knows bytes only.",
        },
        "A loss per token can be lowered by cutting the text into more tokens, each easier to guess. Compare bits per "
        "byte: the bytes of the text are the same for both.",
    ),
    Question(
        3,
        "Data for training are cut from a text of 1,025 tokens, with a context length of 256 and no overlap: every "
        "token but the first is a target once. How many examples are there?",
        4,
        [
            (3, "An example needs 257 tokens, but two neighbours share one: the last target, the next first input."),
            (5, "How many tokens are targets?"),
            (1025 / 256, "Count whole examples; the first token is no target."),
            (1025 / 257, "Count whole examples; neighbours share a token."),
            (769, "That is one example for each starting point: they overlap."),
            (768, "That is one example for each starting point: they overlap."),
        ],
        "1,024 tokens are targets, 256 in each example: 4. An example has 257 tokens, but its last target is the first "
        "input of the next one.",
        1e-6,
    ),
    Question(
        4,
        "A model with embeddings of 768 numbers has 12 heads. By what are the dot products of queries and keys "
        "divided?",
        8,
        [
            (64, "That is the number of dimensions of a head. Its dot products do not grow so fast."),
            (sqrt(768), "A dot product is taken within one head."),
            (768, "A dot product is taken within one head, and grows more slowly than its dimensions."),
            (12, "The number of heads does not change the size of a dot product."),
            (sqrt(12), "The number of heads does not change the size of a dot product."),
        ],
        "A head has 768 / 12 = 64 dimensions. A sum of 64 products of independent numbers of variance 1 has the "
        "variance 64: divided by √64 = 8, it has 1 again.",
    ),
    Question(
        4,
        "Someone writes causal attention that sets the scores of later tokens to 0 and then takes the softmax. What "
        "happens?\n\n"
        "    a  nothing: it is right\n"
        "    b  every token also attends to the tokens after it\n"
        "    c  the weights of a row no longer sum to 1",
        "b",
        {
            "a": "What is the softmax of a score of 0?",
            "c": "A softmax sums to 1, whatever goes in.",
        },
        "exp(0) = 1, not 0: a masked score must be minus infinity. The training loss then looks wonderful, for the "
        "model sees its targets, and the text that it generates is nonsense.",
    ),
    Question(
        5,
        "How many parameters has the feed-forward layer of one block of GPT-2 small: 768 numbers in, four times as "
        "many in the middle, 768 out, with biases?",
        2 * 768 * 3072 + 3072 + 768,
        [
            (2 * 768 * 3072, "Both layers have biases."),
            (768 * 3072 + 3072, "There are two layers: up and down."),
            (768 * 3072, "There are two layers, both with biases."),
            (2 * 768 * 3072 + 2 * 3072, "A bias has one number for each output: the two layers differ."),
            (2 * 768 * 3072 + 2 * 768, "A bias has one number for each output: the two layers differ."),
            (12 * (2 * 768 * 3072 + 3072 + 768), "That is for all twelve blocks."),
        ],
        "768 · 3,072 weights and 3,072 biases up, 3,072 · 768 weights and 768 biases down: 4,722,432.",
        1e-6,
    ),
    Question(
        6,
        "A GPT with a vocabulary of 50,257 tokens has just been initialised. What loss do you expect for its first "
        "batch, in nats per token?",
        log(50257),
        [
            (log(50257) / log(2), "That is in bits."),
            (50257, "That is its perplexity."),
            (log(50257) / log(10), "Use the natural logarithm."),
            (0, "It knows nothing yet."),
        ],
        "It takes all tokens for about equally likely: -ln(1/50,257) = 10.82. A first loss far above it means a bad "
        "initialisation, one far below it a leak of the targets.",
    ),
    Question(
        6,
        "A model gives three tokens of a text, one after another, the probabilities 1/2, 1/4 and 1/8. What is its "
        "perplexity on them?",
        4,
        [
            (14 / 3, "That is the mean of 2, 4 and 8. A perplexity is no arithmetic mean."),
            (24 / 7, "That is one over the mean probability. Average the surprises instead."),
            (2, "That is the mean surprise in bits."),
            (2 * log(2), "That is the loss in nats."),
            (64, "That is the perplexity of the three together: take it per token."),
        ],
        "The surprises are 1, 2 and 3 bits, on average 2: a perplexity of 2² = 4, the geometric mean of 2, 4 and 8.",
    ),
    Question(
        6,
        "For three tokens a model computes the probabilities 0.7, 0.2 and 0.1. The target is the second. What is the "
        "derivative of the loss with respect to the second logit?",
        -0.8,
        [
            (0.8, "Check the sign: will the loss rise or fall if the logit of the target rises?"),
            (0.2, "For the other tokens it is their probability. What is different for the target?"),
            (-5, "That is the derivative with respect to the probability, not the logit."),
            (-0.2, "Probability minus what?"),
        ],
        "Softmax minus one-hot: 0.2 - 1 = -0.8. For the other two it is 0.7 and 0.1; the three sum to 0.",
    ),
    Question(
        6,
        "The first batch of a validation text has 10 targets and a mean loss of 4.0; the second, 30 targets and a mean "
        "loss of 2.0. What is the loss of the text?",
        2.5,
        [
            (3, "That is the mean of the batches. Do their tokens count equally?"),
            (3.5, "The larger batch has the larger weight."),
            (100, "That is the sum over the tokens."),
            (6, "That is the sum of two means."),
        ],
        "(10 · 4.0 + 30 · 2.0) / 40 = 2.5: each token counts once, whatever batch it is in.",
    ),
    Question(
        7,
        "These are the losses of a run. The checkpoint of which step would you keep?\n\n"
        "    step      0    200    400    600    800   1000\n"
        "    train  6.93   2.31   1.42   0.88   0.47   0.21\n"
        "    val    6.93   2.40   1.83   1.97   2.38   2.95",
        400,
        [
            (1000, "On text that it has learned by heart that model is the best one. And on other text?"),
            (200, "The two losses are closest there, but that is not what counts."),
            (0, "It has learned nothing yet."),
            (600, "Look at the loss on text that the model has not seen."),
            (800, "Look at the loss on text that the model has not seen."),
        ],
        "Step 400 has the lowest validation loss, 1.83. After it the model memorises: the training loss goes on "
        "falling, the validation loss rises. More text, dropout or a smaller model would help.",
        1e-6,
    ),
    Question(
        7,
        "A run of 2,000 steps with a learning rate of 6e-4 looks like this. What is wrong?\n\n"
        "    step       0     500    1000    1500    2000\n"
        "    train  10.82   10.71   10.54   10.31   10.03\n"
        "    val    10.83   10.72   10.55   10.32   10.04\n"
        "    rate    3e-8  1.5e-5  3.0e-5  4.5e-5  6.0e-5\n\n"
        "    a  it memorises its text\n"
        "    b  the warm-up is longer than the run\n"
        "    c  the text is noise\n"
        "    d  the model is too small",
        "b",
        {
            "a": "Then the two losses would part.",
            "c": "Then the loss would stop falling near where it began. Look at all four rows.",
            "d": "A small model levels off at a loss of its own. This one falls faster and faster. Why only now?",
        },
        "The rate still rises at the last step, to a tenth of 6e-4: it was to rise for 20,000 steps. Loss and rate "
        "belong side by side.",
    ),
    Question(
        8,
        "A model gives two tokens the logits 2 and 1. How many times as likely as the second is the first, at a "
        "temperature of 0.5?",
        exp(2),
        [
            (exp(0.5), "A temperature divides the logits."),
            (exp(1), "That is at temperature 1."),
            (2, "Logits are logarithms: a difference of logits is a ratio of probabilities."),
            (4, "Logits are logarithms: a difference of logits is a ratio of probabilities."),
            (exp(-2), "That is the second compared with the first."),
            (exp(2) / (1 + exp(2)), "That is the probability of the first. Compare it with that of the second."),
        ],
        "Divided by 0.5, the logits are 4 and 2; the ratio is e^(4 - 2) = 7.39. At temperature 1 it is 2.72: a low "
        "temperature sharpens.",
    ),
    Question(
        8,
        "Four tokens have the probabilities 0.5, 0.3, 0.15 and 0.05. How many of them can top-p sampling with p = 0.7 "
        "draw?",
        2,
        [
            (1, "0.5 alone is less than 0.7."),
            (3, "It takes no more tokens than it needs to reach 0.7."),
            (4, "The least likely ones are dropped."),
        ],
        "The smallest set of the most likely tokens that reaches 0.7: 0.5 + 0.3 = 0.8, so two. They are then drawn "
        "with 0.5/0.8 and 0.3/0.8.",
        1e-6,
    ),
    Question(
        9,
        "A text reads: ... A B ... A. What does an induction head do at the last A?\n\n"
        "    a  it attends to the first A, and makes the model predict A\n"
        "    b  it attends to the first token of the text, and does nothing\n"
        "    c  it attends to the B, and makes the model predict B",
        "c",
        {
            "a": "Then the model would stutter: A A A.",
            "b": "Such heads exist: they are sinks, which rest.",
        },
        "It looks for the token that came after an earlier A and copies it. That takes two layers: a head of an "
        "earlier layer tells B what came before it.",
    ),
    Question(
        10,
        "LoRA with rank 8 adapts one matrix of 768 x 768. How many parameters does it train?",
        2 * 8 * 768,
        [
            (768 * 768, "That is the matrix itself, which stays frozen."),
            (8 * 768, "A product of two matrices replaces its change."),
            (8 * 8, "Both matrices have one side of 768."),
            (768 * 768 + 2 * 8 * 768, "The matrix itself stays frozen."),
            (8 * 768 * 768, "The rank makes it smaller, not larger."),
        ],
        "The change is B·A, with A of 8 x 768 and B of 768 x 8: 12,288 parameters, 2% of the matrix's 589,824.",
        1e-6,
    ),
    Question(
        11,
        "GPT-2's published weights have the matrices of its layers transposed. Someone forgets to turn them. Which "
        "tensor is then loaded without any error?\n\n"
        "    a  attn.c_attn, 768 x 2304\n"
        "    b  attn.c_proj, 768 x 768\n"
        "    c  mlp.c_fc, 768 x 3072\n"
        "    d  mlp.c_proj, 3072 x 768",
        "b",
        {
            "a": "Its shape would not fit.",
            "c": "Its shape would not fit.",
            "d": "Its shape would not fit.",
        },
        "A square matrix fits both ways. No error tells it, only the loss does: that is why loading is checked against "
        "a published figure, not by shapes.",
    ),
    Question(
        12,
        "A model of 124 million parameters is trained on a billion tokens. About how many floating-point operations "
        "does that take? Leave out attention's own.",
        6 * 124e6 * 1e9,
        [
            (2 * 124e6 * 1e9, "That is the forward pass alone."),
            (4 * 124e6 * 1e9, "That is the backward pass alone."),
            (3 * 124e6 * 1e9, "Each weight takes a multiplication and an addition."),
            (124e6 * 1e9, "Each weight takes more than one operation per token."),
            (6 * 124e6, "That is for one token."),
        ],
        "2 per weight and token forward, 4 backward: 6 · 124e6 · 1e9 = 7.4e17. At 40% of an H100's 989e12 a second "
        "that is half an hour.",
        0.02,
    ),
    Question(
        13,
        "The numbers 3, 4, 0 and 0 pass an RMSNorm with a weight of 1 and a tiny epsilon. What is the first output?",
        1.2,
        [
            (3 / 5, "You divide by the length. It is the root of the mean square."),
            ((3 - 1.75) / sqrt(3.1875), "That is LayerNorm, which also subtracts the mean."),
            (3 / 1.75, "That is divided by the mean."),
            (3 / 6.25, "A root is missing."),
            (3.0, "It changes the size of its input."),
        ],
        "The mean square is 25 / 4, its root 2.5: 3 / 2.5 = 1.2. No mean is subtracted; LayerNorm would give 0.70.",
    ),
    Question(
        13,
        "With rotary positions, a query at position 5 and a key at position 2 have the dot product 1.3. The same query "
        "and key now stand at positions 105 and 102. The dot product is\n\n"
        "    a  smaller\n    b  the same\n    c  larger\n    d  unknown: that depends on the two vectors",
        "b",
        {
            "a": "What does the dot product of two rotated vectors see of their angles?",
            "c": "What does the dot product of two rotated vectors see of their angles?",
            "d": "For other distances, yes. What has not changed here?",
        },
        "Both vectors turn by the same further angle, and a dot product sees the difference of the angles only: the "
        "distance, 3, is what it was.",
    ),
    Question(
        13,
        "SmolLM2-135M has 30 layers, 9 query heads and 3 key/value heads of 64 dimensions. How many bytes is its KV "
        "cache for 2,048 tokens, with 2 bytes per number?",
        2 * 30 * 3 * 64 * 2048 * 2,
        [
            (2 * 30 * 9 * 64 * 2048 * 2, "Query heads are not cached. Which heads are?"),
            (30 * 3 * 64 * 2048 * 2, "Keys and values are both cached, and each number takes 2 bytes."),
            (2 * 30 * 3 * 64 * 2048 * 4, "That would be with 4 bytes per number."),
            (2 * 3 * 64 * 2048 * 2, "That is one layer."),
            (2 * 30 * 64 * 2048 * 2, "There is more than one key/value head."),
            (2 * 30 * 3 * 64 * 2, "That is for one token."),
        ],
        "2 (keys and values) · 30 layers · 3 heads · 64 dimensions · 2,048 tokens · 2 bytes = 47,185,920: 47 MB, a "
        "third of what nine key/value heads would take.",
        1e-3,
    ),
    Question(
        14,
        "A row of weights is rounded to int8: its largest absolute weight is 2.54 and becomes 127. With what value "
        "does the model then compute in place of 0.507?",
        0.5,
        [
            (25, "That is the integer. What is it worth?"),
            (0.507, "It is rounded to a multiple of the scale."),
            (0.508, "The scale is the largest weight divided by 127, not by another number."),
            (0.02, "That is the scale."),
            (0.52, "Round to the nearest integer, not up."),
        ],
        "The scale is 2.54 / 127 = 0.02; 0.507 / 0.02 = 25.35 becomes 25, and 25 · 0.02 = 0.50. Had the row one weight "
        "of 25.4, the value would be 0.6: hence one scale per row, not one for the matrix.",
        1e-3,
    ),
    Question(
        15,
        "A model is trained on conversations. How many of these 13 tokens are targets that count in the loss?\n\n"
        "    <|user|>                      1\n"
        "    How many legs has a spider?   7\n"
        "    <|end|>                       1\n"
        "    <|assistant|>                 1\n"
        "    Eight.                        2\n"
        "    <|end|>                       1",
        3,
        [
            (2, "From what will it learn to stop?"),
            (4, "One of these tokens is never written by the model: the template writes it."),
            (13, "Must the model learn to ask?"),
            (12, "Must the model learn to ask?"),
            (10, "These are the tokens that it reads."),
            (7, "These are the user's words."),
        ],
        "The assistant's two tokens and the <|end|> after them: what the model writes itself. Without the <|end|> it "
        "would never stop.",
        1e-6,
    ),
    Question(
        15,
        "DPO with beta = 0.1: the model gives the chosen answer a log-probability of -11, the rejected one -12. Before "
        "training it gave both -12. What is the loss of the pair, in nats?",
        -log(1 / (1 + exp(-0.1))),
        [
            (
                -log(1 / (1 + exp(0.1))),
                "Check the sign: the chosen answer has become likelier, which the loss rewards.",
            ),
            (-log(1 / (1 + exp(-1))), "Where is beta?"),
            (-log(1 / (1 + exp(1))), "Check the sign, and where beta goes."),
            (log(2), "That is the loss before training, when nothing has changed."),
            (0.1, "That is the difference of the two rewards. The loss is minus the log of its sigmoid."),
        ],
        "The rewards are 0.1 · (-11 + 12) = 0.1 and 0.1 · (-12 + 12) = 0; -ln sigmoid(0.1) = 0.644. Before training it "
        "was ln 2 = 0.693.",
        3e-3,
    ),
    Question(
        15,
        "A model answers one question four times; a rule gives the rewards 1, 0, 0 and 0. By how much does GRPO "
        "multiply the gradient of the first answer's log-probability, if it subtracts the mean of the group and does "
        "not divide by the deviation?",
        0.75,
        [
            (1, "That is the reward. Compare it with the group's mean."),
            (0.25, "That is the mean of the group."),
            (-0.25, "That is the advantage of the other three."),
            (sqrt(3), "That is divided by the deviation."),
            (1.5, "That is divided by the deviation."),
        ],
        "1 - 1/4 = 0.75, and -0.25 for each of the others: the four sum to 0. If all four are right, or all wrong, "
        "nothing is learned.",
    ),
    Question(
        16,
        "Held-out tales have a floor of 0.375 nats per token, known exactly. A run reports a validation loss of 0.23. "
        "What follows?\n\n"
        "    a  the model is better than its source\n"
        "    b  the learning rate should be lower\n"
        "    c  validation tales are in the training text\n"
        "    d  dropout was off",
        "c",
        {
            "a": "On tales that it has not seen, can a model beat their entropy?",
            "b": "That would explain a loss that is too high.",
            "d": "It is off whenever a model is evaluated.",
        },
        "Nobody predicts new tales better than the rule that draws them. The model has seen these: look for them in "
        "the training text.",
    ),
    Question(
        16,
        "Part of a run that does not clip its gradients. What do you try first?\n\n"
        "    step    980   985   990   995  1000  1005  1010  1015\n"
        "    loss   3.21  3.19  3.20  3.18  7.94  6.80  6.21  5.77\n"
        "    norm    0.4   0.4   0.5   0.4  61.2   3.9   2.2   1.6\n\n"
        "    a  a larger model\n"
        "    b  going on from step 980 with the gradient's norm clipped to 1\n"
        "    c  more dropout\n"
        "    d  waiting: it comes back by itself",
        "b",
        {
            "a": "The model was doing well until one step. What happened there?",
            "c": "Nothing here speaks of memorising. Look at the last row.",
            "d": "It may. But what it had learned is gone, and the next such batch comes.",
        },
        "One batch had a gradient a hundred times as large as usual, and one step along it undid the work of hundreds. "
        "Clipping bounds that step and leaves the others, with norms below 1, as they are. Then look at the batch.",
    ),
    Question(
        16,
        "A sweep over the learning rate gives these validation losses; two seeds differ by 0.02. What do you do "
        "next?\n\n    rate   1e-4   3e-4   1e-3\n"
        "    loss   3.41   3.12   2.95\n\n"
        "    a  train with 1e-3: it is the best\n"
        "    b  try 5e-4\n"
        "    c  try 3e-3\n"
        "    d  take more seeds of the three",
        "c",
        {
            "a": "The best of three. Where among them does it lie?",
            "b": "The loss falls all the way from the left to the right.",
            "d": "Their differences are many times those of the seeds.",
        },
        "The best rate lies at the edge of the sweep, so the minimum may lie beyond it: widen the range until a rate "
        "is worse on both sides.",
    ),
]


for place, question in enumerate(QUESTIONS, 1):
    exercise(f"exam.{place:02}")(question.check)


def ask(place: int) -> None:
    """Print a question, 1 to 30."""
    question = QUESTIONS[place - 1]
    print(say("Question {0} of {1} (notebook {2})", place, len(QUESTIONS), question.notebook))
    print(f"\n{_wrapped(translate(question.text))}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Thirty questions over the sixteen notebooks.")
    parser.add_argument("places", nargs="*", type=int, metavar="N", help="numbers of the questions (default: all)")
    parser.add_argument("--language", choices=["en", "zh"], default="en", help="of the questions (default: en)")
    arguments = parser.parse_args()
    os.environ["NOTEBOOK_LANGUAGE"] = arguments.language
    places = arguments.places or range(1, len(QUESTIONS) + 1)
    if unknown := [place for place in places if not 1 <= place <= len(QUESTIONS)]:
        parser.error(f"there is no question {unknown[0]}: they are numbered from 1 to {len(QUESTIONS)}")
    print(say("Answer with a number, such as 0.25 or 1/4, or with a letter. An empty line gives up, Ctrl+C ends."))
    missed = []
    try:
        for place in places:
            print()
            ask(place)
            if not examine(place):
                missed.append(place)
    except (EOFError, KeyboardInterrupt):
        print()
        return
    print("\n" + say("{0} of {1} right at the first attempt.", len(places) - len(missed), len(places)))
    if missed:
        again = sorted({QUESTIONS[place - 1].notebook for place in missed})
        print(say("Read again: notebooks {0}.", ", ".join(map(str, again))))


def examine(place: int) -> bool:
    """Read answers until one is right or the reader gives up. Return whether the first one was right."""
    question, name, n_wrong = QUESTIONS[place - 1], f"exam.{place:02}", 0
    while text := input("> ").strip():
        answer = _number(text)
        result = check(name, answer)
        sentence = str(result).removeprefix(name).lstrip(":\uff1a ")
        print(_wrapped(sentence[0].upper() + sentence[1:]))
        if result:
            return not n_wrong
        n_wrong += isinstance(answer, str) == isinstance(question.right, str)  # a letter for a number is a slip
    print(_wrapped(say("The right answer: {0}.", _shown(question.right))))
    print(_wrapped(translate(question.because)))
    return False


def _number(text: str) -> float | str:
    try:
        return float(Fraction(text.replace(",", "").replace(" ", "")))
    except (ValueError, ZeroDivisionError):
        return text


def _shown(right: float | str) -> str:
    return right if isinstance(right, str) else f"{right:,.4g}" if abs(right) < 1e4 else f"{right:,.0f}"


def _wrapped(text: str) -> str:
    """Wrap English paragraphs; tables and options are indented, and a terminal breaks Chinese lines by itself."""
    wide = current() == "zh"
    parts = text.split("\n\n")
    return "\n\n".join(part if wide or part.startswith(" ") else textwrap.fill(part, 88) for part in parts)


if __name__ == "__main__":
    main()
