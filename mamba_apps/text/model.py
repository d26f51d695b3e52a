"""A small language model around any causal mixer, in the shape of Mamba's own.

Dimensions in names: B batch, L length, D channels, V vocabulary.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_apps.errors import UserError
from mamba_apps.mixers import MixerBlock, State, create, create_norm
from mamba_apps.text.config import MambaLMConfig
from mamba_apps.text.generation import Continuation, Sampler, chosen_replay


class Backbone(nn.Module):
    """Embedding, blocks and the final norm.

    Args:
        config: The model's shape.
        backend: The operators' implementation to force; None lets each choose.
    """

    def __init__(self, config: MambaLMConfig, backend: str | None = None) -> None:
        super().__init__()
        options = dict(config.mixer_options) if backend is None else {**config.mixer_options, "backend": backend}
        self.embedding = nn.Embedding(config.rows, config.d_model)
        self.layers = nn.ModuleList(
            MixerBlock(
                create(config.mixer, config.d_model, **options),
                create_norm(config.norm, config.d_model, config.norm_eps, backend),
                config.residual_in_fp32,
            )
            for _ in range(config.n_layer)
        )
        self.norm_f = create_norm(config.norm, config.d_model, config.norm_eps, backend)
        self.residual_in_fp32 = config.residual_in_fp32

    def forward(self, ids_BL: Tensor, *, seq_idx_BL: Tensor | None = None) -> Tensor:
        """Return the normalised hidden state (B, L, D) after every token."""
        hidden_BLD, residual_BLD = self.embedding(ids_BL), None
        for block in self.layers:
            hidden_BLD, residual_BLD = block(hidden_BLD, residual_BLD, seq_idx_BL=seq_idx_BL)
        return self.norm_f.add(hidden_BLD, residual_BLD, self.residual_in_fp32)[0]

    def prefill(self, ids_BL: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """Return the hidden states (B, L, D) and the blocks' states after reading several tokens at once."""
        return self._read("prefill", ids_BL, states)

    def step(self, ids_B: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """Return the hidden state (B, D) and the blocks' states after one token; ``states`` are updated in place."""
        return self._read("step", ids_B, states)

    def _read(self, method: str, ids: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        hidden, residual = self.embedding(ids), None
        after = []
        for block, state in zip(self.layers, states, strict=True):
            hidden, residual, state = getattr(block, method)(hidden, residual, state)
            after.append(state)
        return self.norm_f.add(hidden, residual, self.residual_in_fp32)[0], after


class MambaLM(nn.Module):
    """A language model: embedding, blocks of add, norm and mixer, a final norm and a head.

    Parameters have mamba-ssm's names. A tied head has no parameter of its own, so that a state dict names each tensor
    once. Initialisation is mamba-ssm's: a normal embedding, and the projections that write to the residual scaled down
    by the square root of the number of blocks.

    Args:
        config: The model's shape.
        backend: The operators' implementation to force ("reference", "cpu", "triton"); None lets each choose.
    """

    def __init__(self, config: MambaLMConfig, backend: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, backend)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.d_model, config.rows, bias=False)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        nn.init.normal_(self.backbone.embedding.weight, std=self.config.initializer_range)
        for module in self.backbone.layers.modules():
            if isinstance(module, nn.Linear) and module.bias is not None and not hasattr(module.bias, "_no_reinit"):
                nn.init.zeros_(module.bias)
        for name, parameter in self.backbone.layers.named_parameters():
            if name.endswith("out_proj.weight"):
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
                parameter.div_(math.sqrt(self.config.n_layer))

    def forward(self, ids_BL: Tensor, *, seq_idx_BL: Tensor | None = None) -> Tensor:
        """Return the logits of the next token after every token.

        Args:
            ids_BL: Token ids in [0, vocab_size).
            seq_idx_BL: As in ``Mixer.forward``, for several texts packed into one row.

        Returns:
            Logits (B, L, V) with V = ``config.rows``; those past ``vocab_size`` stand for no token.
        """
        return self._head(self.backbone(ids_BL, seq_idx_BL=seq_idx_BL))

    def init_state(self, batch_size: int, *, max_length: int | None = None) -> list[State]:
        """Return every block's state before the first token; see ``Mixer.init_state``."""
        return [self._block(i).mixer.init_state(batch_size, max_length=max_length) for i in range(self.config.n_layer)]

    def prefill(self, ids_BL: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """Read several tokens at once.

        Returns:
            Logits (B, V) after the last of them, and the blocks' states.
        """
        hidden_BLD, states = self.backbone.prefill(ids_BL, states)
        return self._head(hidden_BLD[:, -1]), states

    def step(self, ids_B: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """Read one token; ``states`` are updated in place.

        Returns:
            Logits (B, V) after it, and the blocks' states.
        """
        hidden_BD, states = self.backbone.step(ids_B, states)
        return self._head(hidden_BD), states

    @torch.no_grad()
    def generate(
        self,
        prompt_BL: Tensor,
        new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        cache: bool = True,
        replay: bool | None = None,
    ) -> Tensor:
        """Continue each prompt.

        Args:
            prompt_BL: Token ids, at least one for each text.
            new_tokens: Number of tokens to add.
            temperature: What logits are divided by before a token is drawn; 0 takes the most probable one.
            top_k: How many of the most probable tokens are drawn from; None for all.
            generator: Where random numbers come from, on the model's device; None for PyTorch's own.
            cache: Whether the blocks' states are carried from token to token. Without, every token reads the whole
                text anew: the same tokens, slowly, from mixers that look ahead too.
            replay: Whether the step is captured once in a graph and replayed, where there is a GPU: the same tokens,
                several times as fast (attention's, in 16 bits, up to rounding). None for where it is safe (nothing is
                compiled or captured already, and no module has a hook that a replay would pass by) and worth the
                capture, from 32 tokens on.

        Returns:
            The prompts and their continuations (B, L + new_tokens).

        Raises:
            UserError: If a prompt is empty, an id is outside the vocabulary, a number is out of range, the mixer is not
                causal and ``cache`` is on, or a replay is asked for without ``cache``.
            BackendError: If a replay is asked for and the step cannot be captured.
        """
        self._check_prompt(prompt_BL, new_tokens)
        sampler = Sampler(self.config.vocab_size, temperature, top_k, generator)
        if generator is not None and generator.device.type != prompt_BL.device.type:
            raise UserError(
                f"the generator draws on {generator.device}, and the prompt lies on {prompt_BL.device}",
                f"give torch.Generator('{prompt_BL.device}')",
            )
        if replay and not cache:
            raise UserError("a step can be replayed only where there is a state", "leave cache on, or replay out")
        training = self.training
        self.eval()
        try:
            if not cache:
                return self._generate_anew(prompt_BL, new_tokens, sampler)
            return self._continue(prompt_BL, new_tokens, sampler, chosen_replay(self, prompt_BL, new_tokens, replay))
        finally:
            self.train(training)

    def _continue(self, prompt_BL: Tensor, new_tokens: int, sampler: Sampler, replay: bool) -> Tensor:
        if new_tokens == 0:
            return prompt_BL.clone()
        ids_BL = F.pad(prompt_BL, (0, new_tokens))
        texts = Continuation(self, prompt_BL, new_tokens, sampler, replay=replay)
        for end in range(prompt_BL.shape[1], ids_BL.shape[1]):
            ids_BL[:, end] = texts.next()
        return ids_BL

    def _generate_anew(self, prompt_BL: Tensor, new_tokens: int, sampler: Sampler) -> Tensor:
        ids_BL = prompt_BL.clone()
        for _ in range(new_tokens):
            ids_BL = torch.cat([ids_BL, sampler(self(ids_BL)[:, -1])[:, None]], dim=1)
        return ids_BL

    def _check_prompt(self, prompt_BL: Tensor, new_tokens: int) -> None:
        if prompt_BL.dim() != 2 or prompt_BL.numel() == 0:
            raise UserError(f"the prompt has shape {tuple(prompt_BL.shape)}", "give (texts, tokens), at least one each")
        if prompt_BL.dtype not in (torch.int64, torch.int32):
            raise UserError(f"the prompt is of {prompt_BL.dtype}", "give token ids as int64")
        if not isinstance(new_tokens, int) or new_tokens < 0:
            raise UserError(f"new_tokens is {new_tokens}", "give a whole number of 0 or more")
        low, high = int(prompt_BL.min()), int(prompt_BL.max())
        if low < 0 or high >= self.config.vocab_size:
            raise UserError(
                f"the prompt has token {low if low < 0 else high}", f"give ids in [0, {self.config.vocab_size})"
            )

    def _head(self, hidden: Tensor) -> Tensor:
        weight = self.backbone.embedding.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(hidden, weight)

    def _block(self, i: int) -> MixerBlock:
        return cast(MixerBlock, self.backbone.layers[i])

    @classmethod
    def from_checkpoint(cls, directory: str | Path, *, backend: str | None = None) -> MambaLM:
        """Load a directory with ``config.json`` and weights of mamba-ssm or transformers.

        The weights are safetensors or PyTorch's ``pytorch_model.bin``, of which nothing but tensors is unpickled.

        Raises:
            UserError: If a file is missing, damaged or holds more than tensors, or the checkpoint is of another model.
        """
        from mamba_apps.text.checkpoint import read_checkpoint

        return read_checkpoint(directory, backend=backend)

    def to_checkpoint(self, directory: str | Path, naming: str = "mamba_ssm") -> None:
        """Write ``config.json`` and ``model.safetensors`` under the names of "mamba_ssm" or "transformers".

        Raises:
            UserError: If that format cannot express this model.
        """
        from mamba_apps.text.checkpoint import write_checkpoint

        write_checkpoint(self, directory, naming)
