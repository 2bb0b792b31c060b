"""Reinforcement learning on visual ids: GRPO (arXiv:2402.03300), as Selftok and others have it for images.

Shape letters: B answers, P prompts, G answers of a prompt, K visual tokens of an image, V codes.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ddt_llm.grpo_config import GRPOConfig
from ddt_llm.head import head_logits
from ddt_llm.model import MultimodalLM
from ddt_llm.optimizer import OptimizerConfig
from ddt_llm.ranks import rank
from ddt_llm.reward import Reward
from ddt_llm.self_test import evaluating
from ddt_llm.training import LanguageModelTraining
from ddt_llm.visual_tokenizer import VisualTokenizer

FIRST = 5  # steps after which something must have varied


def advantages(rewards: Tensor, normalize: Literal["group", "none"] = "group") -> Tensor:
    """Compare rewards [P, G] within their groups: less the mean and, by "group", over the spread; 0 where none is.

    Example:
        >>> advantages(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist()
        [[1.0, -1.0], [0.0, 0.0]]
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if normalize == "none":
        return centred
    spread = rewards.std(1, correction=0, keepdim=True)
    return torch.where(spread > 1e-6, centred / spread.clamp(min=1e-6), 0.0)


def surrogate(new: Tensor, old: Tensor, advantage: Tensor, config: GRPOConfig) -> Tensor:
    """Compute what is to grow [B, K]: min(r A, clip(r) A), with r the ratio of probabilities of a token.

    Args:
        new, old: Log-probabilities [B, K], of the model and of what drew the tokens.
        advantage: Of each answer [B].
    """
    ratio, gain = (new - old).exp(), advantage[:, None]
    return torch.minimum(ratio * gain, ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * gain)


def divergence(new: Tensor, reference: Tensor) -> Tensor:
    """Estimate the KL divergence from a reference by log-probabilities of what was drawn: never negative, [B, K].

    r - 1 - log r with r = p_reference / p (k3 of http://joschu.net/blog/kl-approx.html).
    """
    log_ratio = reference - new
    return log_ratio.exp() - 1 - log_ratio


def visual_distribution(
    lm: MultimodalLM, prompts: Sequence[str], ids: Tensor, guidance: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Compute log-probabilities [B, K, V] by which `lm.generate` draws each id, given those written before it.

    Args:
        ids: Visual ids int64 [B, K] in tokenizer order; the K of the result are in the order of writing.
        guidance, temperature: Of drawing, as in `Sampling`.
    """
    tokens, vocabulary = lm.vocabulary.to_tokens(ids).tolist(), lm.vocabulary
    branches = [[lm.sequences.prompt([prompt], lm.template) for prompt in prompts]]
    if guidance != 1:
        branches.append([lm.sequences.prompt([], lm.template)] * len(prompts))
    logits = []
    for starts in branches:
        rows = [torch.tensor([*start, vocabulary.boi, *row[:-1]]) for start, row in zip(starts, tokens, strict=True)]
        rows = pad_sequence(rows, batch_first=True, padding_value=lm.sequences.pad).to(lm.model.device)
        hidden = lm.model.base_model(input_ids=rows, use_cache=False).last_hidden_state
        first = torch.tensor([len(start) for start in starts], device=hidden.device)
        places = first[:, None] + torch.arange(vocabulary.num_tokens, device=hidden.device)
        hidden = hidden.take_along_dim(places[..., None], dim=1)
        logits.append(head_logits(lm.model, hidden, vocabulary.visual))
    guided = logits[0] if guidance == 1 else logits[1] + guidance * (logits[0] - logits[1])
    return (guided / temperature).log_softmax(-1)


class GRPOTraining(LanguageModelTraining):
    """Draws answers to prompts, has them rewarded, and makes those that are better than their group likelier.

    Batches are lists of prompts. Logs `loss`, `reward`, `kl`, `entropy` (bits an id), `flat_groups` (share of prompts
    whose answers are all rewarded alike, so that nothing is learned from them), `clipped` and `lr`; with a referee
    `referee`, which is never trained on: where the reward rises and it does not, the reward is being deceived.

    Answers are a function of (seed, step) and of the weights, so a resumed run equals an uninterrupted one.

    Args:
        lm: The model; its copy at the start is the reference.
        visual: Draws the images that are rewarded; None rewards ids alone.
        reward: See `Reward`.
        referee: Another judge.

    Raises:
        ValueError: If in the first steps all rewards are the same, or no gradient comes: nothing would be learned.
    """

    def __init__(
        self,
        lm: MultimodalLM,
        config: OptimizerConfig,
        seed: int = 0,
        *,
        grpo: GRPOConfig,
        reward: Reward,
        visual: VisualTokenizer | None = None,
        referee: Reward | None = None,
    ):
        super().__init__(lm.model, config, seed)
        self.lm, self.grpo, self.visual, self.reward, self.referee = lm, grpo, visual, reward, referee
        model = copy.deepcopy(lm.model).requires_grad_(False).eval()
        # Not among the modules, so that no checkpoint holds it: it is what the run begins with.
        self.reference = [MultimodalLM(model, lm.text_tokenizer, lm.template, lm.visual_fingerprint)]
        self.drawn: dict[str, Any] = {}  # the answers that steps are taken on
        self.lowest, self.highest, self.moved = float("inf"), -float("inf"), False

    def training_step(self, batch: list[str], batch_idx: int) -> Tensor:
        """Compute the loss of answers to P prompts: less of the surrogate, more of the divergence."""
        if self.global_step % self.grpo.updates == 0:
            self.drawn = self.draw(batch)
        drawn = self.drawn
        new, entropy = self.log_probabilities(self.lm, drawn)
        old = drawn.setdefault("old", new.detach())
        reference, _ = self.log_probabilities(self.reference[0], drawn, grad=False)
        gain = advantages(drawn["rewards"], self.grpo.normalize)
        kl = divergence(new, reference).mean()
        loss = self.grpo.kl * kl - surrogate(new, old, gain.flatten(), self.grpo).mean()
        ratio = (new.detach() - old).exp()
        outside = (ratio < 1 - self.grpo.clip_low) | (ratio > 1 + self.grpo.clip_high)
        self.log_dict({"loss": loss, "kl": kl, "entropy": entropy, "clipped": outside.float().mean()})
        self.log_dict({"reward": drawn["rewards"].mean(), "flat_groups": (gain == 0).all(1).float().mean()})
        self.log("lr", self.lr_schedulers().get_last_lr()[0])
        if self.referee is not None:
            self.log("referee", drawn["referee"])
        return loss

    @torch.no_grad()
    def draw(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Draw G answers to each prompt, and have them judged."""
        prompts = [prompt for prompt in prompts for _ in range(self.grpo.group)]
        answers = self.global_step // self.grpo.updates
        first = ((self.seed * 1_000_003 + answers) * 1_000 + rank()) * 100_000 % 2**62
        settings = {"guidance_scale": self.grpo.guidance, "temperature": self.grpo.temperature}
        found = self.lm.generate_batch(prompts, self.visual, output="image", seed=first, **settings)
        ids = torch.cat([each.ids for each in found])
        images = None if self.visual is None else torch.cat([each.images for each in found])
        rewards = self.reward(images, ids, prompts).float().to(self.device)
        if not rewards.isfinite().all():
            raise ValueError(
                f"the reward of {prompts[int((~rewards.isfinite()).nonzero()[0])]!r} is not finite: mend it"
            )
        self.lowest, self.highest = min(self.lowest, float(rewards.min())), max(self.highest, float(rewards.max()))
        drawn = {"prompts": prompts, "ids": ids, "rewards": rewards.view(-1, self.grpo.group)}
        if self.referee is not None:
            drawn["referee"] = float(self.referee(images, ids, prompts).float().mean())
        return drawn

    def log_probabilities(self, lm: MultimodalLM, drawn: dict[str, Any], grad: bool = True) -> tuple[Tensor, Tensor]:
        """Compute log-probabilities [B, K] of what was drawn, in the order of writing, and their entropy in bits."""
        with torch.set_grad_enabled(grad), evaluating(lm.model):
            logs = visual_distribution(lm, drawn["prompts"], drawn["ids"], self.grpo.guidance, self.grpo.temperature)
        codes = (lm.vocabulary.to_tokens(drawn["ids"]) - lm.vocabulary.text_size).to(logs.device)
        entropy = -(logs.detach().exp() * logs.detach()).sum(-1).mean() / torch.log(torch.tensor(2.0))
        return logs.gather(-1, codes[..., None])[..., 0], entropy

    def on_fit_start(self) -> None:
        """Put the reference where the model is."""
        self.reference[0].model.to(self.device)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop a run of which the first steps show that it learns nothing."""
        super().on_before_optimizer_step(optimizer)
        gradients = (weight.grad for weight in self.model.parameters() if weight.grad is not None)
        self.moved = self.moved or any(bool(gradient.any()) for gradient in gradients)
        if self.global_step == FIRST - 1 and self.lowest == self.highest:
            raise ValueError(
                f"all rewards of the first {FIRST} steps are {self.lowest:g}: nothing can be learned from them; look "
                "at what is drawn, and reward in parts what is half right"
            )
        if self.global_step == FIRST - 1 and not self.moved:
            raise ValueError(f"no gradient came in the first {FIRST} steps, though rewards differ: raise group")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the answers that steps are still to be taken on."""
        checkpoint["drawn"] = self.drawn if self.global_step % self.grpo.updates else {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        self.drawn, self.lowest, self.highest, self.moved = checkpoint["drawn"], 0.0, 1.0, True
